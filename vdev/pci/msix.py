"""MSI-X as the server sees it. QEMU overlays the vector table and remembers masked vectors itself, so what is left here
is where table and PBA lie, and the pending bits a guest may read."""

from __future__ import annotations

from dataclasses import dataclass

from vdev.wire import pci

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

    def clear(self) -> None:
        """Nothing is pending any more: unmasked or reset."""
        self._bits = 0

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` of the array from `offset`, zeros beyond it."""
        image = self._bits.to_bytes(8 * -(-self._vectors // 64), "little")
        return image[offset : offset + nbytes].ljust(nbytes, b"\0")
