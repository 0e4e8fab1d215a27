"""The point dma with a virtio endpoint: its buffers are met, its looks at its rings are not."""

from __future__ import annotations

import pytest

from tests.support.injected_endpoints import BASE, InjectedRng
from vdev.wire import viommu as wire

BUFFER = {"endpoint": "rng0"}
WRITE = wire.MAP_F_WRITE


@pytest.fixture
def scene() -> InjectedRng:
    return InjectedRng()


def works_anew(scene: InjectedRng) -> bool:
    """Whether it does once its driver has started it anew, with nothing injected."""
    scene.injector.clear()
    scene.bring_up()
    return [len(data) for data in scene.draw(32)] == [32]


@pytest.mark.parametrize("do", ["unsupported-request", "completer-abort"])
def test_a_refused_buffer_breaks_the_device(scene: InjectedRng, do: str) -> None:
    scene.add("dma", do, match=BUFFER)

    assert scene.draw() == []
    assert scene.rng.describe()["needs-reset"]
    assert scene.unit.doors["rng0"].refused == {do: 1}
    assert scene.faults() == []
    assert works_anew(scene)


def test_a_delayed_buffer_is_filled_in_its_time(scene: InjectedRng) -> None:
    scene.add("dma", "delay", match=BUFFER, with_={"seconds": 1}, times=1)

    waiting = scene.draw(), scene.drawn()
    scene.woken.clear()
    scene.pass_time(1)
    woken = list(scene.woken)
    late = scene.drawn()

    assert waiting == ([], [])
    assert woken == [scene.rng]
    assert [len(data) for data in late] == [64]
    assert not scene.rng.describe()["needs-reset"]
    assert scene.firings == [("r1", 1)]
    assert [len(data) for data in scene.draw(16)] == [16]


def test_a_delayed_buffer_waits_for_what_clear_does(scene: InjectedRng) -> None:
    scene.add("dma", "delay", match=BUFFER, with_={"seconds": 900})
    scene.draw()

    scene.injector.clear()

    assert [len(data) for data in scene.drawn()] == [64]
    assert scene.unit.doors["rng0"].detour is None


def test_a_buffer_that_was_delayed_is_forgotten_with_a_reset(scene: InjectedRng) -> None:
    scene.add("dma", "delay", match=BUFFER, with_={"seconds": 5}, times=1)
    scene.draw()

    scene.bring_up()
    scene.pass_time(6)

    assert [len(data) for data in scene.draw(16)] == [16]
    assert scene.injector.describe()["rules"][0]["held"] == 0


def test_a_partial_buffer_has_its_first_bytes_and_breaks_the_device(scene: InjectedRng) -> None:
    scene.add("dma", "partial", match=BUFFER, with_={"nbytes": 5})
    scene.driver.submit(0, [], [64])
    before = bytes(scene.driver.ram)

    assert scene.drawn() == []

    ((reason, iova, access),) = scene.faults()
    at = iova - BASE - 5
    assert (reason, access) == (wire.FAULT_R_MAPPING, WRITE)
    assert bytes(scene.driver.ram[at : at + 5]) != before[at : at + 5]
    assert bytes(scene.driver.ram[at + 5 : at + 64]) == before[at + 5 : at + 64]
    assert scene.rng.describe()["needs-reset"]
    assert works_anew(scene)


def test_a_corrupted_buffer_has_the_pattern_when_the_driver_gets_it(scene: InjectedRng) -> None:
    scene.add("dma", "corrupt", match=BUFFER, with_={"pattern": 0xC3, "offset": 2, "nbytes": 9})

    (data,) = scene.draw(32)

    assert data[2:11] == b"\xc3" * 9
    assert len(set(data[11:])) > 2
