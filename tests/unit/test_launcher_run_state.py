"""When the launcher freezes and thaws the backend: events, answers, and stops on their way, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from qemu.qmp import QMPError

from qmp_bridge.errors import VmDied
from qmp_bridge.run_state import RunState


class FakeBackend:
    """Keeps what it was told; stands in for a ControlClient."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.gone = False

    async def execute(self, command: str, **arguments: object) -> Any:
        if self.gone:
            raise VmDied("the backend hung up")
        await self.answers.wait()
        self.told.append(command)


class Rig:
    """A follower between a fake backend and a QEMU whose state is `running`."""

    def __init__(self, running: bool = True) -> None:
        self.backend = FakeBackend()
        self.running = running
        self.state = RunState(self.backend, self.query)  # type: ignore[arg-type]

    async def query(self) -> None:
        await asyncio.sleep(0)
        self.state.saw(self.running, change=False)

    def qemu(self, running: bool) -> None:
        """QEMU stops or continues by itself, and says so."""
        self.running = running
        self.state.saw(running, change=True)

    async def told(self, expected: list[str]) -> bool:
        for _ in range(50):
            await asyncio.sleep(0)
        return self.backend.told == expected


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    following = asyncio.create_task(rig.state.follow())
    yield rig
    following.cancel()


async def test_a_vm_that_runs_needs_no_word(rig: Rig) -> None:
    assert await rig.told([])


async def test_a_vm_that_was_started_stopped_is_frozen_from_the_beginning() -> None:
    rig = Rig(running=False)
    following = asyncio.create_task(rig.state.follow())
    assert await rig.told(["freeze"])
    following.cancel()


async def test_whoever_stops_the_vm_it_is_frozen_and_thawed_with_it(rig: Rig) -> None:
    rig.qemu(False)
    assert await rig.told(["freeze"])
    rig.qemu(True)
    assert await rig.told(["freeze", "thaw"])


async def test_a_stop_freezes_before_it_reaches_qemu(rig: Rig) -> None:
    await rig.state.before_stop()
    before = list(rig.backend.told)
    rig.qemu(False)
    await rig.state.settle()

    assert before == ["freeze"]
    assert "thaw" not in rig.backend.told


async def test_a_stop_that_qemu_refused_thaws_again(rig: Rig) -> None:
    await rig.state.before_stop()
    await rig.state.settle()
    assert rig.backend.told == ["freeze", "thaw"]


async def test_an_old_answer_does_not_thaw_what_a_stop_on_its_way_has_frozen(rig: Rig) -> None:
    await rig.state.before_stop()
    rig.state.saw(True, change=False)
    assert await rig.told(["freeze"])


async def test_a_late_resume_does_not_outlast_the_reply_to_a_stop(rig: Rig) -> None:
    await rig.state.before_stop()
    rig.qemu(True)  # of a `cont` before it
    rig.running = False  # its own event is lost
    await rig.state.settle()

    assert rig.backend.told[-1] == "freeze"
    assert rig.state.frozen


async def test_settling_waits_for_the_backends_word(rig: Rig) -> None:
    rig.running = False
    rig.backend.answers.clear()
    settling = asyncio.create_task(rig.state.settle())
    await rig.told([])
    waited = not settling.done()
    rig.backend.answers.set()
    await settling

    assert waited
    assert rig.backend.told[0] == "freeze"


async def test_settling_repairs_a_backend_that_somebody_else_thawed(rig: Rig) -> None:
    rig.qemu(False)
    await rig.told(["freeze"])
    await rig.state.settle()
    assert rig.backend.told == ["freeze", "freeze"]


async def test_a_change_while_the_backend_is_told_is_not_lost(rig: Rig) -> None:
    rig.backend.answers.clear()
    rig.qemu(False)
    await rig.told([])
    rig.qemu(True)
    rig.backend.answers.set()
    assert await rig.told(["freeze", "thaw"])


async def test_a_backend_that_is_gone_ends_the_vm() -> None:
    rig = Rig(running=False)
    rig.backend.gone = True
    with pytest.raises(VmDied):
        await rig.state.follow()


@pytest.mark.parametrize("error", [QMPError, EOFError, ConnectionResetError])
async def test_a_qemu_that_is_going_is_no_reason_to_fail(error: Callable[[], Exception]) -> None:
    rig = Rig()

    async def query() -> None:
        raise error()

    rig.state = RunState(rig.backend, query)  # type: ignore[arg-type]
    await rig.state.settle()
    assert rig.backend.told == ["thaw"]
