"""What is to happen later, by its time. Pure; time is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

MAX_DUE = 4096  # things that wait for their time
BATCH_DUE = 64  # of them at once


@dataclass(slots=True, order=True)
class Entry:
    """`what` at `when_ns`; `number` keeps the order of those of one time. Implements `point.Due`."""

    when_ns: int
    number: int
    what: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """As `point.Due`."""
        self.what = None


class Agenda:
    """At most MAX_DUE things."""

    def __init__(self) -> None:
        self._due: list[Entry] = []
        self._numbers = count()

    def add(self, when_ns: int, what: Callable[[], None]) -> Entry | None:
        """None: too much waits already. What was cancelled takes no room."""
        if len(self._due) >= MAX_DUE:
            self._due = [due for due in self._due if due.what is not None]
            heapify(self._due)
        if len(self._due) >= MAX_DUE:
            return None
        due = Entry(when_ns, next(self._numbers), what)
        heappush(self._due, due)
        return due

    def do(self, now_ns: int) -> None:
        """A batch of what is due."""
        for _ in range(BATCH_DUE):
            if not self._due or self._due[0].when_ns > now_ns:
                break
            what = heappop(self._due).what
            if what is not None:
                what()

    @property
    def next_ns(self) -> int | None:
        """When the next thing is due, cancelled or not; None: nothing is."""
        return self._due[0].when_ns if self._due else None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(due.what is not None for due in self._due)
