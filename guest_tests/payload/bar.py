"""A mapped BAR, and what drivers need of one: exactly one access of the named width per call.

Shared by both ways to reach a function from user space: the kernel's VFIO (`vfio.py`) and sysfs (`direct/`).
"""

from __future__ import annotations

import mmap
from typing import Protocol


class Registers(Protocol):
    """Registers of a device. Offsets are bytes; each call is one access of its width."""

    def read8(self, offset: int) -> int: ...
    def read16(self, offset: int) -> int: ...
    def read32(self, offset: int) -> int: ...
    def read64(self, offset: int) -> int: ...
    def write8(self, offset: int, value: int) -> None: ...
    def write16(self, offset: int, value: int) -> None: ...
    def write32(self, offset: int, value: int) -> None: ...
    def write64(self, offset: int, value: int) -> None: ...


class Bar:
    """A mapped BAR. Every method is exactly one access of its width, naturally aligned (ValueError otherwise).

    Item access of a cast memoryview does that. struct.pack_into and slices must never touch device registers: they
    write twice or in pieces.
    """

    def __init__(self, region: mmap.mmap) -> None:
        self.nbytes = len(region)
        self._region = region
        self._u8 = memoryview(region)
        self._u16 = self._u8.cast("H")
        self._u32 = self._u8.cast("I")
        self._u64 = self._u8.cast("Q")

    def read8(self, offset: int) -> int:
        """The 8-bit register at byte `offset`."""
        return self._u8[offset]

    def write8(self, offset: int, value: int) -> None:
        """Set the 8-bit register at byte `offset`."""
        self._u8[offset] = value

    def read16(self, offset: int) -> int:
        """The 16-bit register at byte `offset`."""
        return self._u16[_index(offset, 2)]

    def write16(self, offset: int, value: int) -> None:
        """Set the 16-bit register at byte `offset`."""
        self._u16[_index(offset, 2)] = value

    def read32(self, offset: int) -> int:
        """The 32-bit register at byte `offset`."""
        return self._u32[_index(offset, 4)]

    def write32(self, offset: int, value: int) -> None:
        """Set the 32-bit register at byte `offset`."""
        self._u32[_index(offset, 4)] = value

    def read64(self, offset: int) -> int:
        """The 64-bit register at byte `offset`."""
        return self._u64[_index(offset, 8)]

    def write64(self, offset: int, value: int) -> None:
        """Set the 64-bit register at byte `offset`."""
        self._u64[_index(offset, 8)] = value

    def close(self) -> None:
        """Unmap the BAR. A mapping keeps the device open: its driver could not let go of it."""
        for view in (self._u64, self._u32, self._u16, self._u8):
            view.release()
        self._region.close()


def _index(offset: int, nbytes: int) -> int:
    """Item number of byte `offset` among items of `nbytes`; a negative one would count from the end."""
    if offset < 0 or offset % nbytes:
        raise ValueError(f"a {8 * nbytes}-bit access at offset {offset:#x} is not naturally aligned")
    return offset // nbytes
