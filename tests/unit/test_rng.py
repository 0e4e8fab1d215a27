"""virtio-rng behind the IOMMU: bytes arrive exactly, limits hold, and every refusal becomes what it should."""

from __future__ import annotations

import pytest

from tests.support.virtio_endpoint import LATER, RngRig
from tests.support.virtio_pci import RUNNING
from vdev.backends.entropy import SeededEntropy
from vdev.endpoints import rng as module
from vdev.endpoints.base import Endpoint, OptionValue
from vdev.endpoints.virtio import ENDPOINT_FEATURES
from vdev.errors import ConfigError
from vdev.functions.base import Progress
from vdev.wire.virtio_pci import F_ACCESS_PLATFORM, F_VERSION_1

MS = 1_000_000


@pytest.fixture
def rig() -> RngRig:
    return RngRig().start()


def stream(nbytes: int) -> bytes:
    """The beginning of what `source: seed:1` gives."""
    return SeededEntropy(1)(nbytes)


def limited(max_bytes: int, period: int = 10) -> RngRig:
    return RngRig({"source": "seed:1", "max_bytes": max_bytes, "period": period}).start()


def test_it_is_an_endpoint_that_looks_like_qemus_virtio_rng(rig: RngRig) -> None:
    endpoint: Endpoint = rig.rng

    assert int.from_bytes(endpoint.config_read(0, 4), "little") == 0x1044_1AF4
    assert int.from_bytes(endpoint.config_read(8, 4), "little") >> 8 == 0x00FF00
    assert rig.driver.common().num_queues == 1
    assert rig.driver.status() == RUNNING


@pytest.mark.parametrize("features", [ENDPOINT_FEATURES, F_VERSION_1 | F_ACCESS_PLATFORM])
def test_buffers_are_filled_in_order_with_exact_lengths_and_one_interrupt(features: int) -> None:
    rig = RngRig().start(features)
    rig.post(64, 5, 1)

    progress = rig.run()

    done = rig.ring.reap()
    assert progress is Progress.POLL
    assert [each.used_nbytes for each in done] == [64, 5, 1]
    assert b"".join(each.data for each in done) == stream(70)
    assert rig.driver.vectors == [1]


def test_a_buffer_in_pieces_and_indirect_is_filled(rig: RngRig) -> None:
    rig.ring.submit([], [3, 4, 5], indirect=True)

    rig.run()

    (done,) = rig.ring.reap()
    assert (done.used_nbytes, done.data) == (12, stream(12))


def test_the_device_goes_idle_and_is_woken_by_the_next_kick(rig: RngRig) -> None:
    rig.drawn(64)
    rig.idle()
    rig.woken.clear()

    rig.post(64)

    assert rig.woken == [rig.rng]
    assert rig.rng.describe()["kicks"] == 2


def test_what_is_drawn_does_not_repeat_across_a_driver_reset(rig: RngRig) -> None:
    before = rig.drawn(32)
    rig.start()

    assert before + rig.drawn(32) == stream(64)


def test_the_host_source_gives_other_bytes_each_time() -> None:
    rig = RngRig({"source": "host"}).start()

    assert rig.drawn(64) != rig.drawn(64)


def test_a_chain_without_writable_part_comes_back_empty_and_is_counted(rig: RngRig) -> None:
    rig.driver.submit(0, [b"what does the driver want"], [])
    rig.driver.submit(0, [b"and here"], [8])

    rig.run()

    done = rig.ring.reap()
    assert [each.used_nbytes for each in done] == [0, 8]
    assert done[1].data == stream(8)
    assert rig.rng.describe()["readable-parts"] == 2


def test_one_slice_gives_a_bounded_number_of_bytes(rig: RngRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_NBYTES", 100)
    rig.post(64, 64, 64)

    first = rig.run()
    after_one = [each.used_nbytes for each in rig.ring.reap()]
    rig.run()

    assert first is Progress.POLL
    assert after_one == [64, 36]
    assert [each.used_nbytes for each in rig.ring.reap()] == [64]


# the rate limit


def test_a_period_gives_no_more_than_max_bytes_and_the_rest_when_it_is_over() -> None:
    rig = limited(100)
    rig.post(64, 64, 64)

    rig.run()
    rig.run()
    in_period = [each.used_nbytes for each in rig.ring.reap()]
    alarm = rig.alarms[-1]
    rig.now = alarm - 1
    early = rig.run(), rig.ring.has_used()
    rig.now = alarm
    rig.run()

    assert in_period == [64, 36]
    assert alarm == 10 * MS  # the first byte was given at 0
    assert early == (Progress.IDLE, False)
    assert [each.used_nbytes for each in rig.ring.reap()] == [64]


def test_a_period_begins_with_its_first_byte_not_with_the_end_of_the_last() -> None:
    rig = limited(64)
    rig.drawn(64)
    rig.now = 1000 * MS
    rig.drawn(64)

    rig.run()

    assert rig.alarms == [1010 * MS]


def test_an_exhausted_device_does_not_spin() -> None:
    rig = limited(64)
    rig.post(64, 64)

    progress = [rig.run() for _ in range(3)]

    assert progress == [Progress.POLL, Progress.IDLE, Progress.IDLE]


def test_a_reset_buys_no_bytes() -> None:
    rig = limited(64)
    rig.drawn(64)

    rig.start()

    assert rig.drawn(64) == b""
    rig.now = 10 * MS
    rig.run()
    assert [each.used_nbytes for each in rig.ring.reap()] == [64]


def test_without_a_limit_nobody_asks_for_time(rig: RngRig) -> None:
    rig.drawn(64)
    rig.idle()

    assert rig.alarms == []


# options


@pytest.mark.parametrize("source", ["dev", "seed", "seed:", "seed:x", "seed:-1", "seed:" + "9" * 21, 5, True])
def test_a_wrong_source_names_the_option_and_the_cure(source: OptionValue) -> None:
    with pytest.raises(ConfigError, match=r"endpoints\[rng0\]\.options\.source"):
        RngRig({"source": source})


@pytest.mark.parametrize("key", ["max_bytes", "period"])
@pytest.mark.parametrize("value", [0, -1, 1 << 63, "64", True])
def test_a_wrong_limit_names_the_option(key: str, value: OptionValue) -> None:
    with pytest.raises(ConfigError, match=rf"endpoints\[rng0\]\.options\.{key}"):
        RngRig({key: value})


def test_the_host_is_the_default_source() -> None:
    assert RngRig({"period": 5}).start().drawn(64) != stream(64)


def test_long_after_work_the_device_needs_kicks_again(rig: RngRig) -> None:
    rig.drawn(8)
    rig.now += LATER
    rig.idle()

    assert rig.ring.submit([], [8])
