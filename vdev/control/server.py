"""The control socket: a local JSON-lines server over a table of commands it is given."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
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
    """One row of the command table: the type its arguments are checked against, and what answers it."""

    arguments: type[msgspec.Struct]
    answer: Callable[[Any], object]


class ControlServer:
    """Serves `commands` on a listening UNIX socket (its owner's) to whom `admits` says (default: us, root)."""

    def __init__(
        self,
        listener: socket.socket,
        commands: Mapping[str, Command],
        admits: Callable[[socket.socket], bool] | None = None,
    ) -> None:
        self._listener = listener
        self._commands = commands
        self._admits = admits or _is_own_user
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
            if not self._admits(writer.get_extra_info("socket")):
                log.warning("control: refused a client of another user")
                return
            while line := await reader.readline():
                if line.strip():
                    writer.write(self.answer(line) + b"\n")
                    await writer.drain()
        except (ConnectionError, ValueError) as error:
            log.info("control: client dropped: %s", error)
        finally:
            writer.close()

    def answer(self, line: bytes) -> bytes:
        """The reply to one request line, without its newline; never raises on what the line contains."""
        try:
            request = _decode_request(line)
        except msgspec.DecodeError as error:
            return _encode({"error": ErrorBody("GenericError", f"not a request: {error}")})
        reply: dict[str, object] = {"id": request.id} if request.id is not None else {}
        command = self._commands.get(request.execute)
        if command is None:
            known = ", ".join(sorted(self._commands))
            reply["error"] = ErrorBody("CommandNotFound", f"no command '{request.execute}'; there are: {known}")
            return _encode(reply)
        try:
            arguments = msgspec.convert(request.arguments, command.arguments)
            reply["return"] = command.answer(arguments)
        except (msgspec.ValidationError, VdevError) as error:
            reply["error"] = ErrorBody("GenericError", f"{request.execute}: {error}")
        return _encode(reply)


def _is_own_user(peer: socket.socket) -> bool:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", raw)
    return uid in (0, os.geteuid())
