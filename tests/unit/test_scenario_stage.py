"""Events on the shelf of a scenario's stage, and work done beside a guest that may go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from qemu.qmp import Message

from guest_tests.runner.guest import Guest, GuestGone
from guest_tests.scenario import stage
from guest_tests.scenario.stage import Shelf


def event(name: str, **data: Any) -> Message:
    """An event as the monitor sends it."""
    return Message({"event": name, "data": data} if data else {"event": name})


async def put(shelf: Shelf, *events: Message) -> None:
    """They come."""
    for one in events:
        await shelf.put(one)


async def test_an_event_that_came_before_is_as_good_as_one_that_comes() -> None:
    shelf = Shelf()
    await put(shelf, event("STOP"), event("__org.vdev_FAULT_INJECTED", rule="r1"))

    stop = await shelf.take("STOP", lambda data: True)
    ours = await shelf.take("FAULT_INJECTED", lambda data: data["rule"] == "r1")
    coming = asyncio.ensure_future(shelf.take("RESUME", lambda data: True))
    await put(shelf, event("RESUME"))

    assert (stop, ours, await coming) == ({}, {"rule": "r1"}, {})


async def test_an_event_is_taken_once() -> None:
    shelf = Shelf()
    await put(shelf, event("STOP"))
    await shelf.take("STOP", lambda data: True)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await shelf.take("STOP", lambda data: True)


async def test_no_more_events_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_EVENTS", 3)
    shelf = Shelf()
    await put(shelf, *(event("STOP", n=n) for n in range(5)))

    assert [(await shelf.take("STOP", lambda data: True))["n"] for _ in range(3)] == [2, 3, 4]
    assert shelf.history == ()


def guest_with(task: asyncio.Task[None]) -> Guest:
    """A guest whose task is `task`."""
    machine: Any = SimpleNamespace(id="a", suite=None)
    guest = Guest(machine)
    guest._task = task
    return guest


async def test_work_beside_a_guest_is_cancelled_when_the_guest_goes() -> None:
    ended: list[str] = []
    guest = guest_with(asyncio.create_task(asyncio.sleep(0.01)))

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("work")

    guest.death = None
    with pytest.raises(GuestGone):
        await guest.beside(work())

    assert ended == ["work"]


async def test_work_beside_a_guest_that_lives_has_its_result() -> None:
    living = asyncio.create_task(asyncio.sleep(60))
    guest = guest_with(living)

    async def work() -> int:
        return 3

    assert await guest.beside(work()) == 3
    assert await guest.gone_within(0) is None
    living.cancel()
