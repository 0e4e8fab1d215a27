"""Steps on the host: whatever a test asks and a step does, the answer is data or a reason, and nothing else ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from qemu.qmp import QMPClient, QMPError

from guest_tests.boot import Control, ControlError
from guest_tests.runner.steps import FILE, HostSide, answer
from qmp_bridge.up import RunningVm

STEPS = """\
import asyncio, sys
import pytest

async def add(vm, a, b):
    return a + b

async def fails(vm):
    assert 1 == 2, "one is not two"

async def breaks(vm):
    raise KeyError("missing")

async def leaves(vm):
    sys.exit(3)

async def gives_up(vm):
    pytest.fail("it was too much")

async def asks(vm):
    return await vm.control("query-iommu")

async def returns_an_object(vm):
    return object()

async def hangs(vm):
    await asyncio.sleep(100)

def ordinary(vm):
    return 1
"""


class FakeQmp:
    """Remembers what was executed; refuses `refused`."""

    def __init__(self) -> None:
        self.executed: list[str] = []

    async def execute(self, command: str, arguments: object = None) -> object:
        self.executed.append(command)
        if command == "refused":
            raise QMPError("no such command")
        return {"status": "running"}


class FakeVm:
    def __init__(self) -> None:
        self.qmp = FakeQmp()


class FakeControl:
    async def execute(self, command: str, **arguments: Any) -> Any:
        if command == "refused":
            raise ControlError("refused: no")
        return {"command": command, **arguments}


@pytest.fixture
def side(tmp_path: Path) -> HostSide:
    (tmp_path / FILE).write_text(STEPS)
    return HostSide(cast(RunningVm, FakeVm()), cast(Control, FakeControl()), tmp_path)


def executed(side: HostSide) -> list[str]:
    qmp: QMPClient = side.vm.qmp
    return cast(FakeQmp, qmp).executed


async def step(side: HostSide, name: str, **arguments: Any) -> dict[str, Any]:
    return await answer(side, "step", {"name": name, "arguments": arguments})


async def test_a_step_gets_its_arguments_and_gives_its_result(side: HostSide) -> None:
    assert await step(side, "add", a=2, b=3) == {"answer": 5}


async def test_a_step_may_ask_vdev(side: HostSide) -> None:
    assert await step(side, "asks") == {"answer": {"command": "query-iommu"}}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fails", "fails: one is not two (host_steps.py, line 8)"),
        ("breaks", "breaks: KeyError: 'missing' (host_steps.py, line 11)"),
        ("leaves", "leaves: SystemExit: 3 (host_steps.py, line 14)"),
        ("gives_up", "gives_up: Failed: it was too much (host_steps.py, line 17)"),
        ("returns_an_object", "step: Object of type object is not JSON serializable"),
        ("ordinary", "has no `async def ordinary(vm, ...)`"),
        ("unknown", "has no `async def unknown(vm, ...)`"),
    ],
)
async def test_whatever_a_step_does_the_test_gets_the_reason(side: HostSide, name: str, problem: str) -> None:
    said = await step(side, name)
    assert list(said) == ["error"]
    assert problem in said["error"]


async def test_wrong_arguments_are_named(side: HostSide) -> None:
    assert "unexpected keyword argument 'c'" in (await step(side, "add", a=1, c=2))["error"]
    assert "unexpected keyword argument 'nonsense'" in (await answer(side, "pause", {"nonsense": 1}))["error"]


async def test_a_step_that_is_cancelled_is_cancelled(side: HostSide) -> None:
    task = asyncio.create_task(step(side, "hangs"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("text", ["import nothing_there", "this is no Python", "x = {}['k']", "raise OSError(5)"])
async def test_a_file_that_cannot_be_imported_is_a_reason(side: HostSide, text: str) -> None:
    (side.suite / FILE).write_text(text)
    assert "cannot be imported" in (await step(side, "add"))["error"]


async def test_without_a_file_there_are_no_steps(side: HostSide) -> None:
    (side.suite / FILE).unlink()
    assert (await step(side, "add"))["error"] == f"there is no {side.suite / FILE}"


async def test_what_nobody_knows_is_refused_with_what_there_is(side: HostSide) -> None:
    assert await answer(side, "dance", {}) == {"error": "the host knows no 'dance'; it knows control, qmp, pause, step"}


@pytest.mark.parametrize("what", ["control", "qmp"])
async def test_refusals_of_vdev_and_qemu_are_reasons(side: HostSide, what: str) -> None:
    said = await answer(side, what, {"command": "refused", "arguments": {}})
    assert "no" in said["error"]


@pytest.mark.parametrize("command", ["stop", "quit"])
async def test_what_nobody_could_undo_is_refused(side: HostSide, command: str) -> None:
    said = await answer(side, "qmp", {"command": command, "arguments": {}})
    assert f"{command} would leave nobody" in said["error"]
    assert executed(side) == []


async def test_a_pause_stops_and_goes_on(side: HostSide) -> None:
    assert await answer(side, "pause", {"seconds": 0}) == {"answer": None}
    assert executed(side) == ["stop", "cont"]


@pytest.mark.parametrize("seconds", [-1, 61])
async def test_a_pause_is_not_too_long(side: HostSide, seconds: float) -> None:
    assert "is not in 0..60" in (await answer(side, "pause", {"seconds": seconds}))["error"]
    assert json.dumps(executed(side)) == "[]"
