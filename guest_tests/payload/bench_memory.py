"""Memory of a known physical shape: what one VFIO mapping costs depends on how many physical runs it has."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from .lab import PAGE

HUGE_PAGE = 2 << 20
MAP_FIXED = 0x10  # Linux, x86-64; Python's mmap has neither this nor the next
MAP_HUGETLB = 0x40000
MFD_HUGETLB = 4
PAGEMAP_ENTRY = Struct("<Q")  # Documentation/admin-guide/mm/pagemap.rst
PFN_MASK = (1 << 55) - 1
PAGE_PRESENT = 1 << 63
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


@dataclass(frozen=True)
class Area:
    """Populated memory of this process; `close` gives it back."""

    address: int
    nbytes: int
    close: Callable[[], None]


def apart(npages: int, *, huge: bool = False) -> Area:
    """`npages` pages side by side here, no two neighbours side by side in the machine's memory: `npages` runs.

    Huge pages (2 MiB) the kernel's command line must have set aside (hugepages=N). Raises OSError.
    """
    page_nbytes = HUGE_PAGE if huge else PAGE
    nbytes = npages * page_nbytes
    fd = os.memfd_create("bench", MFD_HUGETLB if huge else 0)
    os.ftruncate(fd, nbytes)
    area = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    frames = _frames(address, nbytes)[:: page_nbytes // PAGE]
    rising = sorted(range(npages), key=lambda page: frames[page])
    # Every other one, then the rest: between two neighbours there is always a page of another place.
    for place, page in enumerate(rising[::2] + rising[1::2]):
        where = address + place * page_nbytes
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE | MAP_FIXED | (MAP_HUGETLB if huge else 0)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc.mmap(where, page_nbytes, protection, flags, fd, page * page_nbytes) != where:
            raise OSError(ctypes.get_errno(), "mmap over the area")
    os.close(fd)
    return Area(address, nbytes, area.close)


def physical_runs(address: int, nbytes: int) -> int:
    """How many pieces without a gap the memory is in physically. Raises OSError."""
    frames = _frames(address, nbytes)
    return 1 + sum(frames[at] != frames[at - 1] + 1 for at in range(1, len(frames)))


def _frames(address: int, nbytes: int) -> list[int]:
    """The page frame of each page of memory that is there, from /proc/self/pagemap."""
    npages = nbytes // PAGE
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(address // PAGE * PAGEMAP_ENTRY.size)
        raw = file.read(npages * PAGEMAP_ENTRY.size)
    frames = [entry & PFN_MASK for (entry,) in PAGEMAP_ENTRY.iter_unpack(raw) if entry & PAGE_PRESENT]
    if len(frames) != npages:
        raise OSError(f"{npages - len(frames)} of {npages} pages are not in memory")
    return frames
