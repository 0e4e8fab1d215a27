"""The vhost-user carrier: puts a `VirtioDevice` behind rings that a front end (QEMU) hands over one message at a time.

QEMU shows a back end neither the device status nor a reset: QMP `stop` and a virtio reset are both "disable the rings,
ask where they are", and `cont` and a new driver both "here are the rings, enable them". So a stop decides nothing. The
rings are suspended, all state is kept, and the endpoints' DMA is frozen, until one of these proves what it was:

    restart with the features, sizes and addresses of     the same driver goes on (`cont`): the rings continue where
      before, each ring at the index it stopped at, and      they stopped, held requests included
      the used rings byte for byte as we left them
    any other restart                                     a new driver: endpoints quiesced, device reset, fresh rings
    RESET_DEVICE (QEMU does not send it yet)              a virtio reset: the same, now
    DEVICE_RESET of a PCI function of the VM that comes   a machine reset: as on power-up
      by vfio-user, while the rings are suspended
    the connection's end                                  the machine is gone: as on power-up

Only we write the used rings, and a stopped VM's memory stands still; a new driver zeroes its rings. That tells apart
what indexes cannot: a ring that stopped at 0 because it wrapped, and one at the same address that starts at 0. Where
the used rings were still untouched, old and new look the same and are: no request was ever taken from them.

A unit that was never started holds nothing and freezes nothing: at boot, bypass is as configured.

The stop must come before the machine reset's DEVICE_RESETs. QEMU resets the children of a bus last added first, so the
unit's device comes after the endpoints on the command line (`machine.qemu_arguments` sees to it).

What the attachment cannot express: DEVICE_NEEDS_RESET (a broken ring is signalled on the error eventfds, which QEMU
only notes, and stays unserved until a new driver comes), the feature negotiation and status before DRIVER_OK, per-queue
MSI-X vectors.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from vdev.errors import MessageError
from vdev.events import FunctionReset, InterruptRaised, RingsChanged, Trace
from vdev.functions.vhost_rings import RingKey, RingSettings, State, SuspendedRings, build_queue, negotiated, used_bytes
from vdev.functions.virtio_words import config_rewritten, notified, queue_name
from vdev.memory import RegionTable
from vdev.pci.function import Interrupts
from vdev.virtio.device import VirtioDevice
from vdev.virtio.ordering import Ordering
from vdev.virtio.queue import Queue, RingError
from vdev.wire.vhost_user import F_PROTOCOL_FEATURES

F_ACCESS_PLATFORM = 1 << 33  # never offered: the rings of an IOMMU are not behind an IOMMU


def _nobody(*_: Any) -> None:
    """The transport is not connected."""


class VhostCarrier:
    """One virtio device over vhost-user; implements `VirtioTransport` for it. Methods refuse with MessageError.

    `memory` is filled by the transport, which also sets `raise_call` and `raise_error` (a ring's eventfds),
    `push_config` (the back-end channel) and `told` (one line for the log).
    """

    def __init__(
        self,
        name: str,
        device: VirtioDevice,
        ordering: Ordering,
        *,
        system_reset: Callable[[], None],
        freeze: Callable[[bool], None],
    ) -> None:
        """`system_reset` is the device's for a machine that starts anew; `freeze` holds its endpoints' DMA, or not."""
        self.name = name
        self.memory = RegionTable()
        self.detach()
        self.was_reset: Callable[[], None] = _nobody
        self.trace: Trace | None = None
        self.interrupts: Interrupts | None = None  # injected faults, in front of calls
        self.state = State.IDLE
        self.broken = False
        self.resumes = 0
        self.new_drivers = 0
        self.machine_resets = 0
        self._device = device
        self._ordering = ordering
        self._system_reset = system_reset
        self._freeze = freeze
        self._features = 0  # as the front end sent them last
        self._config_waits = False  # a change that could not be told yet
        self._config_held = False
        self._queues: tuple[Queue | None, ...] = ()
        self._suspended: SuspendedRings | None = None
        self.rings: list[RingSettings] = []
        self._forget_rings()

    def detach(self) -> None:
        """Nobody is connected."""
        self.raise_call: Callable[[int], None] = _nobody
        self.raise_error: Callable[[int], None] = _nobody
        self.push_config: Callable[[], None] = _nobody
        self.told: Callable[[str], None] = _nobody

    @property
    def offered_features(self) -> int:
        """The device's, and the bit that opens the protocol features."""
        return (self._device.offered_features & ~F_ACCESS_PLATFORM) | F_PROTOCOL_FEATURES

    @property
    def config_nbytes(self) -> int:
        """Size of the device configuration."""
        return self._device.config_nbytes

    # VirtioTransport

    @property
    def dma_enabled(self) -> bool:
        """Whether the rings may be touched: bus mastering is QEMU's business here."""
        return self.state is State.RUNNING and not self.broken

    def interrupt_queue(self, index: int) -> None:
        """Used buffers in queue `index`."""
        if self.interrupts is None or not self.interrupts.take(index):
            self.deliver(index)

    def deliver(self, index: int) -> None:
        """As `interrupt_queue`, past whatever faults are injected there."""
        self.raise_call(index)
        if self.trace is not None:
            self.trace(InterruptRaised(self.name, None, queue_name(self._device.device_id, index)))

    def config_changed(self) -> None:
        """QEMU dies of a configuration change while its device is not started, so that one waits for the resume."""
        if self.state is State.RUNNING and not self._config_held:
            self.push_config()
        else:
            self._config_waits = self.state is not State.IDLE

    def config_moved(self) -> None:
        """The generation is QEMU's."""

    def hold_config(self, held: bool) -> None:
        """The VM is stopped, or about to be, or runs again: QEMU is told of no change in between."""
        self._config_held = held
        self._push_waiting()

    def _push_waiting(self) -> None:
        if self._config_waits and self.state is State.RUNNING and not self._config_held:
            self._config_waits = False
            self.push_config()

    def needs_reset(self, why: str) -> None:
        """Nothing is served until a new driver comes; the front end is told as far as it listens."""
        if self.broken:
            return
        self.broken = True
        self._rings_changed("broken", f"{why}; nothing is served until a new driver starts")
        for index in range(len(self.rings)):
            self.raise_error(index)

    # What the front end says about rings

    def set_features(self, features: int) -> None:
        """SET_FEATURES; refused: what was not offered, and a change while the rings run."""
        unknown = features & ~self.offered_features
        if unknown:
            raise MessageError(errno.EINVAL, f"features {unknown:#x} were not offered")
        if self.state is State.RUNNING and features != self._features:
            raise MessageError(errno.EBUSY, "features change while the rings run")
        self._features = features

    def set_size(self, index: int, size: int) -> None:
        """SET_VRING_NUM. A size that is refused leaves none: few front ends ask whether it was, and the last driver's
        would be used for a ring of another shape."""
        ring, limit = self._stopped_ring(index), self._device.queue_sizes[index]
        ring.size = 0
        if not 0 < size <= limit or size & (size - 1):
            raise MessageError(errno.EINVAL, f"ring {index} of {size} entries is not a power of two up to {limit}")
        ring.size = size

    def set_base(self, index: int, base: int) -> None:
        """SET_VRING_BASE."""
        if not 0 <= base <= 0xFFFF:
            raise MessageError(errno.EINVAL, f"ring {index} cannot start at {base}")
        self._stopped_ring(index).base = base

    def set_addresses(self, index: int, desc_gpa: int, avail_gpa: int, used_gpa: int) -> None:
        """SET_VRING_ADDR, translated. The same again is no change, whatever the ring is doing."""
        gpas = (desc_gpa, avail_gpa, used_gpa)
        if self._ring(index).gpas != gpas:
            self._stopped_ring(index).gpas = gpas

    def forget_addresses(self, index: int) -> None:
        """SET_VRING_ADDR was refused: a ring that is to start cannot, least of all where the last driver had it."""
        ring = self._ring(index)
        if self.state is not State.RUNNING:
            ring.gpas = None

    def set_kick(self, index: int) -> None:
        """SET_VRING_KICK: the ring has its doorbell, or a new one. Without the protocol bit it is enabled by that."""
        self._ring(index).has_kick = True
        if not self._features & F_PROTOCOL_FEATURES:
            self.enable(index, True)

    def enable(self, index: int, enabled: bool) -> None:
        """SET_VRING_ENABLE. The device starts when all its rings are enabled, and stops with the first that is not."""
        self._ring(index).enabled = enabled
        if not enabled:
            self._suspend()
        elif self.state is not State.RUNNING and all(ring.enabled for ring in self.rings):
            self._start()

    def stop(self, index: int) -> int:
        """GET_VRING_BASE: the next entry to take. Nothing is taken or written from before this returns."""
        ring = self._ring(index)
        self._suspend()
        ring.has_kick = ring.enabled = False
        return ring.base

    def kicked(self, index: int) -> None:
        """The doorbell of ring `index`; without meaning while the rings do not run."""
        if self.trace is not None:
            self.trace(notified(self.name, self._device.device_id, index))
        if self.dma_enabled and self._queues[index] is not None:
            self._device.queue_notified(index)

    # The rest of the device

    def config_read(self, offset: int, nbytes: int) -> bytes:
        """The device configuration, zeros beyond."""
        return self._device.config_read(offset, nbytes)

    def config_write(self, offset: int, data: bytes) -> None:
        """QEMU sends all of the configuration for each byte a driver writes. Features that were accepted show only at
        DRIVER_OK; until then a driver that writes is taken to have accepted what allows it."""
        accepted = self._features if self.state is State.RUNNING else self.offered_features
        before = self._device.config_read(offset, len(data))
        self._device.config_write(offset, data, accepted)
        if self.trace is not None:
            now = self._device.config_read(offset, len(data))
            for event in config_rewritten(self.name, self._device.device_id, offset, data, before, now):
                self.trace(event)

    def memory_changed(self) -> None:
        """Rings drop the views they cached, the suspended ones too."""
        kept = self._suspended.queues if self._suspended is not None else self._queues
        for queue in kept:
            if queue is not None:
                queue.memory_changed()
        if self.state is State.RUNNING:
            self._device.memory_changed()

    # Resets, where there is proof of one

    def reset(self) -> None:
        """RESET_DEVICE: a virtio reset. Rings that were enabled one by one and never started are disabled as well."""
        if self.state is State.IDLE:
            self._forget_rings()
            return
        self._suspend()
        self._to_idle("virtio", self._device.reset)
        self.told("the driver reset the device")

    def function_was_reset(self) -> None:
        """DEVICE_RESET came for another function of this VM: with our rings suspended that is a machine reset."""
        if self.state is State.SUSPENDED:
            self.machine_resets += 1
            self._to_idle("system", self._system_reset)
            self.told("the machine was reset")

    def disconnected(self) -> None:
        """The connection is gone; what comes back, if anything does, is a machine that starts anew."""
        self._suspend()
        self._to_idle("system", self._system_reset)
        self._features = 0

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "rings": self.state.value,
            "broken": self.broken,
            "resumes": self.resumes,
            "new_drivers": self.new_drivers,
            "machine_resets": self.machine_resets,
        }

    # Start and stop

    def _ring(self, index: int) -> RingSettings:
        if not 0 <= index < len(self.rings):
            raise MessageError(errno.EINVAL, f"there is no ring {index}")
        return self.rings[index]

    def _stopped_ring(self, index: int) -> RingSettings:
        ring = self._ring(index)
        if self.state is State.RUNNING:
            raise MessageError(errno.EBUSY, f"ring {index} runs")
        return ring

    def _forget_rings(self) -> None:
        self.rings = [RingSettings(size) for size in self._device.queue_sizes]

    def _keys(self) -> tuple[RingKey | None, ...]:
        return tuple((ring.size, ring.gpas) if ring.has_kick else None for ring in self.rings)

    def _suspend(self) -> None:
        if self.state is not State.RUNNING:
            return
        self._device.suspend()
        self.state = State.SUSPENDED
        used = tuple(used_bytes(self.memory, self._features, key) for key in self._keys())
        self._suspended = SuspendedRings(self._features, self._keys(), self._queues, used)
        for ring, queue in zip(self.rings, self._queues, strict=True):
            if queue is not None:
                ring.base = queue.next_avail
        self._queues = ()
        # Whether old IOVAs still mean anything is not known until a restart.
        self._freeze(True)
        self._rings_changed("suspended", "the VM was stopped, or the device reset: the next start tells")

    def _start(self) -> None:
        suspended, self._suspended = self._suspended, None
        if suspended is not None and self._goes_on(suspended):
            self.resumes += 1
            self._queues = suspended.queues
            self._rings_changed("resumed", "the same driver goes on where they stopped")
        else:
            if suspended is not None:
                self.new_drivers += 1
                self._reset_device("new-driver", self._device.reset)
            self._tell_negotiation()
            self._rings_changed("started", "a driver begins")
            self._queues = self._build()
        self.state = State.RUNNING
        if not self.broken:
            self._device.driver_ok(self._features & ~F_PROTOCOL_FEATURES, self._queues)
        self._freeze(False)
        self._push_waiting()

    def _goes_on(self, suspended: SuspendedRings) -> bool:
        """Whether the driver that starts now is the one whose rings were suspended.

        Rings that broke before anything was taken from them are looked at anew: they may be a new driver's, and if
        they are the old one's they break again.
        """
        if self.broken and not any(queue.next_avail for queue in suspended.queues if queue is not None):
            return False
        keys = self._keys()
        if self._features != suspended.features or keys != suspended.keys:
            return False
        for ring, key, queue, used in zip(self.rings, keys, suspended.queues, suspended.used, strict=True):
            if (key is None) != (queue is None):
                return False  # a ring that was refused
            if queue is not None and (
                ring.base != queue.next_avail or used is None or used != used_bytes(self.memory, self._features, key)
            ):
                return False
        return True

    def _build(self) -> tuple[Queue | None, ...]:
        """A queue for every ring that has its doorbell; none at all, and a broken device, when one cannot be."""
        try:
            return tuple(
                build_queue(self.memory, self._features, ring, self._ordering) if ring.has_kick else None
                for ring in self.rings
            )
        except RingError as error:
            self.needs_reset(f"it cannot be used: {error}")
            return (None,) * len(self.rings)

    def _reset_device(self, kind: str, reset: Callable[[], None]) -> None:
        """`kind` as in `FunctionReset`."""
        if self.trace is not None:
            self.trace(FunctionReset(self.name, kind))
        self.broken = False
        self._config_waits = False
        if self.interrupts is not None:
            self.interrupts.forget()
        reset()
        self.was_reset()

    def _to_idle(self, kind: str, reset: Callable[[], None]) -> None:
        """As `reset` leaves the device, with the endpoints free to go on afterwards."""
        self.state = State.IDLE
        self._suspended = None
        self._queues = ()
        self._forget_rings()
        self._reset_device(kind, reset)
        self._freeze(False)

    def _rings_changed(self, state: str, why: str) -> None:
        self.told(f"rings {state}: {why}")
        if self.trace is not None:
            self.trace(RingsChanged(self.name, state, why))

    def _tell_negotiation(self) -> None:
        if self.trace is not None:
            features = self._features & ~F_PROTOCOL_FEATURES
            for event in negotiated(self.name, self._device.device_id, features, self.rings):
                self.trace(event)
