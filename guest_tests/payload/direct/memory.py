"""Memory for DMA: pinned, at guest-physical addresses we know.

Huge pages of 2 MiB from hugetlbfs: the kernel never moves or swaps them, and each is contiguous. /proc/self/pagemap
says where they are (to root). They are not contiguous with each other, so no buffer is larger than one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import insort
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from .errors import OutOfDmaMemory

HUGE_NBYTES = 2 << 20
PAGE_NBYTES = 4096
MAX_PAGES = 64

HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
PAGEMAP = Path("/proc/self/pagemap")
_MAP_HUGETLB = 0x40000  # <asm-generic/mman.h>; the mmap module has no name for it
_PAGEMAP_PRESENT = 1 << 63
_PAGEMAP_PFN = (1 << 55) - 1


class DmaBuffer:
    """`nbytes` of contiguous memory at guest-physical `gpa`; `memory` is the same bytes from our side.

    Freed by `close`, by leaving a `with` block, or with the pool or arena it came from; then `memory` is gone.
    """

    def __init__(self, pool: DmaPool, page: _Page, offset: int, nbytes: int) -> None:
        self.gpa = page.gpa + offset
        self.nbytes = nbytes
        self.memory = page.memory[offset : offset + nbytes]
        self._pool = pool
        self._page = page
        self._offset = offset
        self.is_free = False

    def fill(self, value: int) -> DmaBuffer:
        """Set every byte to `value`; returns itself."""
        self.memory[:] = bytes([value]) * self.nbytes
        return self

    def randomise(self) -> bytes:
        """Fill with random bytes, which are also returned."""
        content = os.urandom(self.nbytes)
        self.memory[:] = content
        return content

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Store `data` from `offset` on. Raises ValueError where it does not fit."""
        self._check(offset, len(data))
        self.memory[offset : offset + len(data)] = data

    def read(self, nbytes: int | None = None, offset: int = 0) -> bytes:
        """A copy of `nbytes` from `offset` on, by default all. Raises ValueError past the end."""
        nbytes = self.nbytes - offset if nbytes is None else nbytes
        self._check(offset, nbytes)
        return self.memory[offset : offset + nbytes].tobytes()

    def _check(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes at offset {offset} leave a buffer of {self.nbytes}")

    def close(self) -> None:
        """Give the memory back. Twice is once."""
        if not self.is_free:
            self.is_free = True
            self.memory.release()
            self._pool.give_back(self._page, self._offset, self.nbytes)

    def __enter__(self) -> DmaBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DmaBuffer({self.gpa:#x}, {self.nbytes} bytes)"


class Allocator(Protocol):
    """Where DMA memory comes from: a `DmaPool`, or an arena of one."""

    def alloc(self, nbytes: int = PAGE_NBYTES, align: int = PAGE_NBYTES) -> DmaBuffer: ...
    def arena(self) -> DmaArena: ...


@dataclass(slots=True, eq=False)
class _Page:
    """One huge page and its free parts, half-open [start, stop), sorted and never adjacent.

    Allocation goes round: what was just freed is not given out again at once. A device that still writes there harms
    nobody, and a unit behind vhost-user, which knows a new driver by its new rings, is not mistaken.
    """

    gpa: int
    memory: memoryview
    free: list[tuple[int, int]]
    cursor: int = 0

    def take(self, nbytes: int, align: int) -> int | None:
        """Next fit: an offset whose guest-physical address is a multiple of `align`, or None."""
        for least in (self.cursor, 0):
            for number, (start, stop) in enumerate(self.free):
                offset = -(-(self.gpa + max(start, least)) // align) * align - self.gpa
                if offset + nbytes <= stop:
                    rest = [(start, offset), (offset + nbytes, stop)]
                    self.free[number : number + 1] = [part for part in rest if part[0] < part[1]]
                    self.cursor = offset + nbytes
                    return offset
        return None

    def give_back(self, offset: int, nbytes: int) -> None:
        """Add a part that was taken, joined with its free neighbours."""
        insort(self.free, (offset, offset + nbytes))
        joined: list[tuple[int, int]] = []
        for start, stop in self.free:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        self.free = joined


class Backing(Protocol):
    """Where a pool's huge pages come from."""

    def take(self) -> tuple[int, memoryview]:
        """A new page: (gpa, its 2 MiB). Raises OutOfDmaMemory."""

    def close(self) -> None:
        """Take all pages back; nothing uses them any more."""


class HugePages:
    """Pages of hugetlbfs, reserved one by one at run time as they are needed, and given back by `close`."""

    def __init__(self, directory: Path = HUGE_PAGES, pagemap: Path = PAGEMAP) -> None:
        self._nr = directory / "nr_hugepages"
        self._nfree = directory / "free_hugepages"
        self._pagemap = pagemap
        self._nreserved = 0
        self._maps: list[mmap.mmap] = []

    def take(self) -> tuple[int, memoryview]:
        """Reserve, map and find one page. Raises OutOfDmaMemory."""
        self._reserve()
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | mmap.MAP_POPULATE
        try:
            page = mmap.mmap(-1, HUGE_NBYTES, flags=flags)
        except OSError as error:
            raise OutOfDmaMemory(f"mmap of a 2 MiB huge page: {error}") from error
        self._maps.append(page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return physical_address(address, self._pagemap), memoryview(page)

    def _reserve(self) -> None:
        try:
            if int(self._nfree.read_text()) > 0:
                return
            count = int(self._nr.read_text())
            self._nr.write_text(str(count + 1))
            if int(self._nr.read_text()) <= count:
                raise OutOfDmaMemory(f"the kernel has no 2 MiB free in one piece for huge page {count + 1}")
        except FileNotFoundError as error:
            raise OutOfDmaMemory(f"the kernel has no huge pages of 2 MiB ({error.filename})") from error
        except OSError as error:
            raise OutOfDmaMemory(f"reserving a huge page: {error}; this needs root") from error
        self._nreserved += 1

    def close(self) -> None:
        """Unmap all, and give back the reservations we made."""
        while self._maps:
            with suppress(BufferError):  # somebody keeps a slice of it; it goes with that
                self._maps.pop().close()
        if self._nreserved:
            with suppress(OSError):
                self._nr.write_text(str(max(0, int(self._nr.read_text()) - self._nreserved)))
        self._nreserved = 0


def physical_address(address: int, pagemap: Path = PAGEMAP) -> int:
    """The guest-physical address behind `address` of this process. Raises OutOfDmaMemory when it cannot be known."""
    try:
        with pagemap.open("rb", buffering=0) as file:
            file.seek(address // PAGE_NBYTES * 8)
            entry = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise OutOfDmaMemory(f"{pagemap}: {error}") from error
    if not entry & _PAGEMAP_PRESENT:
        raise OutOfDmaMemory(f"{pagemap}: address {address:#x} has no memory behind it")
    if not entry & _PAGEMAP_PFN:
        raise OutOfDmaMemory(f"{pagemap} hides page frame numbers: this needs root (CAP_SYS_ADMIN)")
    return (entry & _PAGEMAP_PFN) * PAGE_NBYTES + address % PAGE_NBYTES


class DmaPool:
    """Huge pages, taken from `backing` as they are needed, at most `max_pages`, and kept until `close`."""

    def __init__(self, backing: Backing | None = None, max_pages: int = MAX_PAGES) -> None:
        self._backing = HugePages() if backing is None else backing
        self._max_pages = max_pages
        self._pages: list[_Page] = []

    @property
    def nbytes_free(self) -> int:
        """Free bytes of the huge pages the pool has so far."""
        return sum(stop - start for page in self._pages for start, stop in page.free)

    @property
    def npages(self) -> int:
        """Huge pages the pool has so far."""
        return len(self._pages)

    def alloc(self, nbytes: int = PAGE_NBYTES, align: int = PAGE_NBYTES) -> DmaBuffer:
        """A zeroed buffer of `nbytes` whose gpa is a multiple of `align` (a power of two up to 2 MiB).

        Contiguous, so at most 2 MiB. Raises ValueError for more (see `alloc_pieces`), OutOfDmaMemory.
        """
        if not 0 < nbytes <= HUGE_NBYTES:
            raise ValueError(f"{nbytes} bytes: a buffer is 1 byte to 2 MiB, the size of a huge page; see alloc_pieces")
        if not 0 < align <= HUGE_NBYTES or align & (align - 1):
            raise ValueError(f"alignment {align} is not a power of two up to 2 MiB")
        for page in self._pages:
            if (offset := page.take(nbytes, align)) is not None:
                return self._buffer(page, offset, nbytes)
        page = self._grow()
        offset = page.take(nbytes, align)
        assert offset is not None  # a fresh page holds whatever passed the checks above
        return self._buffer(page, offset, nbytes)

    def alloc_pieces(self, nbytes: int, piece_nbytes: int = HUGE_NBYTES) -> list[DmaBuffer]:
        """`nbytes` as a list of buffers of `piece_nbytes` (the last may be shorter), contiguous only in themselves."""
        sizes = [min(piece_nbytes, nbytes - at) for at in range(0, nbytes, piece_nbytes)]
        return [self.alloc(size) for size in sizes]

    def arena(self) -> DmaArena:
        """An allocator over this pool whose buffers are all freed by its `close`."""
        return DmaArena(self)

    def give_back(self, page: _Page, offset: int, nbytes: int) -> None:
        """A buffer ends; only DmaBuffer calls this."""
        page.give_back(offset, nbytes)

    def close(self) -> None:
        """Give all huge pages back to the kernel. No device may reach them any more."""
        while self._pages:
            self._pages.pop().memory.release()
        self._backing.close()

    def _buffer(self, page: _Page, offset: int, nbytes: int) -> DmaBuffer:
        return DmaBuffer(self, page, offset, nbytes).fill(0)

    def _grow(self) -> _Page:
        if len(self._pages) >= self._max_pages:
            used = self.npages * HUGE_NBYTES - self.nbytes_free
            raise OutOfDmaMemory(f"all {self.npages} huge pages are in use ({used} bytes of them): close buffers")
        gpa, memory = self._backing.take()
        if gpa % HUGE_NBYTES:
            raise OutOfDmaMemory(f"the page at {gpa:#x} is not aligned to 2 MiB: not a huge page")
        page = _Page(gpa, memory, [(0, HUGE_NBYTES)])
        self._pages.append(page)
        return page


class DmaArena:
    """A part of a pool with one end: `close` frees every buffer that is still there."""

    def __init__(self, pool: DmaPool) -> None:
        self._pool = pool
        self._buffers: list[DmaBuffer] = []

    def alloc(self, nbytes: int = PAGE_NBYTES, align: int = PAGE_NBYTES) -> DmaBuffer:
        """See `DmaPool.alloc`."""
        buffer = self._pool.alloc(nbytes, align)
        self._buffers.append(buffer)
        return buffer

    def alloc_pieces(self, nbytes: int, piece_nbytes: int = HUGE_NBYTES) -> list[DmaBuffer]:
        """See `DmaPool.alloc_pieces`."""
        pieces = self._pool.alloc_pieces(nbytes, piece_nbytes)
        self._buffers += pieces
        return pieces

    def random(self, nbytes: int = PAGE_NBYTES, align: int = PAGE_NBYTES) -> DmaBuffer:
        """A buffer of random bytes."""
        buffer = self.alloc(nbytes, align)
        buffer.randomise()
        return buffer

    def arena(self) -> DmaArena:
        """Another arena of the same pool, with its own end."""
        return self._pool.arena()

    def close(self) -> None:
        """Free what was allocated here."""
        while self._buffers:
            self._buffers.pop().close()

    def __enter__(self) -> DmaArena:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
