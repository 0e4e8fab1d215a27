"""Work that goes on beside a test, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .stock import within

PROGRESS_S = 20.0


class Worker:
    """`work` done over and over by a thread of its own; what it raises is raised at the end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.rounds = 0
        self._work = work
        self._enough = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work for the length of the block. Raises what the work raised."""
        self._thread.start()
        try:
            yield
        finally:
            self._enough.set()
            self._thread.join()
        if self._problem is not None:
            raise self._problem

    def goes_on(self) -> bool:
        """Whether another two rounds are finished in good time: one of them began after now."""
        target = self.rounds + 2
        return within(PROGRESS_S, lambda: self.rounds >= target or self._problem is not None)

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                self._work()
                self.rounds += 1
        except BaseException as problem:  # for the test's own thread
            self._problem = problem
