"""The virtio-pci modern transport: puts any `VirtioDevice` behind a PCI function.

BAR 0 (16 KiB): common configuration 0x0000, ISR 0x1000, device configuration 0x2000, notifications 0x3000.
BAR 2 (4 KiB): MSI-X table and PBA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdev.events import FunctionReset, RingsChanged
from vdev.functions.virtio_common import CommonConfig, QueueRegisters
from vdev.functions.virtio_words import common_written, config_written, notified
from vdev.memory import Memory
from vdev.pci import capabilities
from vdev.pci.base import PciFunction
from vdev.pci.config_space import Capability, Identity
from vdev.pci.function import Bar
from vdev.pci.msix import MsixLayout
from vdev.virtio.device import VirtioDevice
from vdev.virtio.ordering import Ordering
from vdev.virtio.queue import DEFAULT_MAX_CHAIN_NBYTES, Queue, RingError
from vdev.wire import virtio_pci as wire
from vdev.wire.virtio_pci import CfgType, Status

STRUCTURES_BAR = 0
STRUCTURES_NBYTES = 0x4000
COMMON_OFFSET, COMMON_NBYTES = 0x0000, wire.CommonCfg.layout.size
ISR_OFFSET, ISR_NBYTES = 0x1000, 1
DEVICE_OFFSET, DEVICE_MAX_NBYTES = 0x2000, 0x1000
NOTIFY_OFFSET, NOTIFY_MAX_NBYTES = 0x3000, 0x1000
NOTIFY_MULTIPLIER = 4
MSIX_BAR = 2
MSIX_NBYTES = 0x1000

CLASS_IOMMU = 0x080600  # PCI Code and ID Assignment: base system peripheral, IOMMU


@dataclass(frozen=True, slots=True)
class RingPlace:
    """The memory the addresses of rings and buffers mean, and the most bytes of one chain."""

    memory: Memory
    max_chain_nbytes: int = DEFAULT_MAX_CHAIN_NBYTES


def _guest_physical(function: PciFunction) -> RingPlace:
    """Right for what no IOMMU stands in front of."""
    return RingPlace(function.memory)


class VirtioPciFunction(PciFunction):
    """One virtio device as a modern PCI function. Implements `VirtioTransport` for it."""

    def __init__(
        self,
        name: str,
        device: VirtioDevice,
        ordering: Ordering,
        *,
        class_code: int,
        system_reset: Callable[[], None] | None = None,
        extended: tuple[Capability, ...] = (),
        required_features: int = 0,
        rings: Callable[[PciFunction], RingPlace] = _guest_physical,
    ) -> None:
        """`system_reset` takes the place of `device.reset` when the whole machine was reset. FEATURES_OK is refused
        without `required_features`. `rings` is called once, at the end."""
        if device.config_nbytes > DEVICE_MAX_NBYTES or len(device.queue_sizes) * NOTIFY_MULTIPLIER > NOTIFY_MAX_NBYTES:
            raise ValueError("device configuration or queues do not fit their regions")
        device_id = wire.DEVICE_ID_BASE + device.device_id
        msix = MsixLayout(len(device.queue_sizes) + 1, MSIX_BAR)
        self._device = device
        self._ordering = ordering
        self._system_reset = system_reset or device.reset
        self._isr = 0
        self._rings: tuple[Queue | None, ...] = ()
        self._common = CommonConfig(
            device, msix.vectors, start=self._start, reset=self._driver_reset, required_features=required_features,
        )  # fmt: skip
        self._common.written = self._common_written
        super().__init__(
            name,
            Identity(wire.VENDOR_VIRTIO, device_id, class_code, wire.REVISION_MODERN, wire.VENDOR_VIRTIO, device_id),
            (Bar(STRUCTURES_BAR, STRUCTURES_NBYTES), Bar(MSIX_BAR, MSIX_NBYTES)),
            msix,
            standard=_structures(device),
            extended=extended,
        )
        self._window = self.standard_offsets[-1]  # the configuration access capability
        self._place = rings(self)

    @property
    def status(self) -> Status:
        """The device status register."""
        return self._common.status

    # VirtioTransport: what the device tells the driver

    def interrupt_queue(self, index: int) -> None:
        """Used buffers in queue `index`."""
        self._isr |= wire.ISR_QUEUE
        self._signal(self._common.queues[index].vector)

    def config_changed(self) -> None:
        """Device configuration changed: a new generation, and an interrupt once the driver is up."""
        self.config_moved()
        common = self._common
        if common.status & Status.DRIVER_OK:
            self._isr |= wire.ISR_CONFIG
            self._signal(common.config_vector)

    def config_moved(self) -> None:
        """A new generation."""
        self._common.generation = (self._common.generation + 1) & 0xFF

    def needs_reset(self, why: str) -> None:
        """The device cannot go on until it is reset."""
        if self._common.status & Status.DEVICE_NEEDS_RESET:
            return
        if self.trace is not None:
            self.trace(RingsChanged(self.name, "broken", why))
        self._common.status |= Status.DEVICE_NEEDS_RESET
        # D63: a configuration change notification follows if DRIVER_OK is set.
        self.config_changed()

    def _signal(self, vector: int) -> None:
        if vector != wire.NO_VECTOR:
            self.signal(vector)

    # PciFunction hooks

    def on_reset(self) -> None:
        """Status 0 or FLR: a device reset."""
        self._virtio_reset(self._device.reset)

    def on_system_reset(self) -> None:
        """The machine starts anew."""
        self._virtio_reset(self._system_reset)

    def on_bus_master(self, enabled: bool) -> None:
        """Kicks that came while the rings were out of reach were not served: look again."""
        if enabled:
            for index, ring in enumerate(self._rings):
                if ring is not None:
                    self._device.queue_notified(index)

    def memory_changed(self) -> None:
        """Rings drop the views they cached, and the device looks at them again."""
        for ring in self._rings:
            if ring is not None:
                ring.memory_changed()
        if self._rings:
            self._device.memory_changed()

    def read_register(self, bar: int, offset: int, nbytes: int) -> bytes:
        """Any width; a read that starts in one structure sees zeros after its end."""
        if bar != STRUCTURES_BAR:
            return bytes(nbytes)
        if offset < COMMON_OFFSET + COMMON_NBYTES:
            return self._common.read(offset, nbytes)
        if offset == ISR_OFFSET:
            isr, self._isr = self._isr, 0
            return bytes([isr])
        if DEVICE_OFFSET <= offset < DEVICE_OFFSET + self._device.config_nbytes:
            return self._device.config_read(offset - DEVICE_OFFSET, nbytes)
        return bytes(nbytes)

    def write_register(self, bar: int, offset: int, data: bytes) -> None:
        """Any width; a write belongs to the structure it starts in."""
        if bar != STRUCTURES_BAR:
            return
        if offset < COMMON_OFFSET + COMMON_NBYTES:
            self._common.write(offset, data)
        elif DEVICE_OFFSET <= offset < DEVICE_OFFSET + self._device.config_nbytes:
            self._device.config_write(offset - DEVICE_OFFSET, data, self._common.accepted_features)
            if self.trace is not None:
                at = offset - DEVICE_OFFSET
                now = self._device.config_read(at, len(data))
                self.trace(config_written(self.name, self._device.device_id, at, data, now))
        elif NOTIFY_OFFSET <= offset < NOTIFY_OFFSET + NOTIFY_MULTIPLIER * len(self._device.queue_sizes):
            self._notify((offset - NOTIFY_OFFSET) // NOTIFY_MULTIPLIER)

    def config_read(self, offset: int, nbytes: int) -> bytes:
        """A read of the access window reads the BAR behind it; QEMU's snapshot of everything does not."""
        if nbytes <= 8 and self._touches_window(offset, nbytes) and not self.removed:
            target = self._window_target()
            if target is not None:
                value = self.bar_read(STRUCTURES_BAR, *target)
                self.config.set(self._window + wire.CAP_PCI_CFG_DATA, 4, int.from_bytes(value, "little"))
        return super().config_read(offset, nbytes)

    def config_write(self, offset: int, data: bytes) -> None:
        """A write of the access window writes the BAR behind it."""
        super().config_write(offset, data)
        if self._touches_window(offset, len(data)) and not self.removed:
            target = self._window_target()
            if target is not None:
                at, nbytes = target
                window = self.config.read(self._window + wire.CAP_PCI_CFG_DATA, 4)
                self.bar_write(STRUCTURES_BAR, at, window[:nbytes])

    def _touches_window(self, offset: int, nbytes: int) -> bool:
        start = self._window + wire.CAP_PCI_CFG_DATA
        return offset < start + 4 and start < offset + nbytes

    def _window_target(self) -> tuple[int, int] | None:
        """(offset, nbytes) the window points at; None unless it is one naturally sized access to the structures."""
        bar = self.config.get(self._window + wire.CAP_BAR, 1)
        nbytes = self.config.get(self._window + wire.CAP_LENGTH, 4)
        if bar != STRUCTURES_BAR or nbytes not in (1, 2, 4):
            return None
        return self.config.get(self._window + wire.CAP_OFFSET, 4), nbytes

    # rings

    def _start(self) -> None:
        try:
            self._rings = tuple(self._ring(queue) for queue in self._common.queues)
        except RingError as error:
            self.needs_reset(str(error))
            return
        self._device.driver_ok(self._common.accepted_features, self._rings)

    def _ring(self, queue: QueueRegisters) -> Queue | None:
        if not queue.enabled:
            return None
        features = self._common.accepted_features
        return Queue(
            self._place.memory,
            queue.size,
            queue.desc,
            queue.driver,
            queue.device,
            event_idx=bool(features & wire.F_EVENT_IDX),
            indirect=bool(features & wire.F_INDIRECT_DESC),
            ordering=self._ordering,
            max_chain_nbytes=self._place.max_chain_nbytes,
        )

    def _common_written(self, register: str, value: int) -> None:
        if self.trace is not None:
            for event in common_written(self.name, self._device.device_id, self._common, register, value):
                self.trace(event)

    def _driver_reset(self) -> None:
        """Status 0 was written."""
        if self.trace is not None:
            self.trace(FunctionReset(self.name, "virtio"))
        if self.interrupts is not None:
            self.interrupts.forget()
        self.on_reset()
        self.was_reset()

    def _virtio_reset(self, reset_device: Callable[[], None]) -> None:
        """The device stops using its rings before the driver can read status 0."""
        reset_device()
        self._rings = ()
        self._isr = 0
        self._common.clear()

    def _notify(self, index: int) -> None:
        if self.trace is not None:
            self.trace(notified(self.name, self._device.device_id, index))
        if index < len(self._rings) and self._rings[index] is not None:
            self._device.queue_notified(index)


def _structures(device: VirtioDevice) -> tuple[Capability, ...]:
    """The vendor capabilities that tell where the structures are; the configuration access window is the last."""
    notify = NOTIFY_MULTIPLIER.to_bytes(4, "little")
    address_mask = bytes([0, 0, 0xFF, 0, 0, 0]) + b"\xff" * 12  # from cap_len on: bar, offset, length and the data
    # Only devices with a configuration have that structure; Linux refuses one of no length.
    config = [_structure(CfgType.DEVICE, DEVICE_OFFSET, device.config_nbytes)] if device.config_nbytes else []
    return (
        _structure(CfgType.COMMON, COMMON_OFFSET, COMMON_NBYTES),
        _structure(CfgType.NOTIFY, NOTIFY_OFFSET, NOTIFY_MULTIPLIER * len(device.queue_sizes), notify),
        _structure(CfgType.ISR, ISR_OFFSET, ISR_NBYTES),
        *config,
        _structure(CfgType.PCI, 0, 0, bytes(4), address_mask),
    )


def _structure(kind: CfgType, offset: int, nbytes: int, more: bytes = b"", writable: bytes = b"") -> Capability:
    cap_nbytes = wire.PCI_CAP_NBYTES + len(more)
    head = wire.PciCap(0, 0, cap_nbytes, kind, STRUCTURES_BAR, 0, bytes(2), offset, nbytes).pack()
    return capabilities.vendor(head[2:] + more, writable)
