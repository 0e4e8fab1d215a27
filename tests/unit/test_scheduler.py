"""The scheduler: fairness, sleep, and a worker that breaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from vdev.functions.base import Progress, Worker
from vdev.transports.scheduler import Scheduler


class Scripted:
    """A worker that does what its list says, then is IDLE; `trace` is shared to see the order."""

    def __init__(self, name: str, script: list[Progress | Callable[[], Progress]], trace: list[str]) -> None:
        self.name = name
        self.script = script
        self.trace = trace

    def run_slice(self, now_ns: int) -> Progress:
        self.trace.append(self.name)
        step = self.script.pop(0) if self.script else Progress.IDLE
        return step if isinstance(step, Progress) else step()


@asynccontextmanager
async def running(scheduler: Scheduler) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scheduler.run())
        yield
        task.cancel()


def broken() -> Progress:
    raise ZeroDivisionError("a bug of ours")


async def passes(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_active_workers_take_turns_until_idle() -> None:
    trace: list[str] = []
    scheduler = Scheduler()
    first = Scripted("a", [Progress.BUSY, Progress.POLL], trace)
    second = Scripted("b", [Progress.BUSY], trace)

    async with running(scheduler):
        scheduler.wake(first)
        scheduler.wake(second)
        await passes()

    assert trace == ["a", "b", "a", "b", "a"]


async def test_waking_twice_runs_once_a_round() -> None:
    trace: list[str] = []
    scheduler = Scheduler()
    worker = Scripted("a", [], trace)

    async with running(scheduler):
        scheduler.wake(worker)
        scheduler.wake(worker)
        await passes()

    assert trace == ["a"]


async def test_a_wake_during_a_slice_outlasts_its_idle() -> None:
    trace: list[str] = []
    scheduler = Scheduler()
    worker = Scripted("a", [], trace)

    def kicked_meanwhile() -> Progress:
        scheduler.wake(worker)
        return Progress.IDLE

    worker.script.append(kicked_meanwhile)
    async with running(scheduler):
        scheduler.wake(worker)
        await passes()

    assert trace == ["a", "a"]


async def test_others_on_the_loop_run_while_a_worker_is_busy() -> None:
    scheduler = Scheduler()
    trace: list[str] = []
    served = asyncio.Event()
    worker = Scripted("a", [Progress.BUSY] * 1000, trace)

    async with running(scheduler):
        scheduler.wake(worker)
        asyncio.get_running_loop().call_soon(served.set)
        await served.wait()

    assert len(trace) < 10


async def test_an_idle_scheduler_costs_no_cpu() -> None:
    scheduler = Scheduler()
    async with running(scheduler):
        await passes()
        before = time.process_time()
        await asyncio.sleep(0.2)
        spent = time.process_time() - before

    assert spent < 0.02
    assert scheduler.slices == 0


async def test_a_worker_that_raises_is_logged_once_removed_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    trace: list[str] = []
    reported: list[tuple[Worker, Exception]] = []
    scheduler = Scheduler(on_crash=lambda worker, error: reported.append((worker, error)))

    bad = Scripted("bad", [broken], trace)
    good = Scripted("good", [Progress.BUSY], trace)
    with caplog.at_level(logging.ERROR):
        async with running(scheduler):
            scheduler.wake(bad)
            scheduler.wake(good)
            await passes()
            scheduler.wake(bad)
            await passes()

    assert trace == ["bad", "good", "good"]
    assert [(worker.name, type(error)) for worker, error in reported] == [("bad", ZeroDivisionError)]
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is not None
    assert scheduler.describe()["crashed"] == ["bad"]


async def test_a_forgiven_worker_runs_again() -> None:
    trace: list[str] = []
    scheduler = Scheduler()
    worker = Scripted("a", [broken], trace)

    async with running(scheduler):
        scheduler.wake(worker)
        await passes()
        scheduler.forgive(worker)
        scheduler.wake(worker)
        await passes()

    assert trace == ["a", "a"]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Alarmed(Scripted):
    """Tells the test when it ran, and at what time."""

    def __init__(self, name: str) -> None:
        super().__init__(name, [], [])
        self.ran = asyncio.Event()
        self.times: list[int] = []

    def run_slice(self, now_ns: int) -> Progress:
        self.times.append(now_ns)
        self.ran.set()
        return super().run_slice(now_ns)


async def test_a_worker_runs_at_its_time_and_not_before() -> None:
    clock = Clock()
    scheduler = Scheduler(clock_ns=clock)
    sleeper, other = Alarmed("sleeper"), Alarmed("other")

    async with running(scheduler):
        scheduler.wake_at(sleeper, 50)
        scheduler.wake(other)
        await passes()
        early = list(sleeper.times)
        clock.now_ns = 50
        await sleeper.ran.wait()
        await passes()

    assert early == []
    assert sleeper.times == [50]
    assert scheduler.describe()["timers"] == []


async def test_a_sleeping_scheduler_notices_an_earlier_time() -> None:
    scheduler = Scheduler()
    late, soon = Alarmed("late"), Alarmed("soon")

    async with running(scheduler):
        scheduler.wake_at(late, time.monotonic_ns() + 3600 * 10**9)
        await passes()
        scheduler.wake_at(soon, time.monotonic_ns() + 1)
        await soon.ran.wait()

    assert late.times == []
    assert scheduler.describe()["timers"] == ["late"]


async def test_the_last_time_a_worker_gave_counts() -> None:
    clock = Clock()
    scheduler = Scheduler(clock_ns=clock)
    worker = Alarmed("a")
    scheduler.wake_at(worker, 10)
    scheduler.wake_at(worker, 30)

    async with running(scheduler):
        clock.now_ns = 20
        await passes()
        early = list(worker.times)
        clock.now_ns = 30
        await worker.ran.wait()

    assert early == []
    assert worker.times == [30]


async def test_a_reset_forgets_the_time() -> None:
    clock = Clock()
    scheduler = Scheduler(clock_ns=clock)
    worker, other = Alarmed("a"), Alarmed("b")
    scheduler.wake_at(worker, 10)
    scheduler.wake_at(other, 20)

    async with running(scheduler):
        scheduler.forgive(worker)
        clock.now_ns = 20
        await other.ran.wait()

    assert worker.times == []


async def test_a_time_in_the_past_is_now() -> None:
    clock = Clock()
    clock.now_ns = 100
    scheduler = Scheduler(clock_ns=clock)
    worker = Alarmed("a")

    async with running(scheduler):
        scheduler.wake_at(worker, 10)
        await worker.ran.wait()

    assert worker.times == [100]


async def test_a_crashed_worker_is_not_woken_by_its_time() -> None:
    clock = Clock()
    scheduler = Scheduler(clock_ns=clock)
    trace: list[str] = []
    worker = Scripted("bad", [broken], trace)

    async with running(scheduler):
        scheduler.wake_at(worker, 10)
        scheduler.wake(worker)
        await passes()
        clock.now_ns = 10
        scheduler.wake(Alarmed("other"))
        await passes()

    assert trace == ["bad"]
    assert scheduler.describe()["timers"] == []
