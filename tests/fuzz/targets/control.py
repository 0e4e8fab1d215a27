"""The control socket: what a client sends, lines of any bytes in pieces of any size.

Input: one byte that says into how many pieces the rest is cut, then the client's bytes. Each line that is not blank is
answered by one line, in order, with its id, and with a class and words where it is refused. What a command is handed is
what the schema says, found by a check of its own (`_fits`). A command with a stream is the last of its connection.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any

from tests.fuzz.line import play
from vdev.control.messages import MAX_LINE_NBYTES
from vdev.control.server import Command, ControlServer
from vdev.errors import ConfigError
from vdev.qapi.model import Builtin, Enum, ListOf, Struct, Type, python_name
from vdev.qapi.model import Command as Described
from vdev.qapi.schema import schema

CLASSES = ("GenericError", "CommandNotFound")
STREAMED = b'{"event": "X"}\n'
WAIT_S = 5
_RANGES = {"int": (-(1 << 63), (1 << 63) - 1), "uint32": (0, (1 << 32) - 1), "uint64": (0, (1 << 64) - 1)}


def _fits(wanted: Type, value: object) -> bool:
    """Whether a command may be handed `value`."""
    match wanted:
        case Builtin("any"):
            return True
        case Builtin("bool"):
            return isinstance(value, bool)
        case Builtin("number"):
            return isinstance(value, float) and abs(value) < float("inf")
        case Builtin("str"):
            return isinstance(value, str)
        case Builtin(name):
            low, high = _RANGES[name]
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        case Enum():
            return value in [known.name for known in wanted.values]
        case ListOf():
            return isinstance(value, list) and all(_fits(wanted.item, item) for item in value)
        case Struct():
            members = {member.name: member for member in wanted.members}
            return isinstance(value, dict) and all(
                member.optional if name not in value else _fits(member.type, value[name])
                for name, member in members.items()
            )


def _command(described: Described) -> Command:
    """A command that is answered with what it was handed, if that is right, and refused where it has no arguments."""

    def answer(**arguments: Any) -> object:
        known = {python_name(member.name): member for member in described.arguments}
        assert set(arguments) <= set(known), "an argument nobody described"
        for name, member in known.items():
            assert _fits(member.type, arguments[name]) if name in arguments else member.optional
        if not arguments and described.arguments:
            raise ConfigError(described.name, "nothing to do")
        return {"given": sorted(arguments)}

    async def stream(**arguments: Any) -> AsyncGenerator[bytes, None]:
        yield STREAMED
        await asyncio.sleep(0)
        yield STREAMED

    return Command(answer, stream if described.name.endswith("-follow") else None)


_COMMANDS = {name: _command(found) for name, found in schema().commands.items() if not found.bridge_only}


async def _play(data: bytes) -> None:
    npieces, sent = data[0] % 16 + 1, data[1:]
    ours, theirs = socket.socketpair()
    server = ControlServer(theirs, _COMMANDS)  # nobody else will connect
    expected = _expected(server, sent)
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    with ours:
        server._admit(theirs)
        step = len(sent) // npieces + 1
        for at in range(0, len(sent), step):
            try:
                ours.send(sent[at : at + step], socket.MSG_NOSIGNAL)
            except ConnectionError:  # a stream has ended the connection
                break
            await asyncio.sleep(0)
        ours.shutdown(socket.SHUT_WR)
        received = b""
        async with asyncio.timeout(WAIT_S):
            while chunk := await _receive(loop, ours):
                received += chunk
    server.close()
    if expected.endswith(STREAMED):  # it ends when the client says nothing more, perhaps before the last lines
        assert received.removesuffix(STREAMED).removesuffix(STREAMED) == expected[: -2 * len(STREAMED)]
    else:
        assert received == expected, "the answers to its lines, and nothing else"
    await asyncio.sleep(0)


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(sock, 1 << 20)
    except ConnectionError:
        return b""


def _expected(server: ControlServer, sent: bytes) -> bytes:
    """What a client that sends this is to receive."""
    found = b""
    for line in re.findall(rb"[^\n]*\n|[^\n]+", sent):
        if not line.strip():
            continue
        answer = server.answer(line)
        reply = _check(line, answer)
        found += answer + b"\n"
        if "return" in reply and json.loads(line)["execute"].endswith("-follow"):
            return found + STREAMED * 2
    return found


def _check(line: bytes, answer: bytes) -> dict[str, Any]:
    assert b"\n" not in answer
    reply: dict[str, Any] = json.loads(answer)
    assert set(reply) - {"id"} in ({"return"}, {"error"})
    if "error" in reply:
        assert reply["error"]["class"] in CLASSES
        assert reply["error"]["desc"]
        assert len(answer) < 2 * len(line) + 4096, "an error repeats what came"
    if "return" in reply:
        request = json.loads(line)
        assert reply.get("id") == request.get("id"), "another id"
    return reply


def one_input(data: bytes) -> None:
    """Play one client."""
    if 0 < len(data) < MAX_LINE_NBYTES:
        play(partial(_play, data))


def seeds() -> Iterator[bytes]:
    """Each command without arguments and with those of its examples; ids; several lines; what is no request."""
    for number, (name, described) in enumerate(schema().commands.items()):
        yield bytes([number]) + json.dumps({"execute": name, "id": number}).encode() + b"\n"
        arguments = {member.name: _some(member.type) for member in described.arguments}
        yield b"\0" + json.dumps({"execute": name, "arguments": arguments, "id": [name, None]}).encode() + b"\n"
    yield b"\3" + b'{"execute": "query-status"}\n\n{"execute": "nonsense", "id": {"a": 1.5}}\n{"id": 1}\n[]\nnull\n'
    yield b"\0" + b'{"execute": "events-follow"}\n{"execute": "query-status"}\n'
    yield b"\0" + b'{"execute": "\\ud800", "id": "\\u20ac"}\n{"execute": 1}\n{"execute": "freeze", "x": 1}\n\xff\n'


def _some(wanted: Type) -> Any:
    """A value of a type."""
    match wanted:
        case Builtin("str"):
            return "iommu0"
        case Builtin("bool"):
            return True
        case Builtin("any"):
            return {"a": 1}
        case Enum():
            return wanted.values[0].name
        case ListOf():
            return [_some(wanted.item)]
        case Struct():
            return {member.name: _some(member.type) for member in wanted.members}
    return 4096
