"""A unit and its mock driver: engine, device, PCI function, two rings. Helpers act; tests assert."""

from __future__ import annotations

from tests.support.virtio_pci import PciDriver
from vdev.errors import TranslationFault
from vdev.functions.base import Progress, Worker
from vdev.functions.viommu import Hold, ViommuDevice, viommu_function
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, Limits, UnitSettings
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.polling import PollWindow
from vdev.wire import viommu as wire
from vdev.wire.virtio_pci import F_EVENT_IDX

ENDPOINT = 0x100
LATER = 10_000_000  # long after any poll window
ATTACH = wire.Attach(wire.T_ATTACH, bytes(3), 1, ENDPOINT).pack()
MAP = wire.Map(wire.T_MAP, bytes(3), 1, 0x1000, 0x1FFF, 0x10_0000, wire.MAP_F_READ).pack()
OK = wire.TAILS[wire.S_OK]
INVAL = wire.TAILS[wire.S_INVAL]


class ViommuRig:
    """Engine, device, function and a running driver; everything the device asks of the world is noted."""

    def __init__(
        self,
        *,
        event_idx: bool = False,
        hold: Hold | None = None,
        limits: Limits | None = None,
        engine: Engine | None = None,
        accept: int = -1,
    ) -> None:
        self.notes: list[str] = []
        self.woken = 0
        settings = UnitSettings("unit", limits=limits or Limits())
        self.engine = engine or Engine(settings, [EndpointSettings(ENDPOINT, "ep")])
        self.device = ViommuDevice(
            self.engine,
            wake=self._wake,
            quiesce=self._quiesce,
            window=PollWindow(),
            hold=hold or (lambda reply: False),
        )
        self.function = viommu_function(self.device, NoOrdering())
        self.driver = PciDriver(self.function)
        features = self.device.offered_features & ~(0 if event_idx else F_EVENT_IDX) & accept
        self.requests, self.events = self.driver.start(features, event_idx=event_idx)
        self.now = 0
        self.idle()
        self.notes.clear()

    def _wake(self, worker: Worker) -> None:
        self.woken += 1

    def _quiesce(self) -> None:
        self.notes.append(f"quiesce attached={self.attached}")

    @property
    def attached(self) -> bool:
        """Whether any domain exists: there is one only while the endpoint is in it."""
        return bool(self.engine.describe()["domains"])

    def run(self) -> Progress:
        """One slice at the current time."""
        return self.device.run_slice(self.now)

    def idle(self) -> None:
        """Run until the device waits for a kick."""
        for _ in range(8):
            self.now += LATER
            if self.run() is Progress.IDLE:
                return
        raise AssertionError("the device does not go idle")

    def ask(self, *requests: bytes, room: int = 4) -> list[bytes]:
        """Submit requests, run one slice, return what the device wrote of each."""
        for request in requests:
            self.driver.submit(0, [request], [room])
        self.run()
        return [done.data[: done.used_nbytes] for done in self.requests.reap()]

    def post(self, *sizes: int) -> None:
        """Event buffers."""
        for nbytes in sizes:
            self.driver.submit(1, [], [nbytes])

    def fault(self, iova: int = 0x9000) -> None:
        """An endpoint's access is refused."""
        self.engine.fault(ENDPOINT, TranslationFault(wire.FAULT_R_MAPPING, "mapping", iova), 1)
        self.device.faults_pending()

    def faults(self) -> list[tuple[int, int]]:
        """(used length, address) of every event the driver got."""
        return [
            (done.used_nbytes, wire.Fault.parse(done.data).address if done.used_nbytes else 0)
            for done in self.events.reap()
        ]
