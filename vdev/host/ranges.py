"""Which numbers of a range are free: as disjoint half-open intervals in rising order, or as a byte each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


class FreeRanges:
    """Numbers of [first, stop), all of them free at first. Costs grow with the number of holes, not of numbers."""

    def __init__(self, first: int, stop: int) -> None:
        self._starts = [first] if first < stop else []
        self._stops = [stop] if first < stop else []
        self.nfree = max(0, stop - first)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._stops[at]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def find(self, first: int, stop: int, after: int) -> int | None:
        """The smallest free number of [first, stop) that is above `after`, else the smallest one; None for none.

        Going on behind the last one means that a number that was given back rests for as long as there are others.
        """
        return self._find(max(first, after + 1), stop) or self._find(first, stop)

    def _find(self, first: int, stop: int) -> int | None:
        at = max(0, bisect_right(self._starts, first) - 1)
        for start, end in zip(self._starts[at : at + 2], self._stops[at : at + 2], strict=True):
            number = max(start, first)
            if number < min(end, stop):
                return number
        return None

    def take(self, number: int) -> None:
        """`number` is free no longer. ValueError if it was not."""
        at = bisect_right(self._starts, number) - 1
        if at < 0 or number >= self._stops[at]:
            raise ValueError(f"{number:#x} is not free")
        start, stop = self._starts[at], self._stops[at]
        rest = [(start, number)] * (start < number) + [(number + 1, stop)] * (number + 1 < stop)
        self._starts[at : at + 1] = [piece[0] for piece in rest]
        self._stops[at : at + 1] = [piece[1] for piece in rest]
        self.nfree -= 1

    def take_range(self, first: int, stop: int) -> None:
        """None of [first, stop) is free any longer, whatever was."""
        kept = [
            piece
            for start, end in zip(self._starts, self._stops, strict=True)
            for piece in ((start, min(end, first)), (max(start, stop), end))
            if piece[0] < piece[1]
        ]
        self._starts = [piece[0] for piece in kept]
        self._stops = [piece[1] for piece in kept]
        self.nfree = sum(end - start for start, end in kept)

    def give(self, number: int) -> None:
        """`number` is free again. ValueError if it was."""
        if number in self:
            raise ValueError(f"{number:#x} is free")
        at = bisect_right(self._starts, number)
        joins_left = at > 0 and self._stops[at - 1] == number
        joins_right = at < len(self._starts) and self._starts[at] == number + 1
        if joins_left and joins_right:
            self._stops[at - 1] = self._stops.pop(at)
            del self._starts[at]
        elif joins_left:
            self._stops[at - 1] = number + 1
        elif joins_right:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._stops.insert(at, number + 1)
        self.nfree += 1


class FreeMap:
    """The same for numbers of many owners, who leave holes everywhere: a byte each, searched by the C library."""

    def __init__(self, first: int, stop: int) -> None:
        self._first = first
        self._stop = max(first, stop)
        self._taken = bytearray(self._stop)  # 0 is free
        self.nfree = self._stop - first

    def __contains__(self, number: int) -> bool:
        return self._first <= number < self._stop and not self._taken[number]

    def find(self, first: int, stop: int, after: int) -> int | None:
        """As `FreeRanges.find`."""
        found = self._taken.find(0, max(first, after + 1, self._first), max(stop, 0))
        if found < 0:
            found = self._taken.find(0, max(first, self._first), max(stop, 0))
        return None if found < 0 else found

    def take(self, number: int) -> None:
        """`number` is free no longer. ValueError if it was not."""
        if number not in self:
            raise ValueError(f"{number:#x} is not free")
        self._taken[number] = 1
        self.nfree -= 1

    def take_range(self, first: int, stop: int) -> None:
        """None of [first, stop) is free any longer, whatever was."""
        first, stop = max(first, self._first), min(stop, self._stop)
        if first < stop:
            self.nfree -= self._taken.count(0, first, stop)
            self._taken[first:stop] = b"\1" * (stop - first)

    def give(self, number: int) -> None:
        """`number` is free again. ValueError if it was."""
        if number in self:
            raise ValueError(f"{number:#x} is free")
        self._taken[number] = 0
        self.nfree += 1
