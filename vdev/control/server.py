"""The control socket: a local JSON-lines server over a table of commands it is given."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from vdev.control.messages import MAX_LINE_NBYTES, ErrorBody, Request
from vdev.errors import VdevError

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the command table: the type its arguments are checked against, and what answers it.

    A command with a `stream` is the last of its connection: lines follow its answer until either side ends.
    """

    arguments: type[msgspec.Struct]
    answer: Callable[[Any], object]
    stream: Callable[[Any], AsyncGenerator[bytes, None]] | None = None


class ControlServer:
    """Serves `commands` on a listening UNIX socket (its owner's) to processes of our own user, or root."""

    def __init__(self, listener: socket.socket, commands: Mapping[str, Command]) -> None:
        self._listener = listener
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept clients from now on."""
        self._server = await asyncio.start_unix_server(self._connected, sock=self._listener, limit=MAX_LINE_NBYTES)

    def close(self) -> None:
        """Accept no more, and end the connected clients."""
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The task is ours: one that asyncio makes logs a traceback when the loop ends under it.
        client = asyncio.get_running_loop().create_task(self._client(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not _is_own_user(writer):
                log.warning("control: refused a client of another user")
                return
            while line := await reader.readline():
                if not line.strip():
                    continue
                answer, lines = self._answer(line)
                writer.write(answer + b"\n")
                await writer.drain()
                if lines is not None:
                    await _stream(lines, reader, writer)
                    return
        except (ConnectionError, ValueError) as error:
            log.info("control: client dropped: %s", error)
        finally:
            writer.close()

    def answer(self, line: bytes) -> bytes:
        """The reply to one request line, without its newline; never raises on what the line contains."""
        return self._answer(line)[0]

    def _answer(self, line: bytes) -> tuple[bytes, AsyncGenerator[bytes, None] | None]:
        """The reply, and what is to be streamed after it."""
        stream = None
        try:
            request = _decode_request(line)
        except msgspec.DecodeError as error:
            return _encode({"error": ErrorBody("GenericError", f"not a request: {error}")}), None
        reply: dict[str, object] = {"id": request.id} if request.id is not None else {}
        command = self._commands.get(request.execute)
        if command is None:
            known = ", ".join(sorted(self._commands))
            reply["error"] = ErrorBody("CommandNotFound", f"no command '{request.execute}'; there are: {known}")
            return _encode(reply), None
        try:
            arguments = msgspec.convert(request.arguments, command.arguments)
            reply["return"] = command.answer(arguments)
            stream = command.stream(arguments) if command.stream is not None else None
        except (msgspec.ValidationError, VdevError) as error:
            reply["error"] = ErrorBody("GenericError", f"{request.execute}: {error}")
        return _encode(reply), stream


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


def _is_own_user(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", raw)
    return uid in (0, os.geteuid())
