"""MSI-X as the server sees it: where table and pending bits lie, and the pending bits a guest may read.

For most functions QEMU overlays the vector table and remembers masked vectors itself. A function that can be unplugged
has its table here (`MsixTable`), and QEMU is not told that it has MSI-X: it dies of unplugging one that has
(docs/hot-plug.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from vdev.wire import pci

_ENTRY = Struct("<QII")  # address, data, vector control
MAX_VECTORS = 128  # a table of them fills the 2 KiB below the default PBA


@dataclass(frozen=True, slots=True)
class MsixLayout:
    """Where table and pending-bit array lie; raises ValueError when they overlap."""

    vectors: int
    bar: int
    table_offset: int = 0
    pba_offset: int = 0x800

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= MAX_VECTORS:
            raise ValueError(f"{self.vectors} MSI-X vectors is not within 1..{MAX_VECTORS}")
        if self.table_offset < self.pba_stop and self.pba_offset < self.table_stop:
            raise ValueError("MSI-X table and PBA overlap")

    @property
    def table_stop(self) -> int:
        """First byte after the table."""
        return self.table_offset + pci.MSIX_TABLE_ENTRY_NBYTES * self.vectors

    @property
    def pba_stop(self) -> int:
        """First byte after the pending bits, which come in 64-bit words."""
        return self.pba_offset + 8 * -(-self.vectors // 64)


class PendingBits:
    """The pending-bit array."""

    def __init__(self, vectors: int) -> None:
        self._vectors = vectors
        self._bits = 0

    def set(self, vector: int) -> None:
        """Mark `vector` pending."""
        self._bits |= 1 << vector

    def take(self, vector: int) -> bool:
        """Whether `vector` was pending, which it is no longer."""
        was = bool(self._bits >> vector & 1)
        self._bits &= ~(1 << vector)
        return was

    def clear(self) -> None:
        """Nothing is pending any more: unmasked or reset."""
        self._bits = 0

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` of the array from `offset`, zeros beyond it."""
        image = self._bits.to_bytes(8 * -(-self._vectors // 64), "little")
        return image[offset : offset + nbytes].ljust(nbytes, b"\0")


class MsixTable:
    """The vector table of a function that keeps it itself: for each vector a message, and whether it is masked."""

    def __init__(self, vectors: int) -> None:
        self._vectors = vectors
        self._data = bytearray()
        self.reset()

    def reset(self) -> None:
        """No messages, everything masked."""
        entry = bytes(pci.MSIX_VECTOR_CONTROL) + pci.MSIX_VECTOR_MASKED.to_bytes(4, "little")
        self._data[:] = entry * self._vectors

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` of the table from `offset`, zeros beyond it."""
        return bytes(self._data[offset : offset + nbytes]).ljust(nbytes, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """A driver's write, cut at the table's end."""
        stop = min(offset + len(data), len(self._data))
        self._data[offset:stop] = data[: stop - offset]

    def message(self, vector: int) -> tuple[int, int] | None:
        """Address and data of a vector; None while it is masked."""
        at = vector * pci.MSIX_TABLE_ENTRY_NBYTES
        address, data, control = _ENTRY.unpack_from(self._data, at)
        return None if control & pci.MSIX_VECTOR_MASKED else (address, data)
