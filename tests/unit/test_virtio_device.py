"""The base of virtio devices, by one of three queues: two are served, one is for when it has something to say."""

from __future__ import annotations

import pytest

from tests.support.virtio_pci import PciDriver
from vdev.functions import virtio_device
from vdev.functions.base import Progress, Worker
from vdev.functions.virtio_device import RING_FEATURES, QueueDevice
from vdev.functions.virtio_pci import VirtioPciFunction
from vdev.virtio.device import VirtioDevice
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.queue import Chain, Queue
from vdev.wire import vring
from vdev.wire.virtio_pci import F_EVENT_IDX, CfgType, PciCap, Status

LATER = 10_000_000  # ns, long after any poll window
SAYS = 2


class Echo(QueueDevice):
    """Writes back what it reads on queues 0 and 1; keeps what starts with `?`; says `news` on queue 2."""

    device_id = 42
    queue_sizes: tuple[int, ...] = (16, 16, 16)
    served: tuple[int, ...] = (0, 1)

    def __init__(self) -> None:
        self.woken: list[Worker] = []
        super().__init__("echo", offered_features=RING_FEATURES, wake=self.woken.append)
        self.kept: list[tuple[Queue, Chain, int]] = []
        self.news: list[bytes] = []
        self.most = 1000

    def take(self, ring: Queue, chain: Chain, index: int) -> bool:
        data = chain.read(100)
        if data.startswith(b"?"):
            self.kept.append((ring, chain, index))
        else:
            ring.push(chain, chain.write(data))
        self.most -= 1
        return self.most > 0

    def work_beside(self, now_ns: int) -> bool:
        ring = self.queue(SAYS)
        while ring is not None and self.news and (chain := ring.pop()) is not None:
            ring.push(chain, chain.write(self.news.pop()))
            self.publish(ring, SAYS)
        return False


class Rig:
    def __init__(self) -> None:
        self.device = Echo()
        self.function = VirtioPciFunction("echo", self.device, NoOrdering(), class_code=0xFF0000)
        self.device.connect(self.function)
        self.driver = PciDriver(self.function)
        self.now = 0
        self.start()

    def start(self, queues: int = 3) -> None:
        self.driver.start(RING_FEATURES & ~F_EVENT_IDX, queues=queues)

    def run(self) -> Progress:
        return self.device.run_slice(self.now)

    def idle(self) -> None:
        for _ in range(8):
            self.now += LATER
            if self.run() is Progress.IDLE:
                return
        raise AssertionError("the device does not go idle")

    def echoes(self, index: int) -> list[bytes]:
        return [done.data[: done.used_nbytes] for done in self.driver.rings[index].reap()]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_it_is_a_virtio_device_and_a_worker(rig: Rig) -> None:
    device: VirtioDevice = rig.device
    worker: Worker = rig.device

    assert (device.device_id, worker.name) == (42, "echo")
    assert worker in rig.device.woken


def test_every_served_queue_is_worked_in_one_slice_with_an_interrupt_each(rig: Rig) -> None:
    rig.driver.submit(0, [b"ab"], [8])
    rig.driver.submit(1, [b"cd"], [8])
    rig.driver.submit(1, [b"ef"], [8])

    progress = rig.run()

    assert progress is Progress.POLL
    assert (rig.echoes(0), rig.echoes(1)) == ([b"ab"], [b"cd", b"ef"])
    assert rig.driver.vectors == [1, 2]


def test_idle_leaves_notifications_of_every_served_queue_enabled(rig: Rig) -> None:
    rig.driver.submit(0, [b"ab"], [8])
    rig.run()
    during = rig.driver.submit(0, [b"ab"], [8])
    rig.run()
    rig.idle()

    assert not during
    assert rig.driver.submit(0, [b"ab"], [8])
    assert rig.driver.submit(1, [b"ab"], [8])


@pytest.mark.parametrize("index", [0, 1])
def test_what_slips_in_before_notifications_are_back_is_served(rig: Rig, index: int) -> None:
    rig.driver.submit(0, [b"ab"], [8])
    rig.driver.submit(1, [b"ab"], [8])
    rig.run()
    ring = rig.device.queue(index)
    assert ring is not None
    rearm = ring.rearm

    def submit_then_rearm() -> bool:
        assert not rig.driver.submit(index, [b"late"], [8])
        return rearm()

    ring.rearm = submit_then_rearm  # type: ignore[method-assign]
    rig.now += LATER

    assert rig.run() is Progress.BUSY
    rig.run()
    assert rig.echoes(index)[-1] == b"late"


def test_a_queue_that_is_not_served_is_left_to_the_device(rig: Rig) -> None:
    rig.driver.submit(SAYS, [], [8])
    rig.run()
    untouched = rig.echoes(SAYS)

    rig.device.news.append(b"news")
    rig.run()

    assert untouched == []
    assert rig.echoes(SAYS) == [b"news"]
    assert rig.driver.vectors == [1 + SAYS]


def test_a_queue_the_driver_did_not_enable_is_none(rig: Rig) -> None:
    rig.start(queues=1)
    rig.driver.submit(0, [b"ab"], [8])

    rig.run()

    assert rig.device.queue(1) is rig.device.queue(SAYS) is rig.device.queue(9) is None
    assert rig.echoes(0) == [b"ab"]


def test_the_device_may_end_a_batch(rig: Rig) -> None:
    rig.device.most = 2
    for _ in range(3):
        rig.driver.submit(0, [b"ab"], [8])

    progress = rig.run()

    assert progress is Progress.POLL
    assert len(rig.echoes(0)) == 2


def test_a_whole_batch_is_busy(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtio_device, "BATCH_CHAINS", 2)
    for _ in range(3):
        rig.driver.submit(1, [b"ab"], [8])

    assert rig.run() is Progress.BUSY
    assert len(rig.echoes(1)) == 2


def test_a_kept_chain_is_finished_later(rig: Rig) -> None:
    rig.driver.submit(1, [b"?ab"], [8])
    rig.run()
    before = rig.echoes(1)

    finished = rig.device.finish(*rig.device.kept.pop(), b"later")

    assert (before, finished) == ([], True)
    assert rig.echoes(1) == [b"later"]
    assert rig.driver.vectors == [2]


@pytest.mark.parametrize("how", ["reset", "suspend", "bus master"])
def test_a_kept_chain_does_not_land_when_its_ring_is_gone(rig: Rig, how: str) -> None:
    rig.driver.submit(0, [b"?ab"], [8])
    rig.run()
    if how == "reset":
        rig.start()
    elif how == "suspend":
        rig.device.suspend()
    else:
        rig.driver.bus_master(False)
    before = bytes(rig.driver.ram)

    finished = rig.device.finish(*rig.device.kept.pop(), b"later")

    assert not finished
    assert bytes(rig.driver.ram) == before


def test_one_broken_ring_stops_all_until_a_reset(rig: Rig) -> None:
    rig.driver.rings[1].avail_words[vring.IDX_WORD] = 0x4000
    rig.driver.submit(0, [b"ab"], [8])

    progress = rig.run()
    answered = rig.echoes(0)
    rig.driver.submit(0, [b"cd"], [8])
    rig.run()

    assert progress is Progress.IDLE
    assert answered == [b"ab"]  # what came before the breakage is not lost
    assert rig.echoes(0) == []
    assert rig.driver.status() & Status.DEVICE_NEEDS_RESET
    assert rig.device.describe()["ring-errors"] == 1
    rig.start()
    rig.driver.submit(0, [b"ef"], [8])
    rig.run()
    assert rig.echoes(0) == [b"ef"]


def test_a_suspended_device_touches_nothing_and_goes_on_with_new_queues(rig: Rig) -> None:
    rig.driver.submit(0, [b"ab"], [8])
    queues = tuple(rig.device.queue(index) for index in range(3))
    rig.device.suspend()
    suspended = rig.run(), rig.echoes(0)

    rig.device.driver_ok(RING_FEATURES, queues)
    rig.run()

    assert suspended == (Progress.IDLE, [])
    assert rig.echoes(0) == [b"ab"]


def test_a_device_without_configuration_has_no_structure_for_it_and_reads_as_zeros(rig: Rig) -> None:
    kinds = [PciCap.parse(rig.function.config_read(at, 16)).cfg_type for at in rig.function.standard_offsets]

    rig.driver.write(0x2000, 4, 0xFFFF_FFFF)

    assert kinds == [CfgType.COMMON, CfgType.NOTIFY, CfgType.ISR, CfgType.PCI]
    assert rig.driver.device_config(0, 4) == 0
    assert rig.device.config_read(0, 3) == bytes(3)


def test_a_device_that_serves_no_queue_may_still_say_something(rig: Rig) -> None:
    rig.device.served = ()
    rig.start()
    rig.driver.submit(SAYS, [], [8])
    rig.device.news = [b"hot"]

    progress = rig.run()

    assert progress is Progress.IDLE
    assert rig.echoes(SAYS) == [b"hot"]


def test_kicks_are_counted(rig: Rig) -> None:
    before = rig.device.kicks

    rig.driver.notify(0)
    rig.driver.notify(SAYS)

    assert rig.device.kicks == before + 2
