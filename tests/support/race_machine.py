"""A machine without QEMU whose clock stands still until somebody lets time pass: every order of events can be had.

The guest's user-space driver works it as it does any other (tests/support/direct.py). What differs: workers run at the
time that is now, times they ask to be woken at are kept, and it can be said who goes first where two are due at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from guest_tests.payload.direct.memory import DmaPool
from tests.support.direct import MAX_SLICES, SimFunction, SimMachine, SimRam
from vdev.assemble import Machine
from vdev.config import Config
from vdev.functions.base import Progress, Worker
from vdev.iommu.events import Event
from vdev.pci.base import PciFunction
from vdev.virtio.ordering import NoOrdering

START_NS = 1_000_000_000
IDLE_NS = 1_000_000  # what passes in a step where nobody waits for a time
AFTER_POLLING_NS = 1_000_000_000  # more than any poll window


class RaceMachine(SimMachine):
    """One VM's functions in time that is exact to the nanosecond; a `race.field.Clock`."""

    is_exact = True

    def __init__(
        self, config: Config, emit: Callable[[Event], None] = lambda event: None, *, revalidates: bool = False
    ) -> None:
        """`revalidates`: every unit translates a second time what lands."""
        self._workers: dict[int, Worker] = {}
        self._woken: set[int] = set()
        self._timers: dict[int, int] = {}
        self.now_ns = START_NS
        self._unit_first = True
        self._is_running = False
        self.vdev = Machine(config, emit=emit, wake=self._wake, wake_at=self._wake_at, ordering=NoOrdering())
        self.unit_names = {unit.name for unit in config.units}
        bdfs = {unit.name: unit.bdf for unit in config.units}
        bdfs |= {endpoint.name: endpoint.bdf for endpoint in config.endpoints}
        self.functions = {}
        for name, function in self.vdev.functions.items():
            assert isinstance(function, PciFunction)
            self.functions[name] = SimFunction(f"0000:{bdfs[name]}", function, self)
        for unit in self.vdev.units.values():
            for worker in unit.endpoints.values():
                worker.was_reset = partial(self._forget_timer, worker)
            unit.engine.settings = replace(unit.engine.settings, revalidate=revalidates)
        self.pool = DmaPool(SimRam(self))

    # Clock

    def now(self) -> int:
        """The clock."""
        return self.now_ns

    def until(self, when_ns: int, *, asleep: bool = False) -> None:
        """Everything up to `when_ns` happens; with `asleep` what is due at that very time does not yet."""
        while (due := self._next_ns()) is not None and (due < when_ns or (due == when_ns and not asleep)):
            self.now_ns = max(self.now_ns, due)
            self.run()
        self.now_ns = max(self.now_ns, when_ns)
        if not asleep:
            self.run()

    def step(self) -> None:
        """To the next time somebody wants to be woken at."""
        due = self._next_ns()
        self.until(self.now_ns + IDLE_NS if due is None else due)

    def look(self) -> None:
        """Run who was woken; nobody polls, see `_slice`."""
        self.run()

    def turn(self, unit_first: bool) -> None:
        """Who goes first where two are due."""
        self._unit_first = unit_first

    # SimMachine

    def run(self) -> None:
        """Run every worker that is woken or due, at the time that is now, until none has more to do."""
        if self._is_running:
            return  # a store of a worker's: it is inside already
        self._is_running = True
        try:
            for _ in range(MAX_SLICES):
                self._wake_due()
                if not self._woken:
                    return
                for key in sorted(self._woken, key=self._rank):
                    self._slice(key)
            raise AssertionError("the workers do not come to rest")
        finally:
            self._is_running = False

    def _slice(self, key: int) -> None:
        """One slice. Who polls is shown a clock by which that has lasted long enough: it asks for a doorbell again."""
        self._woken.discard(key)
        progress = self._workers[key].run_slice(self.now_ns)
        while progress is Progress.POLL:
            progress = self._workers[key].run_slice(self.now_ns + AFTER_POLLING_NS)
        if progress is Progress.BUSY:
            self._woken.add(key)

    def _rank(self, key: int) -> tuple[bool, str]:
        name = self._workers[key].name
        return (name in self.unit_names) != self._unit_first, name

    def _wake(self, worker: Worker) -> None:
        self._workers[id(worker)] = worker
        self._woken.add(id(worker))

    def _wake_at(self, worker: Worker, when_ns: int) -> None:
        self._workers[id(worker)] = worker
        self._timers[id(worker)] = when_ns

    def _wake_due(self) -> None:
        for key in [key for key, when_ns in self._timers.items() if when_ns <= self.now_ns]:
            del self._timers[key]
            self._woken.add(key)

    def _next_ns(self) -> int | None:
        return min(self._timers.values(), default=None)
