"""The control socket's answers and the event history."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.support.schema import SMALL
from vdev.control.event_log import HISTORY_NEVENTS, LOGGED_PER_SECOND, EventLog, as_plain, describe
from vdev.control.messages import MAX_LINE_NBYTES
from vdev.control.server import Command, ControlServer
from vdev.errors import VdevError
from vdev.iommu.events import FaultRaised, ReplyHeld, RequestHandled
from vdev.wire import viommu as wire


def _refuse() -> object:
    raise VdevError("not today")


COMMANDS = {
    "query-answer": Command(lambda: 42),
    "query-since": Command(lambda since=0, from_=7: [since, from_]),
    "query-never": Command(_refuse),
}


def ask(line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as unused:
        reply: dict[str, Any] = json.loads(ControlServer(unused, COMMANDS, described=SMALL.commands).answer(line))
    return reply


def test_a_command_is_answered_with_its_id() -> None:
    assert ask(b'{"execute": "query-answer", "id": [1, "x"]}') == {"id": [1, "x"], "return": 42}


def test_an_unknown_command_is_refused_and_the_known_ones_are_named() -> None:
    reply = ask(b'{"execute": "query-nothing"}')

    assert reply["error"]["class"] == "CommandNotFound"
    assert "query-answer" in reply["error"]["desc"]


def test_an_unknown_argument_is_refused_by_name() -> None:
    reply = ask(b'{"execute": "query-since", "arguments": {"sinse": 3}}')

    assert reply["error"] == {"class": "GenericError", "desc": "Parameter 'sinse' is unexpected"}


def test_an_argument_of_the_wrong_type_is_refused() -> None:
    reply = ask(b'{"execute": "query-since", "arguments": {"since": "x"}}')

    assert reply["error"]["desc"] == "Invalid parameter type for 'since', expected: integer"


def test_arguments_arrive_as_keywords_and_defaults_are_the_commands_own() -> None:
    given = ask(b'{"execute": "query-since", "arguments": {"from": 3}}')

    assert given["return"] == [0, 3]


def test_a_command_that_needs_qemu_too_is_sent_to_the_bridge() -> None:
    reply = ask(b'{"execute": "plug"}')

    assert reply["error"]["class"] == "CommandNotFound"
    assert "qmp-bridge attach" in reply["error"]["desc"]


def test_a_command_without_a_description_is_a_bug() -> None:
    with socket.socket(socket.AF_UNIX) as unused, pytest.raises(KeyError):
        ControlServer(unused, {"undescribed": Command(lambda: {})}, described=SMALL.commands)


def test_what_is_not_json_is_refused_and_not_fatal() -> None:
    assert ask(b"\xff{")["error"]["class"] == "GenericError"


def test_a_refusal_of_the_command_itself_carries_its_reason() -> None:
    assert "not today" in ask(b'{"execute": "query-never"}')["error"]["desc"]


async def test_one_client_too_long_for_a_line_does_not_stop_another(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "c"))
    listener.listen()
    server = ControlServer(listener, COMMANDS, described=SMALL.commands)
    await server.start()
    bad_reader, bad_writer = await asyncio.open_unix_connection(str(tmp_path / "c"))
    good_reader, good_writer = await asyncio.open_unix_connection(str(tmp_path / "c"))

    bad_writer.write(b"x" * (MAX_LINE_NBYTES + 2))
    good_writer.write(b'{"execute": "query-answer"}\n')

    assert json.loads(await good_reader.readline()) == {"return": 42}
    assert await bad_reader.read() == b""
    for writer in (bad_writer, good_writer):
        writer.close()
    server.close()
    listener.close()


def test_the_history_is_bounded_and_numbered() -> None:
    events = EventLog(lambda: 1.5)

    for iova in range(HISTORY_NEVENTS + 10):
        events.emit(FaultRaised("u", 0x100, "not-mapped", 1, iova))

    kept = events.since(0, 10**6, frozenset())
    assert [kept[0]["seq"], kept[-1]["seq"], len(kept)] == [10, HISTORY_NEVENTS + 9, HISTORY_NEVENTS]


def test_events_are_chosen_by_kind_and_the_newest_are_kept() -> None:
    events = EventLog(lambda: 0.0)
    for iova in range(3):
        events.emit(FaultRaised("u", 0x100, "not-mapped", 1, iova))
        events.emit(RequestHandled("u", "MAP", 0))

    found = events.since(0, 2, frozenset({"FaultRaised"}))

    assert [event["iova"] for event in found] == [1, 2]


def test_a_request_reads_as_a_line_with_its_answer() -> None:
    request = wire.Detach(wire.T_DETACH, bytes(3), 2, 0x100)
    event = RequestHandled("iommu0", "DETACH", wire.S_RANGE, request, "not aligned")

    assert describe(event) == "iommu0 DETACH domain=2 endpoint=01:00.0 -> RANGE (not aligned)"


def test_a_request_is_plain_data_with_its_fields() -> None:
    request = wire.Detach(wire.T_DETACH, bytes(3), 2, 0x100)

    plain = as_plain(RequestHandled("iommu0", "DETACH", wire.S_OK, request))

    assert (plain["event"], plain["endpoint"], plain["domain"]) == ("RequestHandled", 0x100, 2)
    assert plain["fields"] == {"domain": 2, "endpoint": 0x100}


def test_an_answer_that_was_held_reads_as_a_line_and_is_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    events = EventLog(lambda: 0.0)
    with caplog.at_level("INFO", "vdev.event"):
        events.emit(ReplyHeld("iommu0", "DETACH", {"domain": 2, "endpoint": 0x100}, 1_500_000, 2))

    (kept,) = events.query()
    assert kept["text"] == ("iommu0 DETACH domain=2 endpoint=01:00.0 answered after 1.500 ms, for 2 accesses in flight")
    assert json.loads(json.dumps(kept))["held_ns"] == 1_500_000
    assert caplog.records == []


def test_a_storm_of_events_is_kept_but_not_all_logged(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    events = EventLog(lambda: now[0])

    with caplog.at_level(logging.INFO, logger="vdev.event"):
        for iova in range(LOGGED_PER_SECOND + 7):
            events.emit(FaultRaised("u", 0x100, "not-mapped", 1, iova))
        now[0] += 1.5
        events.emit(FaultRaised("u", 0x100, "not-mapped", 1, 0xABC000))

    assert len(caplog.records) == LOGGED_PER_SECOND + 2
    assert "7 more events" in caplog.text
    assert "0xabc000" in caplog.records[-1].message
    assert len(events.since(0, 10**6, frozenset())) == LOGGED_PER_SECOND + 8


def test_a_fault_names_the_endpoint_by_its_bdf() -> None:
    assert "endpoint=01:00.0" in describe(FaultRaised("iommu0", 0x100, "no-write", 2, 0x2000))


async def _streaming(path: Path, lines: list[bytes], ended: asyncio.Event) -> tuple[ControlServer, socket.socket]:
    """A server whose one command streams `lines` and then waits for ever; `ended` is set when that is over."""

    async def stream() -> AsyncGenerator[bytes, None]:
        try:
            for line in lines:
                yield line
            await asyncio.Event().wait()
        finally:
            ended.set()

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = ControlServer(listener, {"follow": Command(lambda: "begins", stream=stream)}, described=SMALL.commands)
    await server.start()
    return server, listener


async def test_a_stream_follows_its_answer_and_ends_with_its_client(tmp_path: Path) -> None:
    ended = asyncio.Event()
    server, listener = await _streaming(tmp_path / "c", [b"one\n", b"two\n"], ended)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "c"))
    writer.write(b'{"execute": "follow"}\n')

    assert [await reader.readline() for _ in range(3)] == [b'{"return":"begins"}\n', b"one\n", b"two\n"]
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        await ended.wait()
        await asyncio.gather(*server._clients, return_exceptions=True)
    server.close()
    listener.close()


async def test_a_client_that_never_reads_is_ended_with_the_server(tmp_path: Path) -> None:
    ended = asyncio.Event()
    server, listener = await _streaming(tmp_path / "c", [b"x" * (1 << 20)] * 64, ended)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "c"), limit=1024)
    writer.write(b'{"execute": "follow"}\n')
    assert await reader.read(1) == b"{"  # it is streaming now, and nobody reads on

    server.close()
    async with asyncio.timeout(5):
        await ended.wait()
        await asyncio.gather(*server._clients, return_exceptions=True)
    writer.close()
    await writer.wait_closed()
    listener.close()

    assert not server._clients


async def _wait(since: int = 0, from_: int = 7) -> object:
    await asyncio.sleep(0)
    if since:
        raise VdevError("not in time")
    return [from_]


async def test_a_command_that_has_to_wait_is_answered_when_it_can_be_and_in_order(tmp_path: Path) -> None:
    lines = [
        b'{"execute": "query-since", "id": 1}', b'{"execute": "query-since", "arguments": {"since": 1}, "id": 2}',
        b'{"execute": "query-answer", "id": 3}',
    ]  # fmt: skip
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        server = ControlServer(listener, {**COMMANDS, "query-since": Command(_wait)}, described=SMALL.commands)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
        writer.write(b"\n".join(lines) + b"\n")
        async with asyncio.timeout(5):
            answers = [json.loads(await reader.readline()) for _ in lines]
        writer.close()
        server.close()
        await asyncio.sleep(0)

    assert answers[0] == {"id": 1, "return": [7]}
    assert (answers[1]["id"], answers[1]["error"]["desc"]) == (2, "not in time")
    assert answers[2] == {"id": 3, "return": 42}


def test_a_command_that_has_to_wait_is_not_answered_where_nobody_waits() -> None:
    with socket.socket(socket.AF_UNIX) as unused:
        server = ControlServer(unused, {"query-since": Command(_wait)}, described=SMALL.commands)
        reply = json.loads(server.answer(b'{"execute": "query-since"}'))

    assert "takes time" in reply["error"]["desc"]
