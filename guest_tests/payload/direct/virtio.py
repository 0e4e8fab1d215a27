"""The modern virtio-pci transport, driver side: one register access for each thing a driver does.

virtio 1.4, "Virtio Over PCI Bus". Every field is accessed by its own width, 64-bit ones as two halves, as the
specification demands of drivers. Nothing is done on the way that was not asked for: tests break the order on purpose.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from ..bar import Registers
from . import wait
from .errors import FeaturesRefused, NoAnswer, NotNegotiated, QueueRefused
from .function import CAP_VENDOR, Function
from .wire import Feature

VENDOR_VIRTIO = 0x1AF4
DEVICE_ID_BASE = 0x1040
RESET_S = 5.0

# struct virtio_pci_common_cfg: offsets.
DEVICE_FEATURE_SELECT, DEVICE_FEATURE = 0x00, 0x04
DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x08, 0x0C
CONFIG_VECTOR, NUM_QUEUES, DEVICE_STATUS, CONFIG_GENERATION = 0x10, 0x12, 0x14, 0x15
QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30
QUEUE_RESET = 0x3A

COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5
_CFG_TYPE, _CFG_BAR, _CFG_OFFSET, _CFG_LENGTH, _NOTIFY_MULTIPLIER = 3, 4, 8, 12, 16  # in the vendor capability
_GENERATION_TRIES = 100


class DeviceStatus(IntFlag, boundary=enum.KEEP):
    """Device status bits."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


@dataclass(frozen=True, slots=True)
class Structure:
    """Where one structure of the transport is."""

    registers: Registers
    offset: int
    nbytes: int


class VirtioPci:
    """The registers of a virtio function. Made once per function: it finds structures, and does nothing else."""

    def __init__(self, function: Function) -> None:
        """Raises NotNegotiated where a structure is missing."""
        self.function = function
        self.notify_multiplier = 0
        self._notify_at: dict[int, int] = {}
        structures = self._structures()
        for kind, name in ((COMMON_CFG, "common"), (NOTIFY_CFG, "notification"), (DEVICE_CFG, "device")):
            if kind not in structures:
                raise NotNegotiated(f"{function.bdf} has no {name} configuration structure: not a modern virtio device")
        self._common, self._notify = structures[COMMON_CFG], structures[NOTIFY_CFG]
        self._device, self._isr = structures[DEVICE_CFG], structures.get(ISR_CFG)

    def _structures(self) -> dict[int, Structure]:
        """The first capability of each kind counts, the specification says: later ones are less preferred."""
        read, found = self.function.read_config, dict[int, Structure]()
        for capability in self.function.capabilities():
            at = capability.offset
            if capability.id != CAP_VENDOR or capability.is_extended:
                continue
            kind = read(at + _CFG_TYPE, 1)
            if kind in found or kind not in (COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG):
                continue
            registers = self.function.bar(read(at + _CFG_BAR, 1))
            found[kind] = Structure(registers, read(at + _CFG_OFFSET, 4), read(at + _CFG_LENGTH, 4))
            if kind == NOTIFY_CFG:
                self.notify_multiplier = read(at + _NOTIFY_MULTIPLIER, 4)
        return found

    # common configuration

    def read(self, field: int, nbytes: int) -> int:
        """The `nbytes` wide field at `field` of the common configuration: one access, two of 32 bits for 64."""
        return _read(self._common, field, nbytes)

    def write(self, field: int, nbytes: int, value: int) -> None:
        """Set it, likewise."""
        _write(self._common, field, nbytes, value)

    @property
    def status(self) -> DeviceStatus:
        """Device status, read now."""
        return DeviceStatus(self.read(DEVICE_STATUS, 1))

    @status.setter
    def status(self, value: int) -> None:
        self.write(DEVICE_STATUS, 1, int(value))

    def reset(self, timeout_s: float = RESET_S) -> None:
        """Status 0, and wait until it reads 0. Raises NoAnswer."""
        self.status = DeviceStatus(0)
        if not wait.until(lambda: self.status == 0, timeout_s):
            raise NoAnswer(f"{self.function.bdf} does not come out of reset: status {self.status!r}")

    def offered(self, nwords: int = 2) -> Feature:
        """The features the device offers, in the first `nwords` words of 32 bits."""
        features = 0
        for word in range(nwords):
            self.write(DEVICE_FEATURE_SELECT, 4, word)
            features |= self.read(DEVICE_FEATURE, 4) << 32 * word
        return Feature(features)

    def accept(self, features: int, nwords: int = 2) -> None:
        """Write the driver's features."""
        for word in range(nwords):
            self.write(DRIVER_FEATURE_SELECT, 4, word)
            self.write(DRIVER_FEATURE, 4, features >> 32 * word & 0xFFFFFFFF)

    def negotiate(self, features: int) -> None:
        """From reset to FEATURES_OK with exactly `features`. Raises FeaturesRefused when the bit does not stay."""
        self.status = DeviceStatus.ACKNOWLEDGE
        self.status = ready = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
        self.accept(features)
        self.status = ready | DeviceStatus.FEATURES_OK
        if not self.status & DeviceStatus.FEATURES_OK:
            offered = self.offered()
            words = f"FEATURES_OK refused for {Feature(features)!r}, the device offers {offered!r}"
            raise FeaturesRefused(features, offered, words)

    def driver_ok(self) -> None:
        """DRIVER_OK on top of what is set already."""
        self.status = self.status | DeviceStatus.DRIVER_OK

    @property
    def generation(self) -> int:
        """Configuration generation."""
        return self.read(CONFIG_GENERATION, 1)

    @property
    def nqueues(self) -> int:
        """Queues the device has."""
        return self.read(NUM_QUEUES, 2)

    def config_vector(self, vector: int) -> int:
        """Ask for `vector` for configuration changes; what the device granted (NO_VECTOR: none)."""
        self.write(CONFIG_VECTOR, 2, vector)
        return self.read(CONFIG_VECTOR, 2)

    # queues

    def queue_size(self, index: int) -> int:
        """Entries queue `index` has, at most as long as it was not set up; 0 for one that does not exist."""
        self.write(QUEUE_SELECT, 2, index)
        return self.read(QUEUE_SIZE, 2)

    def queue_vector(self, index: int, vector: int) -> int:
        """Ask for `vector` for queue `index`; what the device granted (NO_VECTOR: none)."""
        self.write(QUEUE_SELECT, 2, index)
        self.write(QUEUE_VECTOR, 2, vector)
        return self.read(QUEUE_VECTOR, 2)

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Size and addresses of the three areas (gpa) of queue `index`, whatever they are, and enable it."""
        self.write(QUEUE_SELECT, 2, index)
        self.write(QUEUE_SIZE, 2, size)
        for field, gpa in ((QUEUE_DESC, desc), (QUEUE_DRIVER, driver), (QUEUE_DEVICE, device)):
            self.write(field, 8, gpa)
        self.write(QUEUE_ENABLE, 2, 1)

    def reset_queue(self, index: int, timeout_s: float = RESET_S) -> None:
        """Reset one queue (RING_RESET must be negotiated), and wait until it is done. Raises NoAnswer."""
        self.write(QUEUE_SELECT, 2, index)
        self.write(QUEUE_RESET, 2, 1)
        if not wait.until(lambda: self.read(QUEUE_RESET, 2) == 0 and self.read(QUEUE_ENABLE, 2) == 0, timeout_s):
            raise NoAnswer(f"queue {index} of {self.function.bdf} does not come out of reset")

    def notify(self, index: int) -> None:
        """Ring the doorbell of queue `index`: one 16-bit write of its number. Raises QueueRefused."""
        if index not in self._notify_at:
            if not self.queue_size(index):
                raise QueueRefused(f"{self.function.bdf} has no queue {index}")
            self._notify_at[index] = self.read(QUEUE_NOTIFY_OFF, 2) * self.notify_multiplier
        self._notify.registers.write16(self._notify.offset + self._notify_at[index], index)

    def read_isr(self) -> int:
        """The interrupt status byte; reading clears it. Raises NotNegotiated where there is none."""
        if self._isr is None:
            raise NotNegotiated(f"{self.function.bdf} has no ISR structure")
        return self._isr.registers.read8(self._isr.offset)

    # device configuration

    @property
    def config_nbytes(self) -> int:
        """Length of the device configuration structure."""
        return self._device.nbytes

    def read_config(self, offset: int, nbytes: int) -> int:
        """The field of `nbytes` at `offset` of the device configuration: one access, two of 32 bits for 64."""
        return _read(self._device, offset, nbytes)

    def write_config(self, offset: int, nbytes: int, value: int) -> None:
        """Set it, likewise."""
        _write(self._device, offset, nbytes, value)

    def read_config_bytes(self, widths: tuple[int, ...], offset: int = 0) -> bytes:
        """Consecutive fields of these widths from `offset` on, all of one generation. Raises NoAnswer."""
        for _ in range(_GENERATION_TRIES):
            before = self.generation
            at, parts = offset, list[bytes]()
            for nbytes in widths:
                parts.append(self.read_config(at, nbytes).to_bytes(nbytes, "little"))
                at += nbytes
            if self.generation == before:
                return b"".join(parts)
        raise NoAnswer(f"the configuration of {self.function.bdf} changes all the time: generation {self.generation}")


def _read(structure: Structure, offset: int, nbytes: int) -> int:
    registers, at = structure.registers, structure.offset + offset
    if nbytes == 8:
        return registers.read32(at) | registers.read32(at + 4) << 32
    return _READERS[nbytes](registers, at)


def _write(structure: Structure, offset: int, nbytes: int, value: int) -> None:
    registers, at = structure.registers, structure.offset + offset
    if nbytes == 8:
        registers.write32(at, value & 0xFFFFFFFF)
        registers.write32(at + 4, value >> 32)
    else:
        _WRITERS[nbytes](registers, at, value)


_READERS: dict[int, Callable[[Registers, int], int]] = {
    1: lambda registers, at: registers.read8(at),
    2: lambda registers, at: registers.read16(at),
    4: lambda registers, at: registers.read32(at),
}
_WRITERS: dict[int, Callable[[Registers, int, int], None]] = {
    1: lambda registers, at, value: registers.write8(at, value),
    2: lambda registers, at, value: registers.write16(at, value),
    4: lambda registers, at, value: registers.write32(at, value),
}
