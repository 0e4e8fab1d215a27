"""A virtio device as an endpoint: its rings and buffers are IOVAs, and every access of them goes through its door.

ACCESS_PLATFORM is offered and required: without it a driver hands out physical addresses, past the IOMMU. The
specification leaves that to us: "A device MAY fail to operate further if VIRTIO_F_ACCESS_PLATFORM is not accepted"
(virtio 1.x, "Device Requirements: Reserved Feature Bits"). FEATURES_OK is not taken then.

What becomes of a refused access to a ring or a buffer:

    refused by the IOMMU, or not RAM    the guest gets the fault record as from any endpoint, and DEVICE_NEEDS_RESET
    bus master off                      nothing is touched; goes on when it is on again
    frozen (QMP `stop`)                 the same, when thawed
    RAM that QEMU is re-arranging       the same, when memory has changed
    delayed by an injected fault        the same, when its time has come
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vdev.endpoints.base import Bay
from vdev.functions.base import Progress, Worker
from vdev.functions.dma import MAX_PIECES
from vdev.functions.door_memory import MAX_CHAIN_PIECES, MIN_CHAIN_NBYTES, DoorMemory
from vdev.functions.virtio_device import RING_FEATURES, QueueDevice
from vdev.functions.virtio_pci import RingPlace, VirtioPciFunction
from vdev.pci import capabilities
from vdev.pci.base import PciFunction
from vdev.pci.config_space import Capability
from vdev.wire.virtio_pci import F_ACCESS_PLATFORM, Status

ENDPOINT_FEATURES = RING_FEATURES | F_ACCESS_PLATFORM
# Each area of a ring of this size fits a page: Linux may put the pages of a longer one anywhere in memory, and an area
# must be in one piece (virtio/queue.py).
MAX_QUEUE_SIZE = 256


class VirtioEndpoint(VirtioPciFunction):
    """A `QueueDevice` behind the IOMMU; implements `endpoints.base.Endpoint`.

    The worker is this function, not its device: give the device `wake_device` and `wake_device_at`.
    """

    def __init__(
        self, device: QueueDevice, bay: Bay, *, class_code: int, extended: tuple[Capability, ...] = ()
    ) -> None:
        """`device` offers ENDPOINT_FEATURES among its own; ValueError for features or queues that do not fit here."""
        if not device.offered_features & F_ACCESS_PLATFORM or max(device.queue_sizes) > MAX_QUEUE_SIZE:
            raise ValueError(f"{device.name}: ACCESS_PLATFORM is not offered, or a queue is over {MAX_QUEUE_SIZE}")
        self._bay = bay
        self._queue_device = device
        super().__init__(
            device.name,
            device,
            bay.ordering,
            class_code=class_code,
            extended=(capabilities.aer(), *extended),
            required_features=F_ACCESS_PLATFORM,
            rings=self._open,
        )
        device.connect(self)

    def _open(self, function: PciFunction) -> RingPlace:
        self._door = self._bay.open_door(function)
        self._reach = DoorMemory(self._door)
        self._door.resumed = partial(self._bay.wake, self)
        nbytes = max(MAX_CHAIN_PIECES // MAX_PIECES * self._door.slice_nbytes, MIN_CHAIN_NBYTES)
        self._queue_device.batch_nbytes = min(self._queue_device.batch_nbytes, nbytes)
        return RingPlace(self._reach, nbytes)

    def wake_device(self, worker: Worker) -> None:
        """The device has something to do."""
        self._bay.wake(self)

    def wake_device_at(self, when_ns: int) -> None:
        """The device has something to do at `when_ns`; one time is kept, and a reset forgets it."""
        self._bay.wake_at(self, when_ns)

    def _virtio_reset(self, reset_device: Callable[[], None]) -> None:
        """No access of before comes again."""
        super()._virtio_reset(reset_device)
        self._door.forget()

    # Endpoint

    def run_slice(self, now_ns: int) -> Progress:
        """A slice of the device, with mappings as they are now."""
        if self._door.frozen:
            return Progress.IDLE
        self._reach.renew()
        return self._queue_device.run_slice(now_ns)

    def freeze(self, frozen: bool) -> None:
        """Hold all DMA where it is (QMP `stop`), or let it go on; the guest notices nothing."""
        self._door.frozen = frozen
        if not frozen:
            self._bay.wake(self)

    def on_quiesce(self) -> None:
        """The IOMMU is about to be reset and old IOVAs mean nothing any more: the driver must set up its rings anew."""
        self._queue_device.suspend()
        if self.status & Status.DRIVER_OK:
            self.needs_reset("the IOMMU was reset, and old IOVAs mean nothing any more")

    def describe(self) -> dict[str, int | bool]:
        """State for queries: plain data."""
        return {
            "driver-ok": bool(self.status & Status.DRIVER_OK),
            "needs-reset": bool(self.status & Status.DEVICE_NEEDS_RESET),
            **self._queue_device.describe(),
        }
