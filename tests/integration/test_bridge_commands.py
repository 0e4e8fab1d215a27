"""The bridge in front of a real QEMU: replies, events, file descriptors, our own commands, and QEMU's end."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from qmp_bridge.bridge import output, server
from tests.support.monitor_lab import WAIT_S, Client, Lab, bridge_between, client, lab
from tests.support.real_qemu import real_qemu
from vdev.qapi.schema import schema

NO_FD = "No file descriptor supplied via SCM_RIGHTS"


@pytest.fixture
async def monitors(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path) as found:
        yield found


class FdClient:
    """A blocking client that sends file descriptors as QMPClient.send_fd_scm does: with a blank, before the command."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(path)
        self.lines = self.sock.makefile("rb")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, execute: str, **arguments: object) -> dict[str, Any]:
        self.sock.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode())
        while "event" in (message := json.loads(self.lines.readline())):
            pass
        return dict(message)

    def send_fd(self, fd: int) -> None:
        socket.send_fds(self.sock, [b" "], [fd])

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


def with_pipe(path: str) -> dict[str, Any]:
    """What becomes of file descriptors of two clients at one monitor; `open` says which ends QEMU has kept open."""
    one, other = FdClient(path), FdClient(path)
    read, write = os.pipe()
    try:
        one.send_fd(write)
        stolen = other.ask("getfd", fdname="mine")
        taken = one.ask("getfd", fdname="mine")
        os.close(write)
        closed = one.ask("closefd", fdname="mine")
        at_end = os.read(read, 1)
        return {"stolen": stolen, "taken": taken, "closed": closed, "at_end": at_end}
    finally:
        os.close(read)
        one.close()
        other.close()


def fd_sets(path: str) -> list[dict[str, Any]]:
    """add-fd, query-fdsets, remove-fd, add-fd without one."""
    person = FdClient(path)
    try:
        person.send_fd(0)
        added = person.ask("add-fd", opaque="ours")
        number = added["return"]["fdset-id"]
        return [
            {"keys": sorted(added["return"])},
            {"sets": [len(found["fds"]) for found in person.ask("query-fdsets")["return"]]},
            person.ask("remove-fd", **{"fdset-id": number}),
            person.ask("add-fd"),
        ]
    finally:
        person.close()


def unused_fd(path: str) -> None:
    """A client that sends one and leaves."""
    person = FdClient(path)
    person.send_fd(0)
    person.ask("query-name")
    person.close()


def refused_with_fd(path: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """A getfd that QEMU refuses although a descriptor came; then one of another client without any."""
    one, other = FdClient(path), FdClient(path)
    read, write = os.pipe()
    try:
        one.send_fd(write)
        os.close(write)
        refused = one.ask("getfd", fdname=5)  # refused before it takes what came with it
        return refused, other.ask("getfd", fdname="theirs"), os.read(read, 1)
    finally:
        os.close(read)
        one.close()
        other.close()


async def test_a_file_descriptor_reaches_qemu_with_its_clients_command_and_no_other(monitors: Lab) -> None:
    seen = await asyncio.to_thread(with_pipe, monitors.bridged)
    assert seen["stolen"]["error"]["desc"] == NO_FD
    assert seen["taken"] == seen["closed"] == {"return": {}}
    assert seen["at_end"] == b""  # nobody has it open any more, the bridge neither


async def test_a_file_descriptor_that_qemu_refused_is_closed_and_nobody_elses(monitors: Lab) -> None:
    refused, theirs, at_end = await asyncio.to_thread(refused_with_fd, monitors.bridged)
    assert "error" in refused
    assert theirs["error"]["desc"] == NO_FD
    assert at_end == b""


async def test_fd_sets_work_as_on_qemus_own_monitor(monitors: Lab) -> None:
    ours = await asyncio.to_thread(fd_sets, monitors.bridged)
    qemus = await asyncio.to_thread(fd_sets, monitors.direct)
    assert ours == qemus


async def nobody_is_connected(monitors: Lab) -> None:
    """Wait until the bridge has seen that its clients have left."""
    if monitors.server._serving:
        await asyncio.wait(monitors.server._serving, timeout=WAIT_S)


async def test_no_file_descriptor_is_left_open(monitors: Lab) -> None:
    await asyncio.to_thread(fd_sets, monitors.bridged)
    await nobody_is_connected(monitors)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await asyncio.to_thread(fd_sets, monitors.bridged)
        await asyncio.to_thread(with_pipe, monitors.bridged)
        await asyncio.to_thread(unused_fd, monitors.bridged)
    await nobody_is_connected(monitors)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_replies_keep_their_order_whoever_answers(monitors: Lab) -> None:
    names = ["query-name", "__org.vdev_query-units", "migrate", "stop", "nope", "query-status", "cont"] * 5
    monitors.vdev.answers["query-units"] = {"return": []}
    async with client(monitors.bridged) as person:
        person.send(b"".join(json.dumps({"execute": name, "id": at}).encode() for at, name in enumerate(names)))
        assert [(await person.reply())["id"] for _ in names] == list(range(len(names)))


async def test_events_come_to_everybody_as_qemu_wrote_them_and_before_the_reply(monitors: Lab) -> None:
    async with client(monitors.bridged) as one, client(monitors.bridged) as other, client(monitors.direct) as direct:
        await one.ask("cont")
        await one.ask("stop")
        heard = [[await person.event(name) for name in ("RESUME", "STOP")] for person in (other, direct)]
    assert [event["event"] for event in one.events] == ["RESUME", "STOP"]
    assert one.events == heard[0] == heard[1]


async def test_a_client_that_has_not_negotiated_hears_of_nothing(monitors: Lab) -> None:
    async with client(monitors.bridged) as one, client(monitors.bridged, negotiate=False) as silent:
        await one.ask("cont")
        await one.ask("stop")
        assert "return" in await silent.receive_after(b'{"execute": "qmp_capabilities"}')
        assert silent.events == []


async def test_vdevs_events_come_with_the_prefix(monitors: Lab) -> None:
    async with client(monitors.bridged) as person:
        await monitors.vdev.followed.wait()
        monitors.vdev.tell("FAULTS_DROPPED", unit="iommu0", total=3)
        event = await person.event("__org.vdev_FAULTS_DROPPED")
    assert event["data"] == {"unit": "iommu0", "total": 3}
    assert event["timestamp"] == {"seconds": 1, "microseconds": 2}


async def test_our_commands_are_checked_by_the_schema_and_answered_by_vdev(monitors: Lab) -> None:
    monitors.vdev.answers["query-units"] = {"return": [{"unit": "iommu0"}]}
    monitors.vdev.answers["set-bypass"] = {"error": {"class": "DeviceNotFound", "desc": "no unit"}}
    async with client(monitors.bridged) as person:
        units = await person.ask("__org.vdev_query-units")
        unknown = await person.ask("__org.vdev_query-units", x=1)
        refused = await person.ask("__org.vdev_set-bypass", bypass=True)
        hidden = await person.ask("__org.vdev_freeze")
    assert units == {"return": [{"unit": "iommu0"}]}
    assert unknown["error"]["desc"] == "Parameter 'x' is unexpected"
    assert refused["error"] == {"class": "DeviceNotFound", "desc": "no unit"}
    assert hidden["error"]["class"] == "CommandNotFound"
    assert hidden["error"]["desc"] == "The command __org.vdev_freeze has not been found"


async def test_every_command_of_the_bridges_own_is_answered_by_it(monitors: Lab) -> None:
    names = [schema().prefix + name for name, command in schema().commands.items() if command.bridge_only]
    async with client(monitors.bridged) as person:
        replies = [await person.ask(name) for name in names]
    assert len(names) == 2
    assert [reply["error"]["desc"] for reply in replies] == ["Parameter 'name' is missing"] * 2


async def test_qemus_descriptions_hold_ours_as_well_and_nothing_twice(monitors: Lab) -> None:
    async with client(monitors.bridged) as ours, client(monitors.direct) as qemus:
        for command in ("query-commands", "query-qmp-schema"):
            merged, plain = await ours.ask(command), await qemus.ask(command)
            names = [entry["name"] for entry in merged["return"]]
            own = names[len(plain["return"]) :]
            assert "__org.vdev_query-units" in own
            assert len(set(names)) == len(names)


async def test_out_of_band_commands_overtake_what_waits_for_vdev(monitors: Lab) -> None:
    monitors.vdev.silent = True
    async with client(monitors.bridged, oob=True) as person:
        person.send(b'{"execute": "__org.vdev_query-units", "id": 1}')
        person.send(b'{"exec-oob": "yank", "arguments": {"instances": []}, "id": 2}')
        assert (await person.reply())["id"] == 2


async def test_a_vdev_that_says_nothing_is_told_once_and_again_when_it_answers(
    monitors: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmp_bridge.bridge.vdev_link.STALLED_SECONDS", 0.1)
    monkeypatch.setattr("qmp_bridge.bridge.vdev_link.PING_SECONDS", 0.05)
    async with client(monitors.bridged) as person:
        monitors.vdev.silent = True
        stalled = await person.event("__org.vdev_BACKEND_STALLED")
        monitors.vdev.silent = False
        await person.event("__org.vdev_BACKEND_RESUMED")
    assert "does not answer" in stalled["data"]["reason"]
    assert not [event for event in person.events if event["event"].endswith("STALLED")]


async def test_whatever_several_clients_send_at_once_vdev_is_as_qemu_in_the_end(monitors: Lab) -> None:
    async def hammer(path: str, last: str) -> None:
        async with client(path) as person:
            for command in ("stop", "cont") * 10 + (last,):
                person.send(json.dumps({"execute": command}).encode())
            for _ in range(21):
                assert await person.reply() == {"return": {}}

    await asyncio.gather(*(hammer(monitors.bridged, last) for last in ("stop", "cont", "stop")))
    async with client(monitors.bridged) as person:
        status = (await person.ask("query-status"))["return"]
        assert monitors.vdev.frozen is not status["running"]


async def test_no_stop_leaves_qemu_stopped_and_vdev_thawed_when_it_is_answered(monitors: Lab) -> None:
    async with client(monitors.bridged) as one, client(monitors.bridged) as other:
        for _ in range(20):
            other.send(b'{"execute": "cont"}')
            await one.ask("stop")
            running = (await one.ask("query-status"))["return"]["running"]
            await other.reply()
            assert running or monitors.vdev.frozen


async def test_a_stop_that_vdev_does_not_confirm_does_not_reach_qemu(tmp_path: Path) -> None:
    with real_qemu(tmp_path, "behind", "direct") as paths:
        async with bridge_between(paths["behind"], tmp_path, keep=True) as found, client(found.bridged) as person:
            await person.ask("cont")
            found.vdev.answers["freeze"] = {"error": {"class": "GenericError", "desc": "no"}}
            reply = await person.ask("stop")
            status = await person.ask("query-status")
    assert "stop was not executed" in reply["error"]["desc"]
    assert status["return"]["running"]


async def test_a_client_that_does_not_read_is_cut_off_and_the_others_lose_nothing(
    monitors: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MAX_NBYTES", 1 << 20)
    async with client(monitors.bridged) as deaf, client(monitors.bridged) as person:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await monitors.vdev.followed.wait()
        for at in range(64):
            monitors.vdev.tell("FAULTS_DROPPED", unit="x" * 65536, total=at)
            assert (await person.event("__org.vdev_FAULTS_DROPPED"))["data"]["total"] == at
        assert "return" in await person.ask("query-name")
    assert any("does not read: cut off" in line for line in monitors.said)


async def test_a_client_that_does_not_read_gets_nothing_more_executed(monitors: Lab) -> None:
    async with client(monitors.bridged) as deaf, client(monitors.bridged) as person:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        deaf.send(b'{"execute": "query-qmp-schema"}' * 1000)
        for _ in range(20):
            assert "return" in await person.ask("query-status")
        session = max(monitors.server._bridge.sessions, key=lambda found: found.output.nbytes)  # type: ignore[union-attr]
        assert session.output.nbytes < output.PAUSE_NBYTES + (1 << 20)


async def test_there_is_a_limit_to_clients(monitors: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 1)
    async with client(monitors.bridged):
        reader, writer = await asyncio.open_unix_connection(monitors.bridged)
        assert await reader.read() == b""
        writer.close()
    assert monitors.said == ["monitor: refused a client: there are 1"]


async def test_a_client_that_closes_its_sending_side_gets_its_answers_and_then_the_end(monitors: Lab) -> None:
    async with client(monitors.bridged) as person:
        person.send(b'{"execute": "query-name", "id": 1}{"execute": "query-status", "id": 2}')
        person.writer.write_eof()
        replies = [json.loads(line) for line in (await person.reader.read()).splitlines()]
    assert [reply["id"] for reply in replies] == [1, 2]


async def _until_end(person: Client) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await person.reader.read()).splitlines()]


async def test_when_qemu_ends_its_clients_are_told_and_end_as_well(monitors: Lab) -> None:
    async with client(monitors.bridged) as one, client(monitors.bridged) as other:
        one.send(b'{"execute": "quit", "id": 1}')
        heard = [await _until_end(person) for person in (one, other)]
    assert {"return": {}, "id": 1} in heard[0]
    assert [messages[-1]["event"] for messages in heard] == ["__org.vdev_QEMU_LOST"] * 2


async def test_where_a_qemu_may_return_its_clients_stay(tmp_path: Path) -> None:
    with real_qemu(tmp_path, "behind") as paths:
        async with bridge_between(paths["behind"], tmp_path, keep=True) as found, client(found.bridged) as person:
            found.vdev.answers["query-units"] = {"return": []}
            person.send(b'{"execute": "quit", "id": 1}')
            await person.event("__org.vdev_QEMU_LOST")
            gone = await person.ask("query-name")
            units = await person.ask("__org.vdev_query-units")
            async with client(found.bridged) as newcomer:
                greeted = "QMP" in newcomer.greeting
            with real_qemu(tmp_path, "behind"):
                await person.event("__org.vdev_QEMU_RETURNED")
                back = await person.ask("query-name")
    assert gone["error"]["desc"].startswith("QEMU is gone: ")
    assert units == {"return": []}
    assert greeted
    assert back == {"return": {}}


async def test_what_qemu_had_not_answered_when_it_went_is_answered_with_an_error(tmp_path: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}}\r\n')
        await reader.readline()
        writer.write(b'{"return": {}}\r\n')
        while b"query-name" not in await reader.readline():
            pass
        writer.close()

    qemu = await asyncio.start_unix_server(deaf, tmp_path / "qemu.sock")
    async with (
        bridge_between(str(tmp_path / "qemu.sock"), tmp_path, keep=True) as found,
        client(found.bridged) as person,
    ):
        reply = await person.ask("query-name")
        qemu.close()
    assert reply["error"]["desc"].startswith("QEMU is gone: it closed its monitor")
