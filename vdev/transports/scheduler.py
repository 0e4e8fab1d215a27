"""Runs the functions' workers in short slices inside the one event loop, in turn with its sockets.

Threads would not do: one that spins starves the others through the interpreter lock. While any worker is active the
loop is polled between rounds; when none is, the scheduler waits on an event and costs nothing. A worker may also ask to
be woken at a time: one a worker, so there are a few dozen at most, and the earliest is found by looking at all.

Slices are the only place where guest memory is touched, so `pause` is how a stopped VM's memory is kept as it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from vdev.functions.base import Progress, Worker

log = logging.getLogger(__name__)


class Scheduler:
    """Round robin over the active workers; `on_crash` hears of a worker whose slice raised (a bug of ours)."""

    def __init__(
        self,
        on_crash: Callable[[Worker, Exception], None] = lambda worker, error: None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._on_crash = on_crash
        self._clock_ns = clock_ns
        self._active: dict[int, Worker] = {}  # by id(): workers need not be hashable; in order of waking
        self._crashed: dict[int, Worker] = {}
        self._timers: dict[int, tuple[int, Worker]] = {}  # by id(): when, in ns of the clock
        self._next_ns: int | None = None  # the earliest of them
        self._awake = asyncio.Event()
        self._paused = False
        self.slices = 0

    def wake(self, worker: Worker) -> None:
        """`worker` has something to do. Cheap, idempotent, allowed inside a slice; no effect on one that crashed."""
        if id(worker) not in self._crashed:
            self._active[id(worker)] = worker
            self._awake.set()

    @property
    def paused(self) -> bool:
        """Whether no slice runs until `resume`."""
        return self._paused

    def pause(self) -> None:
        """Run no slice from now on, not even the rest of a round. Idempotent.

        Who is woken, and whose time comes, runs after `resume`.
        """
        self._paused = True

    def resume(self) -> None:
        """Go on where `pause` interrupted. Idempotent."""
        self._paused = False
        self._awake.set()

    def wake_at(self, worker: Worker, when_ns: int) -> None:
        """Wake `worker` once the clock shows `when_ns`. Takes the place of the time it gave before."""
        self._timers[id(worker)] = (when_ns, worker)
        self._timers_changed()

    def forgive(self, worker: Worker) -> None:
        """`worker`'s function was reset: if it crashed it may run again when it is woken, and its time is forgotten."""
        self._crashed.pop(id(worker), None)
        if self._timers.pop(id(worker), None) is not None:
            self._timers_changed()

    def forget(self, worker: Worker) -> None:
        """`worker` is gone for good."""
        self._active.pop(id(worker), None)
        self.forgive(worker)

    async def run(self) -> None:
        """Run slices until cancelled."""
        while True:
            if self._paused:
                self._awake.clear()
                await self._awake.wait()
                continue
            if self._next_ns is not None:
                self._wake_due(self._clock_ns())
            if not self._active:
                await self._sleep()
                continue
            self._round()
            await asyncio.sleep(0)  # one pass of the loop: sockets are served between rounds

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "paused": self._paused,
            "slices": self.slices,
            "active": [worker.name for worker in self._active.values()],
            "timers": [worker.name for _, worker in self._timers.values()],
            "crashed": [worker.name for worker in self._crashed.values()],
        }

    async def _sleep(self) -> None:
        """Until somebody is woken, or it is time for the earliest timer, or there is an earlier one."""
        self._awake.clear()
        if self._next_ns is None:
            await self._awake.wait()
            return
        delay_s = (self._next_ns - self._clock_ns()) / 1e9
        alarm = asyncio.get_running_loop().call_later(max(delay_s, 0), self._awake.set)
        try:
            await self._awake.wait()
        finally:
            alarm.cancel()

    def _wake_due(self, now_ns: int) -> None:
        due = [worker for when_ns, worker in self._timers.values() if when_ns <= now_ns]
        for worker in due:
            del self._timers[id(worker)]
            self.wake(worker)
        if due:
            self._timers_changed()

    def _timers_changed(self) -> None:
        before, self._next_ns = self._next_ns, min((when for when, _ in self._timers.values()), default=None)
        if self._next_ns is not None and (before is None or self._next_ns < before):
            self._awake.set()

    def _round(self) -> None:
        """One slice for each worker that is active now."""
        for key, worker in list(self._active.items()):
            if self._paused:
                return
            # Out first, so that a wake() during the slice outlasts an IDLE at its end.
            del self._active[key]
            self.slices += 1
            try:
                progress = worker.run_slice(self._clock_ns())
            except Exception as error:  # one function's bug must not stop the VM's other functions
                log.exception("worker %s crashed and is stopped", worker.name)
                self._active.pop(key, None)
                self._crashed[key] = worker
                self._on_crash(worker, error)
                continue
            if progress is not Progress.IDLE:
                self._active[key] = worker
