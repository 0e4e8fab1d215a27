"""A guest's virtio-pci driver against a function without a socket: register accesses, start-up, a ring per queue."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.driver import DriverRing
from vdev.functions.virtio_pci import (
    DEVICE_OFFSET,
    NOTIFY_MULTIPLIER,
    NOTIFY_OFFSET,
    STRUCTURES_BAR,
    VirtioPciFunction,
)
from vdev.memory import Region
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.queue import Queue
from vdev.wire import pci
from vdev.wire import virtio_pci as wire
from vdev.wire.virtio_pci import CommonCfg, Status

RAM_GPA = 0x10_0000
RAM_NBYTES = 1 << 20
READY = Status.ACKNOWLEDGE | Status.DRIVER
NEGOTIATED = READY | Status.FEATURES_OK
RUNNING = NEGOTIATED | Status.DRIVER_OK

FEATURE_SELECT, DRIVER_SELECT, DRIVER_FEATURE = 0x00, 0x08, 0x0C
CONFIG_VECTOR, STATUS = 0x10, 0x14
QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE = 0x16, 0x18, 0x1A, 0x1C
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30

OFFERED = wire.F_VERSION_1 | wire.F_EVENT_IDX | 0x5


class PciDriver:
    """Bus master on, 1 MiB of RAM, vectors recorded; `start` brings the device up as Linux does."""

    def __init__(self, function: VirtioPciFunction) -> None:
        self.function = function
        self.ram = memoryview(bytearray(RAM_NBYTES))
        self.vectors: list[int] = []
        self.rings: list[DriverRing] = []
        function.memory.add(Region(RAM_GPA, RAM_NBYTES, self.ram))
        function.raise_vector = self.vectors.append
        self.bus_master(True)

    def bus_master(self, enabled: bool) -> None:
        command = pci.Command.MEMORY | (pci.Command.BUS_MASTER if enabled else 0)
        self.function.config_write(pci.COMMAND, int(command).to_bytes(2, "little"))

    def read(self, offset: int, nbytes: int) -> int:
        return int.from_bytes(self.function.bar_read(STRUCTURES_BAR, offset, nbytes), "little")

    def write(self, offset: int, nbytes: int, value: int) -> None:
        self.function.bar_write(STRUCTURES_BAR, offset, value.to_bytes(nbytes, "little"))

    def common(self) -> CommonCfg:
        return CommonCfg.parse(self.function.bar_read(STRUCTURES_BAR, 0, CommonCfg.layout.size))

    def status(self, value: int | None = None) -> int:
        """Write the status if given; what it reads afterwards."""
        if value is not None:
            self.write(STATUS, 1, int(value))
        return self.read(STATUS, 1)

    def features(self, value: int) -> None:
        for select in (0, 1):
            self.write(DRIVER_SELECT, 4, select)
            self.write(DRIVER_FEATURE, 4, value >> 32 * select & 0xFFFFFFFF)

    def negotiate(self, features: int) -> int:
        """Reset to FEATURES_OK; the status read back."""
        self.status(0)
        self.status(Status.ACKNOWLEDGE)
        self.status(READY)
        self.features(features)
        return self.status(NEGOTIATED)

    def add_queue(self, index: int, ring: DriverRing) -> None:
        self.write(QUEUE_SELECT, 2, index)
        self.write(QUEUE_SIZE, 2, ring.size)
        self.write(QUEUE_VECTOR, 2, index + 1)
        self.write(QUEUE_DESC, 8, ring.desc_gpa)
        # Linux writes 64-bit addresses as two halves
        for offset, gpa in ((QUEUE_DRIVER, ring.avail_gpa), (QUEUE_DEVICE, ring.used_gpa)):
            self.write(offset, 4, gpa & 0xFFFFFFFF)
            self.write(offset + 4, 4, gpa >> 32)
        self.write(QUEUE_ENABLE, 2, 1)

    def start(
        self, features: int, *, event_idx: bool = False, queues: int = 2, size: int = 16, base: int = RAM_GPA
    ) -> list[DriverRing]:
        """Bring the device up with `queues` rings; vector 0 is the configuration's, 1 + index each queue's.

        `base` is where the device finds the RAM: an IOVA for one behind an IOMMU.
        """
        self.negotiate(features)
        self.write(CONFIG_VECTOR, 2, 0)
        self.rings, offset = [], 0
        for index in range(queues):
            ring = DriverRing(self.ram, size, base_gpa=base, offset=offset, slot_nbytes=1024, event_idx=event_idx)
            self.add_queue(index, ring)
            self.rings.append(ring)
            offset = ring.stop
        self.status(RUNNING)
        return self.rings

    def notify(self, index: int) -> None:
        self.write(NOTIFY_OFFSET + NOTIFY_MULTIPLIER * index, 2, index)

    def submit(self, index: int, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> bool:
        """One chain, kicked if the device asks for it; whether it did."""
        kick = self.rings[index].submit(readable, writable)
        if kick:
            self.notify(index)
        return kick

    def device_config(self, offset: int, nbytes: int) -> int:
        return self.read(DEVICE_OFFSET + offset, nbytes)


class NotingDevice:
    """A virtio device that notes what its transport tells it."""

    def __init__(self) -> None:
        self.device_id = 23
        self.offered_features = OFFERED
        self.queue_sizes: tuple[int, ...] = (256, 64)
        self.config_nbytes = 64
        self.calls: list[str] = []
        self.queues: tuple[Queue | None, ...] = ()

    def config_read(self, offset: int, nbytes: int) -> bytes:
        return bytes(range(64))[offset : offset + nbytes].ljust(nbytes, b"\0")

    def config_write(self, offset: int, data: bytes, accepted_features: int) -> None:
        self.calls.append(f"config {offset}={data.hex()} features={accepted_features:#x}")

    def features_ok(self, accepted_features: int) -> bool:
        return True

    def driver_ok(self, accepted_features: int, queues: tuple[Queue | None, ...]) -> None:
        self.calls.append(f"driver ok {accepted_features:#x}")
        self.queues = queues

    def queue_notified(self, index: int) -> None:
        self.calls.append(f"kick {index}")

    def memory_changed(self) -> None:
        self.calls.append("memory")

    def suspend(self) -> None:
        self.calls.append("suspend")

    def reset(self) -> None:
        self.calls.append("reset")

    def system_reset(self) -> None:
        self.calls.append("system reset")


class NotingRig:
    """Device, function and driver."""

    def __init__(self) -> None:
        self.device = NotingDevice()
        self.function = VirtioPciFunction(
            "fn", self.device, NoOrdering(), class_code=0x080600, system_reset=self.device.system_reset
        )
        self.driver = PciDriver(self.function)
