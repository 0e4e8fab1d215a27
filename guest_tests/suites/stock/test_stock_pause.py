"""The machine is stopped and goes on while stock drivers work: nothing is lost, nothing is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from guest_tests.payload import checks_hwrng
from guest_tests.payload.host import Host
from guest_tests.payload.lab import Lab
from guest_tests.payload.load import NCOPIES, Counts, run_round
from guest_tests.payload.stock import Machine, Unit, expect_of_seed, within

pytestmark = pytest.mark.machines("lazy-*", "passthrough-*-cloud-backports")

NPAUSES = 2
PAUSE_S = 0.2
PROGRESS_S = 20.0


class Worker:
    """`work` done over and over by a thread of its own; what it raises is raised at the end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.rounds = 0
        self._work = work
        self._enough = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

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


def test_maps_and_copies_go_on_after_every_pause(lab: Lab, unit: Unit, host: Host) -> None:
    since, counts, before = unit.next_event(), Counts(), unit.domain_of(lab.bdf)
    worker = Worker(lambda: run_round(lab, counts))

    with worker.working():
        for _ in range(NPAUSES):
            assert worker.goes_on()
            host.pause(PAUSE_S)
        assert worker.goes_on()

    assert counts.submitted == counts.completed == NCOPIES * counts.rounds
    assert (counts.refused, unit.events("FaultRaised", since)) == (0, [])
    assert unit.domain_of(lab.bdf) == before


def test_the_rng_goes_on_after_every_pause(stock: Machine, unit: Unit, host: Host) -> None:
    since = unit.next_event()
    drawn: list[bytes] = []
    worker = Worker(lambda: drawn.append(checks_hwrng.draw()))

    with worker.working():
        for _ in range(NPAUSES):
            assert worker.goes_on()
            host.pause(PAUSE_S)
        assert worker.goes_on()

    expect_of_seed(b"".join(drawn), unit, stock, "rng0")
    assert unit.events("FaultRaised", since) == []
