"""The accelerator's register file: values and access rules. What a write sets off is the engine's business."""

from __future__ import annotations

from vdev.wire.accelerator import (
    CAPS_VALUE,
    COMPLETION_NBYTES,
    DESCRIPTOR_NBYTES,
    ID_VALUE,
    MAX_RING_ENTRIES,
    MIN_RING_ENTRIES,
    PASID_STOP,
    VERSION_VALUE,
    Control,
    ErrorCode,
    Register,
    Status,
)

WORD = 0xFFFF_FFFF
IOVA_SPACE = 1 << 64


class Registers:
    """BAR0's state as plain numbers; RESETTING never shows, since a reset is complete when the write returns."""

    __slots__ = (
        "completed",
        "completion_base",
        "devmem_nbytes",
        "error",
        "error_iova",
        "faulted",
        "halted",
        "irq_enable",
        "kernel_pasid",
        "ring_base",
        "ring_head",
        "ring_pasid",
        "ring_size",
        "ring_tail",
        "running",
    )

    def __init__(self, devmem_nbytes: int) -> None:
        self.devmem_nbytes = devmem_nbytes
        self.kernel_pasid = 0  # the host's: no reset changes it
        self.reset()

    def reset(self) -> None:
        """Power-on values."""
        self.running = self.halted = self.irq_enable = False
        self.ring_base = self.ring_size = self.ring_head = self.ring_tail = 0
        self.completion_base = self.ring_pasid = 0
        self.error, self.error_iova = int(ErrorCode.NONE), 0
        self.completed = self.faulted = 0

    def read(self, offset: int, nbytes: int) -> bytes:
        """An aligned access of 4 or 8 bytes; any other, and undefined registers, read as zero."""
        if nbytes not in (4, 8) or offset % nbytes:
            return bytes(nbytes)
        return b"".join(self._word(at).to_bytes(4, "little") for at in range(offset, offset + nbytes, 4))

    def _word(self, offset: int) -> int:
        values: dict[int, int] = {
            Register.ID: ID_VALUE,
            Register.VERSION: VERSION_VALUE,
            Register.CAPS: CAPS_VALUE,
            Register.STATUS: Status.RUNNING * self.running | Status.HALTED * self.halted,
            Register.CONTROL: Control.ENABLE * self.running | Control.IRQ_ENABLE * self.irq_enable,
            Register.RING_BASE: self.ring_base & WORD,
            Register.RING_BASE + 4: self.ring_base >> 32,
            Register.RING_SIZE: self.ring_size,
            Register.RING_HEAD: self.ring_head,
            Register.RING_TAIL: self.ring_tail,
            Register.COMPLETION_BASE: self.completion_base & WORD,
            Register.COMPLETION_BASE + 4: self.completion_base >> 32,
            Register.ERROR: self.error,
            Register.ERROR_IOVA: self.error_iova & WORD,
            Register.ERROR_IOVA + 4: self.error_iova >> 32,
            Register.DEVMEM_NBYTES: self.devmem_nbytes & WORD,
            Register.DEVMEM_NBYTES + 4: self.devmem_nbytes >> 32,
            Register.COMPLETED: self.completed & WORD,
            Register.FAULTED: self.faulted & WORD,
            Register.RING_PASID: self.ring_pasid,
            Register.KERNEL_PASID: self.kernel_pasid,
        }
        return values.get(offset, 0)

    def write_word(self, offset: int, value: int) -> None:
        """Store into a plain register; read-only and undefined ones, and the ring's while running, drop it."""
        if offset == Register.ERROR:
            # Only the code the driver has seen is cleared, so that a newer one is not lost.
            if value == self.error:
                self.error, self.error_iova = int(ErrorCode.NONE), 0
            return
        if self.running:
            return
        if offset == Register.RING_SIZE:
            self.ring_size = value
        elif offset == Register.RING_PASID:
            self.ring_pasid = value
        elif offset in (Register.RING_BASE, Register.RING_BASE + 4):
            self.ring_base = _with_half(self.ring_base, offset - Register.RING_BASE, value)
        elif offset in (Register.COMPLETION_BASE, Register.COMPLETION_BASE + 4):
            self.completion_base = _with_half(self.completion_base, offset - Register.COMPLETION_BASE, value)

    def config_is_valid(self) -> bool:
        """Whether the ring may be enabled: size a power of two in range, bases aligned and not wrapping."""
        size = self.ring_size
        return (
            MIN_RING_ENTRIES <= size <= MAX_RING_ENTRIES
            and size & (size - 1) == 0
            and self.ring_pasid < PASID_STOP
            and self.ring_base % DESCRIPTOR_NBYTES == 0
            and self.ring_base + size * DESCRIPTOR_NBYTES <= IOVA_SPACE
            and self.completion_base % COMPLETION_NBYTES == 0
            and self.completion_base + size * COMPLETION_NBYTES <= IOVA_SPACE
        )


def words(offset: int, data: bytes) -> list[tuple[int, int]]:
    """A register write as (offset, value) of 32-bit words, low first; empty for an access that is to be dropped."""
    nbytes = len(data)
    if nbytes not in (4, 8) or offset % nbytes:
        return []
    return [(offset + at, int.from_bytes(data[at : at + 4], "little")) for at in range(0, nbytes, 4)]


def _with_half(old: int, shift_nbytes: int, value: int) -> int:
    """`old` with one 32-bit half replaced: the low one for 0, the high one for 4."""
    shift = shift_nbytes * 8
    return old & ~(WORD << shift) | value << shift
