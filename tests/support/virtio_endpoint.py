"""A virtio endpoint behind a unit, with a driver that maps its rings and buffers. Helpers act; tests assert."""

from __future__ import annotations

from tests.support.bay import bay
from tests.support.driver import DriverRing
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES, PciDriver
from vdev.endpoints.base import OptionValue
from vdev.endpoints.rng import Rng
from vdev.endpoints.virtio import ENDPOINT_FEATURES
from vdev.functions.base import Progress, Worker
from vdev.functions.dma import DmaDoor
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.pci.base import PciFunction
from vdev.wire import viommu as wire
from vdev.wire import vring
from vdev.wire.virtio_pci import F_EVENT_IDX

ENDPOINT = 0x200
DOMAIN = 1
PAGE = 4096
IOVA = 0x4000_0000  # where the driver maps its RAM: nowhere the guest-physical address
LONE_IOVA = 0x7000_0000  # a page a test maps by itself, or not
LONE_AT = RAM_NBYTES - PAGE  # its place in RAM
RW = wire.MAP_F_READ | wire.MAP_F_WRITE
LATER = 10_000_000  # ns, long after any poll window
SIZE = 8


class RngRig:
    """Engine, rng, driver. All of RAM is mapped at IOVA; `start` brings the device up as Linux does."""

    def __init__(self, options: dict[str, OptionValue] | None = None, *, granule: int = PAGE) -> None:
        settings = UnitSettings("unit", page_size_mask=(1 << 64) - granule)
        self.engine = Engine(settings, [EndpointSettings(ENDPOINT, "rng0")])
        self.woken: list[Worker] = []
        self.alarms: list[int] = []
        self.faults_told = 0
        self.rng = Rng("rng0", bay(self._open_door, self.woken.append, self._wake_at), options or {"source": "seed:1"})
        self.driver = PciDriver(self.rng)
        self.now = 0
        self.ask(wire.Attach(wire.T_ATTACH, bytes(3), DOMAIN, ENDPOINT))
        self.map(IOVA, 0, RAM_NBYTES)
        self.ring: DriverRing

    def _open_door(self, function: PciFunction) -> DmaDoor:
        self.door = DmaDoor(self.engine, ENDPOINT, function, after_fault=self._fault)
        return self.door

    def _fault(self) -> None:
        self.faults_told += 1

    def _wake_at(self, worker: Worker, when_ns: int) -> None:
        assert worker is self.rng
        self.alarms.append(when_ns)

    def ask(self, request: wire.Attach | wire.Map | wire.Unmap) -> None:
        """A request to the unit, which must take it."""
        assert self.engine.handle(request.pack(), 4) == wire.TAILS[wire.S_OK]

    def map(self, iova: int, at: int, nbytes: int, flags: int = RW) -> None:
        """Map RAM from byte `at` on."""
        self.ask(wire.Map(wire.T_MAP, bytes(3), DOMAIN, iova, iova + nbytes - 1, RAM_GPA + at, flags))

    def unmap(self, iova: int, nbytes: int) -> None:
        self.ask(wire.Unmap(wire.T_UNMAP, bytes(3), DOMAIN, iova, iova + nbytes - 1, bytes(4)))

    def start(self, features: int = ENDPOINT_FEATURES) -> RngRig:
        """Negotiate and start with one ring; returns itself."""
        event_idx = bool(features & F_EVENT_IDX)
        (self.ring,) = self.driver.start(features, event_idx=event_idx, queues=1, size=SIZE, base=IOVA)
        return self

    def post(self, *sizes: int) -> None:
        """One chain of one writable buffer for each size."""
        for nbytes in sizes:
            self.driver.submit(0, [], [nbytes])

    def post_lone(self, nbytes: int = 64) -> None:
        """One writable buffer at LONE_IOVA."""
        head = self.ring.free[-1]
        self.ring.write_descriptor(head, LONE_IOVA, nbytes, vring.DESC_F_WRITE)
        self.ring.offer(head)
        self.ring.publish()

    def run(self) -> Progress:
        """One slice at the present time."""
        return self.rng.run_slice(self.now)

    def idle(self) -> None:
        """Slices until there is nothing to do; AssertionError if that does not come."""
        for _ in range(64):
            if self.run() is Progress.IDLE:
                return
            self.now += LATER
        raise AssertionError("the device does not go idle")

    def drawn(self, *sizes: int) -> bytes:
        """What the device wrote into buffers of these sizes."""
        self.post(*sizes)
        self.run()
        return b"".join(done.data[: done.used_nbytes] for done in self.ring.reap())

    def fault_records(self) -> list[tuple[int, int]]:
        """(address, flags) of every fault the guest is told of."""
        records = [wire.Fault.parse(record) for record in self.engine.pending_faults]
        return [(record.address, record.flags & RW) for record in records]
