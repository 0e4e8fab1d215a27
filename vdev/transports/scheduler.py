"""Runs the functions' workers in short slices inside the one event loop, in turn with its sockets.

Threads would not do: one that spins starves the others through the interpreter lock. While any worker is active the
loop is polled between rounds; when none is, the scheduler waits on an event and costs nothing.

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
        self._awake = asyncio.Event()
        self._paused = False
        self.slices = 0

    def wake(self, worker: Worker) -> None:
        """`worker` has something to do. Cheap, idempotent, allowed inside a slice; no effect on one that crashed."""
        if id(worker) not in self._crashed:
            self._active[id(worker)] = worker
            if not self._paused:
                self._awake.set()

    @property
    def paused(self) -> bool:
        """Whether no slice runs until `resume`."""
        return self._paused

    def pause(self) -> None:
        """Run no slice from now on, not even the rest of a round; who is woken runs after `resume`. Idempotent."""
        self._paused = True

    def resume(self) -> None:
        """Go on where `pause` interrupted. Idempotent."""
        self._paused = False
        if self._active:
            self._awake.set()

    def forgive(self, worker: Worker) -> None:
        """Let a crashed worker run again when it is woken (its function was reset)."""
        self._crashed.pop(id(worker), None)

    async def run(self) -> None:
        """Run slices until cancelled."""
        while True:
            if self._paused or not self._active:
                self._awake.clear()
                await self._awake.wait()
                continue
            self._round()
            await asyncio.sleep(0)  # one pass of the loop: sockets are served between rounds

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "paused": self._paused,
            "slices": self.slices,
            "active": [worker.name for worker in self._active.values()],
            "crashed": [worker.name for worker in self._crashed.values()],
        }

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
