"""The control socket: a local JSON-lines server over a table of commands it is given."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from vdev.control.messages import MAX_LINE_NBYTES, ErrorBody, Request
from vdev.errors import VdevError
from vdev.limited_log import LimitedLog
from vdev.qapi.check import check_arguments
from vdev.qapi.model import Command as Described
from vdev.qapi.schema import schema

MAX_CLIENTS = 64
MAX_CLIENTS_OF_ONE_PROCESS = 16
ACCEPT_RETRY_S = 0.5  # when this process is out of fds or memory
_SHORT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the command table: what answers it, called with the arguments the schema lets through.

    A command with a `stream` is the last of its connection: lines follow its answer until either side ends. One that
    `knows_caller` gets a `caller`, too. An `answer` that has to ask somebody else is a coroutine function: meanwhile
    other clients are served, and this one's next command waits.
    """

    answer: Callable[..., object]
    stream: Callable[..., AsyncGenerator[bytes, None]] | None = None
    knows_caller: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end, as the kernel says. pid 0: it is not visible from here."""

    pid: int
    uid: int


NOBODY = Caller(0, -1)


@dataclass(slots=True)
class _Answer:
    """The reply to one request, what is to be streamed after it, and what is still to be waited for."""

    reply: dict[str, object]
    lines: AsyncGenerator[bytes, None] | None = None
    late: Coroutine[Any, Any, object] | None = None

    def refuse(self, text: str, error_class: str = "GenericError") -> None:
        self.reply["error"] = ErrorBody(error_class, text)

    async def complete(self) -> None:
        """Wait until the reply is whole."""
        if self.late is None:
            return
        try:
            self.reply["return"] = await self.late
        except VdevError as error:
            self.refuse(str(error))


class ControlServer:
    """Serves `commands` on a listening UNIX socket (its owner's) to whom `admits` says (default: us, root).

    Each of them is in `described`, the schema's commands, which says what arguments it takes; KeyError if not.
    """

    def __init__(
        self,
        listener: socket.socket,
        commands: Mapping[str, Command],
        admits: Callable[[socket.socket], bool] | None = None,
        described: Mapping[str, Described] | None = None,
    ) -> None:
        known = schema().commands if described is None else described
        self._listener = listener
        self._commands = {name: (known[name], command) for name, command in commands.items()}
        self._bridge_only = {name for name, command in known.items() if command.bridge_only}
        self._accepting: asyncio.Task[None] | None = None
        self._clients: dict[asyncio.Task[None], int] = {}  # each with its process
        self._limited_log = LimitedLog()
        self._admits = admits or _is_own_user

    async def start(self) -> None:
        """Accept clients from now on."""
        self._listener.listen()
        self._listener.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Accept no more, and end the connected clients."""
        if self._accepting is not None:
            self._accepting.cancel()
        for client in self._clients:
            client.cancel()
        self._limited_log.flush(log)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno not in _SHORT_OF_RESOURCES:
                    raise
                self._note(logging.ERROR, "accepts failed", f"cannot accept: {error.strerror}")
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        """Serve the client behind `sock` in a task of its own, or close it with a line in the log."""
        pid, uid = _peer_of(sock)
        own = sum(other == pid for other in self._clients.values())
        problem = ""
        if not self._admits(sock):
            problem = f"user {uid} may not connect"
        elif own >= MAX_CLIENTS_OF_ONE_PROCESS:
            problem = f"it has {own} connections, a process may have {MAX_CLIENTS_OF_ONE_PROCESS}"
        elif len(self._clients) >= MAX_CLIENTS:
            problem = f"there are {len(self._clients)} clients, at most {MAX_CLIENTS} are served"
        if problem:
            self._note(logging.WARNING, "clients refused", f"refused a client (pid {pid}): {problem}")
            sock.close()
            return
        # The task is ours: one that asyncio makes logs a traceback when the loop ends under it.
        client = asyncio.get_running_loop().create_task(self._client(sock, Caller(pid, uid)))
        self._clients[client] = pid
        client.add_done_callback(self._clients.pop)

    async def _client(self, sock: socket.socket, caller: Caller) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_NBYTES)
        except BaseException:
            sock.close()
            raise
        try:
            while line := await reader.readline():
                if not line.strip():
                    continue
                answer = self._answer(line, caller)
                await answer.complete()
                writer.write(_encode(answer.reply) + b"\n")
                await writer.drain()
                if answer.lines is not None:
                    await _stream(answer.lines, reader, writer)
                    return
                await asyncio.sleep(0)  # many lines may have come at once, and others have their turn between them
        except (ConnectionError, ValueError, RecursionError) as error:
            self._note(logging.INFO, "clients dropped", f"client (pid {caller.pid}) dropped: {error}")
        finally:
            writer.close()

    def _note(self, level: int, kind: str, text: str) -> None:
        self._limited_log.log(log, level, ("control", kind), f"control: {text}")

    def answer(self, line: bytes) -> bytes:
        """The reply to one request line, without its newline; never raises on what the line contains.

        Of a command that has to wait for somebody else: that it does.
        """
        answer = self._answer(line, NOBODY)
        if answer.late is not None:
            answer.late.close()
            answer.refuse("it takes time, and nobody waits for it here")
        return _encode(answer.reply)

    def _answer(self, line: bytes, caller: Caller) -> _Answer:
        try:
            request = _decode_request(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _Answer({"error": ErrorBody("GenericError", f"not a request: {error}")})
        answer = _Answer({"id": request.id} if request.id is not None else {})
        if request.execute not in self._commands:
            answer.refuse(self._not_found(request.execute), "CommandNotFound")
            return answer
        described, command = self._commands[request.execute]
        try:
            arguments = check_arguments(described, request.arguments)
            known = {"caller": caller} if command.knows_caller else {}
            returned = command.answer(**arguments, **known)
            if isinstance(returned, Coroutine):
                answer.late = returned
                return answer
            answer.reply["return"] = returned
            answer.lines = command.stream(**arguments) if command.stream is not None else None
        except VdevError as error:
            answer.refuse(str(error))
        return answer

    def _not_found(self, name: str) -> str:
        if name in self._bridge_only:
            return f"{name} needs QEMU's monitor, too: ask the bridge's monitor.sock (qmp-bridge attach makes one)"
        return f"no command '{name}'; there are: {', '.join(sorted(self._commands))}"


async def _stream(
    lines: AsyncGenerator[bytes, None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Write what comes until it ends or the client hangs up; a client that only listens is noticed by its end alone."""

    async def pump() -> None:
        async with aclosing(lines):
            async for chunk in lines:
                writer.write(chunk)
                await writer.drain()

    pumping, listening = asyncio.ensure_future(pump()), asyncio.ensure_future(_hang_up(reader))
    tasks = (pumping, listening)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not pumping.done():
            writer.transport.abort()  # what a reader has not taken by now it never will
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _hang_up(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 12):
        pass  # whatever a client says while it listens is not a command any more


def _is_own_user(peer: socket.socket) -> bool:
    return _peer_of(peer)[1] in (0, os.geteuid())


def _peer_of(sock: socket.socket) -> tuple[int, int]:
    """pid (0: not visible from here) and uid of the process that connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid
