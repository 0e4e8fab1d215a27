"""Non-overlapping half-open intervals in address order: the mappings of one domain.

A sorted list of blocks, each a short sorted list, so that every operation is two bisections and one short memmove
however many mappings live and in whatever order they come. Linux hands IOVAs out from the top down, the worst case
of one plain list. Intervals are plain tuples: cheap to make, and untracked by the garbage collector.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import itemgetter

Interval = tuple[int, int, int, int]  # start, stop, gpa of start, flags
Rubbish = list[list[int] | list[Interval]]  # blocks nobody needs; dropping one frees up to BLOCK_MAX objects

BLOCK_MAX = 1024  # a fuller block is halved
_start_of = itemgetter(0)


class IntervalMap:
    """Intervals that never overlap. Arguments must satisfy start < stop; nothing here raises."""

    __slots__ = ("_count", "_firsts", "_items", "_starts")

    def __init__(self) -> None:
        self._count = 0
        self._firsts: list[int] = []  # start of the first interval of each block
        self._starts: list[list[int]] = []  # per block: the starts, for bisection
        self._items: list[list[Interval]] = []  # per block: the intervals; no block is empty

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Interval]:
        for block in self._items:
            yield from block

    def find(self, address: int) -> Interval | None:
        """The interval that contains `address`."""
        block = bisect_right(self._firsts, address) - 1
        if block < 0:
            return None
        item = self._items[block][bisect_right(self._starts[block], address) - 1]
        return item if address < item[1] else None

    def items_from(self, address: int, limit: int) -> list[Interval]:
        """At most `limit` intervals by rising start: that which contains `address`, and those after it."""
        block = max(bisect_right(self._firsts, address) - 1, 0)
        found: list[Interval] = []
        for items in self._items[block : block + limit + 1]:
            room = limit - len(found)
            if room <= 0:
                break
            index = 0
            if not found and items[0][0] <= address:
                index = bisect_right(items, address, key=_start_of) - 1
                index += items[index][1] <= address
            found += items[index : index + room]
        return found

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether some interval shares an address with [start, stop)."""
        block = bisect_left(self._firsts, stop) - 1
        if block < 0:
            return False
        return self._items[block][bisect_left(self._starts[block], stop) - 1][1] > start

    def insert(self, item: Interval) -> bool:
        """Add `item`; False, with nothing changed, when it overlaps another."""
        start, stop = item[0], item[1]
        firsts = self._firsts
        if not firsts:
            firsts.append(start)
            self._starts.append([start])
            self._items.append([item])
            self._count = 1
            return True
        block = bisect_right(firsts, start) - 1
        if block < 0:
            if stop > firsts[0]:
                return False
            block = index = 0
            starts, items = self._starts[0], self._items[0]
            firsts[0] = start
        else:
            starts, items = self._starts[block], self._items[block]
            index = bisect_right(starts, start)
            if items[index - 1][1] > start:
                return False
            if index < len(starts):
                if starts[index] < stop:
                    return False
            elif block + 1 < len(firsts) and firsts[block + 1] < stop:
                return False
        starts.insert(index, start)
        items.insert(index, item)
        self._count += 1
        if len(starts) > BLOCK_MAX:
            self._halve(block)
        return True

    def remove(self, start: int, stop: int, rubbish: Rubbish) -> int | None:
        """Drop every interval inside [start, stop); how many, or None, with nothing changed, if one would be split.

        Whole blocks go to `rubbish`: to free a million intervals takes tens of milliseconds, to unhook them does not.
        """
        last = bisect_left(self._firsts, stop) - 1
        if last < 0:
            return 0
        last_index = bisect_left(self._starts[last], stop)
        item = self._items[last][last_index - 1]
        if item[1] <= start:
            return 0
        if item[1] > stop:
            return None
        first = max(bisect_right(self._firsts, start) - 1, 0)
        first_index = bisect_left(self._starts[first], start)
        if first_index and self._items[first][first_index - 1][1] > start:
            return None
        before = self._count
        if first == last:
            self._cut(first, first_index, last_index)
        else:
            self._cut(last, 0, last_index)
            self._count -= sum(map(len, self._items[first + 1 : last]))
            rubbish += self._items[first + 1 : last]
            rubbish += self._starts[first + 1 : last]
            del self._items[first + 1 : last], self._starts[first + 1 : last], self._firsts[first + 1 : last]
            self._cut(first, first_index, len(self._starts[first]))
        return before - self._count

    def empty_into(self, rubbish: Rubbish) -> None:
        """Drop every interval, as `remove` does."""
        rubbish += self._items
        rubbish += self._starts
        self._firsts, self._starts, self._items = [], [], []
        self._count = 0

    def _cut(self, block: int, begin: int, end: int) -> None:
        """Delete [begin, end) of one block, and the block itself when that empties it."""
        starts = self._starts[block]
        self._count -= end - begin
        if end - begin == len(starts):
            del self._items[block], self._starts[block], self._firsts[block]
            return
        del starts[begin:end], self._items[block][begin:end]
        self._firsts[block] = starts[0]

    def _halve(self, block: int) -> None:
        starts, items = self._starts[block], self._items[block]
        middle = len(starts) // 2
        self._starts[block : block + 1] = [starts[:middle], starts[middle:]]
        self._items[block : block + 1] = [items[:middle], items[middle:]]
        self._firsts.insert(block + 1, starts[middle])
