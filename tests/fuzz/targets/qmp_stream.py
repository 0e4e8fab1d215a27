"""QMP: what a client of the bridge's monitor sends, bytes of any kind in pieces of any size.

Input: a byte of choices (`_play`), one that says into how many pieces the rest is cut, the client's bytes. Each value
in the stream is answered once, by one line: in order unless commands may go out of band, with its id, an error with one
of QMP's five classes. Nothing vdev refuses reaches QEMU, and QEMU stops a VM only when vdev is frozen.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from qmp_bridge.bridge.bridge import Bridge
from qmp_bridge.bridge.own_commands import OwnCommands
from qmp_bridge.bridge.session import FREE_ERRORS, Session
from qmp_bridge.bridge.upstream import Upstream
from qmp_bridge.control_client import ControlClient
from qmp_bridge.errors import Refused
from qmp_bridge.json_stream import Broken, JsonStream, Value
from qmp_bridge.run_state import RunState
from tests.fuzz.line import play
from vdev.qapi.schema import schema

CLASSES = frozenset({"GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap"})
CAPABILITIES = b'{"execute": "qmp_capabilities"}'
REFUSED = frozenset({"migrate", "snapshot-save", "snapshot-load", "migrate-incoming"})
REFUSED_LINE = re.compile(r"[ \t\n\v\f\r]*(savevm|loadvm|migrate|migrate_incoming)(?=[ \t\n\v\f\r/\0]|\Z)")
WAIT_S = 5


class Qemu:
    """Executes everything at once."""

    def __init__(self, vdev: Vdev) -> None:
        self.running = True
        self._vdev = vdev

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        on_reply: Callable[[bytes], None],
        *,
        oob: bool = False,
        fds: Sequence[int] = (),
    ) -> bytes:
        line = arguments.get("command-line") if name == "human-monitor-command" else None
        assert name not in REFUSED, "QEMU would save or load what it cannot"
        assert not isinstance(line, str) or not REFUSED_LINE.match(line), "QEMU would save or load what it cannot"
        assert name != "stop" or self._vdev.frozen, "the VM stops while vdev works"
        json.dumps(arguments).encode()
        if name in ("stop", "cont"):
            self.running = name == "cont"
        body = b'"return": []' if name.startswith("query-") else b'"return": {}'
        on_reply(body)
        return body


class Vdev:
    """Does everything at once, and knows whether it is frozen."""

    def __init__(self) -> None:
        self.frozen = False

    async def execute(self, command: str, **arguments: object) -> None:
        """freeze, thaw."""
        self.frozen = command == "freeze"

    async def ask(self, command: str, arguments: Mapping[str, object]) -> Any:
        """Any other command, which the schema has and vdev alone can answer."""
        assert not schema().commands[command].bridge_only
        if command == "query-status":
            raise Refused("DeviceNotFound", "it is away")
        return {"asked": sorted(arguments)}


async def _play(data: bytes) -> None:
    kind, npieces, stream = data[0], data[1] % 32 + 1, data[2:]
    stream = CAPABILITIES * (kind & 1) + stream
    pieces = _pieces(stream)
    if sum(isinstance(piece, Broken) for piece in pieces) >= FREE_ERRORS:
        return  # then each of them takes its time
    vdev = Vdev()
    qemu = None if kind & 2 else Qemu(vdev)
    lines = await _served(vdev, qemu, stream, npieces, oob=bool(kind & 4), nfds=kind >> 4)
    assert "QMP" in json.loads(lines[0])
    _check([json.loads(line) for line in lines[1:]], pieces, in_order=not kind & 4)


async def _served(vdev: Vdev, qemu: Qemu | None, stream: bytes, npieces: int, *, oob: bool, nfds: int) -> list[bytes]:
    """All lines the client gets, the greeting first."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    greeting = {"QMP": {"version": {}, "capabilities": ["oob"] * oob}}

    async def query_status() -> None:
        state.saw(qemu is None or qemu.running, change=False)

    async def plug(**arguments: object) -> object:
        return {}

    with ours:
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            state = RunState(cast(ControlClient, vdev), query_status)
            own = OwnCommands({"endpoint-plug": plug, "endpoint-unplug": plug}, vdev.ask)
            bridge = Bridge(own, state, tasks, fatal=True)
            if qemu is not None:
                bridge.connected(cast(Upstream, qemu))
            session = Session(theirs, greeting, bridge, lambda line: None)
            bridge.sessions.add(session)
            tasks.create_task(session.run())
            await _send(ours, stream, npieces, nfds)
            received = b""
            while chunk := await asyncio.get_running_loop().sock_recv(ours, 1 << 20):
                received += chunk
    assert received.endswith(b"\r\n")
    return received[:-2].split(b"\r\n")


async def _send(sock: socket.socket, stream: bytes, npieces: int, nfds: int) -> None:
    """The stream in pieces, file descriptors with the first of them, and its end."""
    step = len(stream) // npieces + 1
    for at in range(0, len(stream), step):
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(nfds)] if not at else []
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with suppress(ConnectionError):
                sock.sendmsg([stream[at : at + step]], rights)
        finally:
            for fd in fds:
                os.close(fd)
        await asyncio.sleep(0)
    sock.shutdown(socket.SHUT_WR)


def _pieces(stream: bytes) -> list[Value | Broken]:
    """What is in the stream, fed at once."""
    reader, found = JsonStream(), list[Value | Broken]()
    reader.feed(stream)
    while (piece := reader.pull()) is not None:
        found.append(piece)
    return found


def _check(replies: list[dict[str, Any]], pieces: list[Value | Broken], *, in_order: bool) -> None:
    assert len(replies) == len(pieces), "one answer each"
    for reply in replies:
        assert len({"return", "error"} & set(reply)) == 1
        assert not set(reply) - {"return", "error", "id"}
        if "error" in reply:
            assert set(reply["error"]) == {"class", "desc"}
            assert reply["error"]["class"] in CLASSES
            assert isinstance(reply["error"]["desc"], str)
    wanted = [_id_of(piece) for piece in pieces]
    found = [json.dumps(reply["id"], sort_keys=True) if "id" in reply else "" for reply in replies]
    assert found == wanted if in_order else sorted(found) == sorted(wanted), "another id"


def _id_of(piece: Value | Broken) -> str:
    """The id to be sent back as JSON text; empty for none."""
    if isinstance(piece, Value) and isinstance(piece.value, dict) and "id" in piece.value:
        return json.dumps(piece.value["id"], sort_keys=True)
    return ""


def one_input(data: bytes) -> None:
    """Play one client at a new bridge."""
    if len(data) >= 2:
        play(partial(_play, data))


def seeds() -> Iterator[bytes]:
    """Commands of QEMU's and of ours, with arguments and ids; what is no command; strings of all kinds."""
    own = schema().prefix
    commands = ["query-status", "stop", "cont", "query-commands", "query-qmp-schema", "getfd", "migrate", "nonsense"]
    commands += [own + name for name in schema().commands]
    for number, name in enumerate(commands):
        request = {"execute": name, "arguments": {"unit": "iommu0"} if number % 2 else {}, "id": number}
        yield bytes([1, number % 3]) + json.dumps(request).encode()
    lines = [{"execute": "human-monitor-command", "arguments": {"command-line": line}} for line in (" savevm x", "s")]
    yield b"\1\0" + "\n".join(map(json.dumps, lines)).encode()
    yield b"\2\0" + CAPABILITIES + b'{"execute": "query-status", "id": null}'
    enable = b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": [1, {"a": 1.5e3}]}'
    yield b"\4\3" + enable + b'{"exec-oob": "query-status", "id": "\\u20ac\\"\\n"}{"exec-oob": 1}'
    yield b"\4\0" + enable * 2 + b'{"execute": "a", "exec-oob": "b"}'
    yield b"\1\7" + b"{'execute': 'query-status', 'id': 'it\\'s'} [1, -0, 1e5, true, null] 'x' nul "
    yield b"\1\7" + b'{"a": "a", "a": 1} @ } ]'
    yield b"\x31\1" + b'{"execute": "getfd", "arguments": {"fdname": "x"}}{"execute": "add-fd"}'
    yield (
        b"\0\0"
        + b'{"execute": "query-status"}{"id": 1}{"execute": 5, "id": 2}{"execute": "x", "arguments": [], "y": 1}'
    )
