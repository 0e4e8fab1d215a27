"""A unit behind the vhost-user carrier, without a socket: engine, device, carrier, two rings."""

from __future__ import annotations

from tests.support.driver import DriverRing
from vdev.functions.base import Progress, Worker
from vdev.functions.vhost import VhostCarrier
from vdev.functions.viommu import Hold, ViommuDevice
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.memory import Region
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.polling import PollWindow
from vdev.wire import viommu as wire
from vdev.wire.virtio_pci import F_EVENT_IDX

ENDPOINT = 0x100
LATER = 10_000_000  # long after any poll window
RAM_NBYTES = 1 << 20
RING_SIZE = 16
EVENT_RING_AT = 0x10000
ATTACH = wire.Attach(wire.T_ATTACH, bytes(3), 1, ENDPOINT).pack()
OK = wire.TAILS[wire.S_OK]


def map_page(page: int) -> bytes:
    """A MAP of one page in domain 1."""
    iova = page << 12
    return wire.Map(wire.T_MAP, bytes(3), 1, iova, iova + 0xFFF, iova, wire.MAP_F_READ).pack()


class CarrierRig:
    """Everything the carrier asks of the world is noted. `start` and `stop` are QEMU's."""

    def __init__(self, *, hold: Hold | None = None, engine: Engine | None = None) -> None:
        self.notes: list[str] = []
        self.engine = engine or Engine(UnitSettings("unit"), [EndpointSettings(ENDPOINT, "ep")])
        self.device = ViommuDevice(
            self.engine,
            wake=self._wake,
            quiesce=lambda: self.notes.append("quiesce"),
            window=PollWindow(),
            hold=hold or (lambda reply: False),
        )
        self.carrier = VhostCarrier(
            "unit",
            self.device,
            NoOrdering(),
            system_reset=self._system_reset,
            freeze=lambda frozen: self.notes.append("freeze" if frozen else "thaw"),
        )
        self.device.connect(self.carrier)
        self.carrier.raise_call = lambda index: self.notes.append(f"call {index}")
        self.carrier.raise_error = lambda index: self.notes.append(f"error {index}")
        self.carrier.push_config = lambda: self.notes.append("config")
        self.ram = bytearray(RAM_NBYTES)
        self.carrier.memory.add(Region(0, RAM_NBYTES, memoryview(self.ram)))
        self.features = self.carrier.offered_features & ~F_EVENT_IDX
        self.now = 0
        self.new_rings()

    def _wake(self, worker: Worker) -> None:
        """Slices are run by hand."""

    def _system_reset(self) -> None:
        self.notes.append("system reset")
        self.device.system_reset()

    def new_rings(self, start: int = 0) -> None:
        """What a new driver does: zeroed rings at the same addresses."""
        self.ram[: 2 * EVENT_RING_AT] = bytes(2 * EVENT_RING_AT)
        buffer = memoryview(self.ram)
        self.requests = DriverRing(buffer, RING_SIZE, start=start)
        self.events = DriverRing(buffer, RING_SIZE, offset=EVENT_RING_AT)

    def configure(self, *bases: int) -> None:
        """Everything of a start but the enabling."""
        carrier = self.carrier
        carrier.set_features(self.features)
        for index, (ring, base) in enumerate(zip((self.requests, self.events), bases, strict=True)):
            carrier.set_size(index, ring.size)
            carrier.set_base(index, base)
            carrier.set_addresses(index, ring.desc_gpa, ring.avail_gpa, ring.used_gpa)
            carrier.set_kick(index)

    def start(self, *bases: int) -> None:
        """DRIVER_OK or `cont`; `bases` default to 0."""
        self.configure(*(bases or (0, 0)))
        for index in range(2):
            self.carrier.enable(index, True)

    def stop(self) -> tuple[int, int]:
        """QMP `stop` or a virtio reset; the indexes the carrier gave."""
        for index in range(2):
            self.carrier.enable(index, False)
        return self.carrier.stop(0), self.carrier.stop(1)

    def run(self) -> Progress:
        """One slice."""
        return self.device.run_slice(self.now)

    def ask(self, *requests: bytes) -> list[bytes]:
        """Submit requests, run one slice, return what the device wrote of each."""
        for request in requests:
            self.requests.submit([request], [4])
        self.run()
        return [done.data[: done.used_nbytes] for done in self.requests.reap()]

    def take_notes(self) -> list[str]:
        """What was noted since the last call."""
        notes, self.notes = self.notes, []
        return notes

    @property
    def mappings(self) -> int:
        """How many mappings the unit holds."""
        count = self.engine.describe()["mappings"]
        assert isinstance(count, int)
        return count
