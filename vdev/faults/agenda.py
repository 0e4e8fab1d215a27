"""What is to happen later, by time. Pure: whoever owns the clock says what time it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

MAX_DUE = 4096  # things that wait for their time
BATCH_DUE = 64  # of them done in one go


@dataclass(slots=True, order=True)
class Entry:
    """`what` at `when_ns`; `number` keeps the order of those of one time. Implements `point.Due`."""

    when_ns: int
    number: int
    what: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """It does not happen. Again, or too late, is no change."""
        self.what = None


class Agenda:
    """Entries by time; those that were cancelled take room only until it is needed."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._numbers = count()

    @property
    def next_ns(self) -> int | None:
        """When there is something to do; None: never."""
        return self._entries[0].when_ns if self._entries else None

    @property
    def nwaiting(self) -> int:
        """How many things wait for their time."""
        return sum(entry.what is not None for entry in self._entries)

    @property
    def has_room(self) -> bool:
        """Whether one more thing may wait."""
        if len(self._entries) >= MAX_DUE:
            self._entries = [entry for entry in self._entries if entry.what is not None]
            heapify(self._entries)
        return len(self._entries) < MAX_DUE

    def add(self, when_ns: int, what: Callable[[], None]) -> Entry | None:
        """Do `what` at that time; None: MAX_DUE things wait already."""
        if not self.has_room:
            return None
        entry = Entry(when_ns, next(self._numbers), what)
        heappush(self._entries, entry)
        return entry

    def run(self, now_ns: int) -> None:
        """Do what is due, BATCH_DUE things at most."""
        for _ in range(BATCH_DUE):
            if not self._entries or self._entries[0].when_ns > now_ns:
                return
            what = heappop(self._entries).what
            if what is not None:
                what()
