"""The user's monitor of a launched VM, with a stand-in QEMU and a real backend behind it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from qmp_bridge.control_client import ControlClient
from qmp_bridge.up import RunningVm, bring_up
from tests.integration import test_bring_up_errors as launcher
from vdev.config import parse_config

runtime_dir = launcher.runtime_dir
WAIT_S = 5.0
BACKEND = (sys.executable, "-m", "vdev")


@asynccontextmanager
async def launched(part: str = "silent") -> AsyncIterator[RunningVm]:
    options = launcher.options(part)
    config = parse_config(launcher.TEXT.replace("boot_timeout: 1.5", "boot_timeout: 60"), "test.yaml")
    async with bring_up(config, replace(options, backend=BACKEND)) as vm:
        yield vm


@pytest.fixture
async def vm() -> AsyncIterator[RunningVm]:
    async with launched() as vm:
        yield vm


class Client:
    """A person with a socket: bytes out, JSON lines in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            message: dict[str, Any] = json.loads(await self.reader.readline())
        return message

    async def ask(self, **request: object) -> dict[str, Any]:
        """The next reply that is no event."""
        self.writer.write(json.dumps(request).encode())
        while "event" in (message := await self.receive()):
            pass
        return message


@asynccontextmanager
async def client(vm: RunningVm, negotiate: bool = True) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_unix_connection(vm.monitor_path)
    try:
        person = Client(reader, writer)
        assert "QMP" in await person.receive()
        if negotiate:
            await person.ask(execute="qmp_capabilities")
        yield person
    finally:
        writer.close()


async def frozen(vm: RunningVm) -> bool:
    """Whether the backend says that it is."""
    control = ControlClient(vm.control_path)
    try:
        return "frozen" in await control.execute("query-status")
    finally:
        control.close()


async def becomes(vm: RunningVm, expected: bool) -> None:
    async with asyncio.timeout(WAIT_S):
        while await frozen(vm) != expected:
            pass


async def test_a_refused_command_never_reaches_qemu_and_the_others_keep_their_order(vm: RunningVm) -> None:
    async with client(vm) as person:
        person.writer.write(
            b'{"execute": "query-status", "id": 1}{"execute": "migrate", "arguments": {"uri": "exec:cat"}, "id": 2}'
            b'{"execute": "query-name", "id": {"a": [3]}}\n{"execute":"human-monitor-command",'
            b'"arguments":{"command-line":" savevm x"},"id":"4"}{"execute": "x-executed"}'
        )
        replies = [await person.receive() for _ in range(5)]

    assert [reply.get("id") for reply in replies] == [1, 2, {"a": [3]}, "4", None]
    assert [reply["error"]["desc"].partition(":")[0] for reply in replies if "error" in reply] == [
        "vdev refuses migrate",
        "vdev refuses savevm",
    ]
    assert all("migrate" != name != "human-monitor-command" for name in replies[-1]["return"])


async def test_before_negotiation_qemus_own_answer_is_given(vm: RunningVm) -> None:
    async with client(vm, negotiate=False) as person:
        reply = await person.ask(execute="stop", id=1)
        was_frozen = await frozen(vm)
    assert reply["error"]["class"] == "CommandNotFound"
    assert reply["id"] == 1
    assert not was_frozen


async def test_a_client_has_its_answer_to_stop_and_cont_when_the_backend_has_followed(vm: RunningVm) -> None:
    seen = []
    async with client(vm) as person:
        for command in ("stop", "cont") * 5:
            reply = await person.ask(execute=command, id=command)
            seen.append((reply, await frozen(vm)))
    assert seen == [({"return": {}, "id": "stop"}, True), ({"return": {}, "id": "cont"}, False)] * 5


async def test_pipelined_stops_and_conts_end_in_the_last_ones_state(vm: RunningVm) -> None:
    async with client(vm) as person:
        person.writer.write(b'{"execute":"stop"}{"execute":"cont"}' * 20 + b'{"execute":"stop","id":"last"}')
        while (await person.receive()).get("id") != "last":
            pass
        assert await frozen(vm)


async def test_a_stop_that_qemu_could_not_read_reaches_nobody(vm: RunningVm) -> None:
    async with client(vm) as person:
        person.writer.write(b'{"execute": "stop", "id": "\\ud800"}')  # QEMU's parser refuses lone surrogates
        reply = await person.receive()
        was_frozen = await frozen(vm)
    control = ControlClient(vm.control_path)
    events = await control.execute("query-events", kinds=["RunStateChanged"])
    control.close()

    assert "parse error" in reply["error"]["desc"]
    assert not was_frozen
    assert events == []


async def test_a_vm_that_stops_by_itself_is_frozen(vm: RunningVm) -> None:
    await vm.qmp.execute("x-panic")
    await becomes(vm, True)
    await vm.qmp.execute("cont")
    assert not await frozen(vm)


async def test_a_vm_that_starts_stopped_is_frozen() -> None:
    async with launched("paused") as vm:
        await becomes(vm, True)


async def test_a_user_of_the_library_is_refused_with_the_same_reason(vm: RunningVm) -> None:
    with pytest.raises(ExecuteError, match="vdev refuses migrate: QEMU neither"):
        await vm.qmp.execute("migrate", {"uri": "exec:cat"})
    with pytest.raises(ExecuteError, match="vdev refuses loadvm: QEMU neither"):
        await vm.qmp.execute("human-monitor-command", {"command-line": "loadvm x"})


async def test_a_stop_by_a_user_of_the_library_freezes_first(vm: RunningVm) -> None:
    await vm.qmp.execute("stop")
    stopped = await frozen(vm)
    await vm.qmp.execute("cont")

    assert stopped
    assert not await frozen(vm)
    control = ControlClient(vm.control_path)
    (event, _) = await control.execute("query-events", kinds=["RunStateChanged"])
    control.close()
    assert event["by"] == "the launcher: QEMU's run state"


async def test_a_client_that_leaves_before_its_answer_leaves_the_backend_in_step(vm: RunningVm) -> None:
    async with client(vm, negotiate=False) as person:
        person.writer.write(b'{"execute": "stop"}')
        await person.writer.drain()
    async with client(vm) as person:
        status = await person.ask(execute="query-status")
        await becomes(vm, not status["return"]["running"])


async def test_clients_are_served_side_by_side_and_each_hears_of_the_events(vm: RunningVm) -> None:
    async with client(vm) as one, client(vm) as other:
        assert await one.ask(execute="stop", id=1) == {"return": {}, "id": 1}
        event = await other.receive()
        assert await other.ask(execute="cont", id=1) == {"return": {}, "id": 1}
    assert event["event"] == "STOP"


async def test_a_client_that_never_reads_holds_up_nobody_else(vm: RunningVm) -> None:
    async with client(vm) as person:
        drained = True
        while drained:
            person.writer.write(b'{"execute": "query-pci"}' * 1000)
            draining = asyncio.ensure_future(person.writer.drain())
            await asyncio.wait([draining], timeout=0.5)
            drained = draining.done()
        draining.cancel()
        await vm.qmp.execute("stop")
        assert await frozen(vm)
        await vm.qmp.execute("cont")
        assert not await frozen(vm)
        person.writer.transport.abort()


async def test_a_client_that_closes_its_sending_side_still_gets_its_answers(vm: RunningVm) -> None:
    async with client(vm) as person:
        person.writer.write(b'{"execute": "stop", "id": 1}')
        person.writer.write_eof()
        replies = [json.loads(line) for line in (await person.reader.read()).splitlines()]
    assert {"return": {}, "id": 1} in replies


async def test_the_socket_is_its_owners_alone(vm: RunningVm, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = stat.S_IMODE(os.stat(vm.monitor_path).st_mode)
    monkeypatch.setattr("qmp_bridge.bridge.listener.peer_uid", lambda sock: os.geteuid() + 1)
    reader, writer = await asyncio.open_unix_connection(vm.monitor_path)
    said = await reader.read()
    writer.close()

    assert mode == 0o600
    assert said == b""


async def test_the_qmp_library_works_through_it(vm: RunningVm) -> None:
    qmp = QMPClient("person")
    await qmp.connect(vm.monitor_path)
    try:
        assert await qmp.execute("query-status") == {"status": "running", "running": True}
        with pytest.raises(ExecuteError, match="vdev refuses snapshot-save"):
            await qmp.execute("snapshot-save", {"job-id": "x"})
    finally:
        await qmp.disconnect()
