"""Guest-physical memory as one connection sees it: a table of regions over buffers somebody else mapped.

Pure: it is handed memoryviews and knows no mmap, no fd. The transport that received the DMA_MAPs owns the mappings.
All ranges are half-open. Nobody keeps a slice past the request it was taken for, except a ring, which
drops its views when `generation` changes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vdev.errors import MemoryAccessError

GPA_SPACE = 1 << 64
MAX_LOST = 64  # ranges remembered as lost; QEMU takes away and gives back a handful at a time


@dataclass(slots=True)
class Region:
    """[gpa, gpa + len(view)) of guest RAM. `view` is None for RAM that came without an fd (not DMA-able)."""

    gpa: int
    nbytes: int
    view: memoryview | None
    readable: bool = True
    writable: bool = True

    @property
    def stop(self) -> int:
        return self.gpa + self.nbytes


class Memory(Protocol):
    """What a ring needs of the memory it lies in: a `RegionTable`, or what a device behind an IOMMU reaches."""

    @property
    def generation(self) -> int:
        """Another number than before when views taken earlier may not be used any more."""

    def find(self, gpa: int) -> Region | None:
        """The region that contains `gpa`, for as long as `generation` stays; None where none can be promised."""

    def slices(self, gpa: int, nbytes: int, *, write: bool) -> list[memoryview]:
        """See `RegionTable.slices`."""

    def ring_area(self, gpa: int, nbytes: int, *, write: bool) -> list[memoryview]:
        """The same, for a part of a ring: looked up again whenever `generation` has changed."""


class RegionTable:
    """The sorted, non-overlapping regions of one connection."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: list[Region] = []
        self.generation = 0
        # [start, stop) of RAM that was unmapped and not mapped again. QEMU replaces a map it changes by unmapping all
        # of it and mapping the parts, in separate messages: what runs in between must be able to tell.
        self._lost: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._regions)

    def regions(self) -> tuple[Region, ...]:
        """All regions, by rising GPA."""
        return tuple(self._regions)

    def add(self, region: Region) -> None:
        """Insert `region`; MemoryAccessError when it is empty, leaves the 64-bit space or overlaps another."""
        if region.nbytes <= 0 or region.stop > GPA_SPACE:
            raise MemoryAccessError(region.gpa, region.nbytes, "is empty or leaves the 64-bit space")
        index = bisect_right(self._starts, region.gpa)
        before = self._regions[index - 1] if index else None
        after = self._regions[index] if index < len(self._regions) else None
        for other in (before, after):
            if other is not None and other.gpa < region.stop and region.gpa < other.stop:
                raise MemoryAccessError(region.gpa, region.nbytes, f"overlaps region {other.gpa:#x}+{other.nbytes:#x}")
        self._starts.insert(index, region.gpa)
        self._regions.insert(index, region)
        self.generation += 1
        if self._lost:
            self._lost = _without(self._lost, region.gpa, region.stop)

    def remove(self, gpa: int, nbytes: int) -> list[Region]:
        """Remove every region inside [gpa, gpa+nbytes) and return them; MemoryAccessError if one would be split."""
        stop = gpa + nbytes
        first = max(bisect_right(self._starts, gpa) - 1, 0)
        doomed: list[Region] = []
        for index in range(first, len(self._regions)):
            region = self._regions[index]
            if region.gpa >= stop:
                break
            if region.stop <= gpa:
                continue
            if region.gpa < gpa or region.stop > stop:
                raise MemoryAccessError(gpa, nbytes, f"would split region {region.gpa:#x}+{region.nbytes:#x}")
            doomed.append(region)
        if doomed:
            # They are neighbours; a client may hold tens of thousands of others, and rebuilding those takes long.
            index = bisect_left(self._starts, doomed[0].gpa)
            del self._regions[index : index + len(doomed)]
            del self._starts[index : index + len(doomed)]
            self.generation += 1
            self._lost += [(region.gpa, region.stop) for region in doomed if region.view is not None]
            del self._lost[:-MAX_LOST]
        return doomed

    def clear(self) -> None:
        """Forget everything (the connection ended)."""
        self._starts.clear()
        self._regions.clear()
        self._lost.clear()
        self.generation += 1

    def find(self, gpa: int) -> Region | None:
        """The region that contains `gpa`."""
        index = bisect_right(self._starts, gpa) - 1
        region = self._regions[index] if index >= 0 else None
        return region if region is not None and gpa < region.stop else None

    def spans(self, gpa: int, nbytes: int) -> Iterator[tuple[int, int, Region | None]]:
        """[gpa, gpa+nbytes) cut at the edges of regions: (gpa, nbytes, its region or None) in order."""
        cursor, stop = gpa, gpa + nbytes
        index = max(bisect_right(self._starts, gpa) - 1, 0)
        while cursor < stop:
            region = self._regions[index] if index < len(self._regions) else None
            if region is not None and region.stop <= cursor:
                index += 1
            elif region is not None and region.gpa <= cursor:
                end = min(stop, region.stop)
                yield cursor, end - cursor, region
                cursor = end
            else:
                end = stop if region is None else min(stop, region.gpa)
                yield cursor, end - cursor, None
                cursor = end

    def slices(self, gpa: int, nbytes: int, *, write: bool) -> list[memoryview]:
        """The bytes of [gpa, gpa+nbytes) in order, one view per region crossed.

        Raises MemoryAccessError, before anything was touched, unless the whole range is RAM with an fd and
        allows the access.
        """
        if nbytes <= 0:
            return []
        out: list[memoryview] = []
        cursor, stop = gpa, gpa + nbytes
        index = bisect_right(self._starts, gpa) - 1
        while cursor < stop:
            region = self._regions[index] if 0 <= index < len(self._regions) else None
            if region is None or not region.gpa <= cursor < region.stop:
                lost = any(start <= cursor < stop for start, stop in self._lost)
                raise MemoryAccessError(gpa, nbytes, f"no RAM at {cursor:#x}" + " any more" * lost, lost=lost)
            if region.view is None:
                raise MemoryAccessError(gpa, nbytes, "RAM came without a file descriptor")
            if not (region.writable if write else region.readable):
                raise MemoryAccessError(gpa, nbytes, "RAM is not " + ("writable" if write else "readable"))
            end = min(stop, region.stop)
            out.append(region.view[cursor - region.gpa : end - region.gpa])
            cursor = end
            index += 1
        return out

    def ring_area(self, gpa: int, nbytes: int, *, write: bool) -> list[memoryview]:
        """See `slices`."""
        return self.slices(gpa, nbytes, write=write)

    def read(self, gpa: int, nbytes: int) -> bytes:
        """Copy out [gpa, gpa+nbytes); raises MemoryAccessError as `slices` does."""
        parts = self.slices(gpa, nbytes, write=False)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `gpa`; raises MemoryAccessError, with nothing written, as `slices` does."""
        cursor = 0
        for part in self.slices(gpa, len(data), write=True):
            part[:] = data[cursor : cursor + len(part)]
            cursor += len(part)


def _without(ranges: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """`ranges` less [start, stop)."""
    out: list[tuple[int, int]] = []
    for low, high in ranges:
        if low < start:
            out.append((low, min(high, start)))
        if high > stop:
            out.append((max(low, stop), high))
    return out


def first_of(views: Sequence[memoryview], nbytes: int) -> list[memoryview]:
    """The first `nbytes` of what `views` have."""
    out: list[memoryview] = []
    for view in views:
        if nbytes <= 0:
            break
        out.append(view[:nbytes])
        nbytes -= len(view)
    return out
