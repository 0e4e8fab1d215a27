"""The loop in a thread of its own: results and errors come back, and its end waits for what still runs."""

from __future__ import annotations

import asyncio

import pytest

from guest_tests.runner.loop import LoopThread


def test_results_and_errors_come_back() -> None:
    async def give(value: int) -> int:
        return value

    async def fail() -> None:
        raise ValueError("no")

    loop = LoopThread()
    try:
        assert loop.run(give(5)) == 5
        with pytest.raises(ValueError, match="no"):
            loop.run(fail())
    finally:
        loop.close()


def test_closing_cancels_what_runs_and_waits_until_it_has_cleaned_up() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.01)
            done.append("cleaned up")

    async def start() -> None:
        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    loop = LoopThread()
    loop.run(start())
    loop.close()
    loop.close()

    assert done == ["cleaned up"]
