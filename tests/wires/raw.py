"""A socket and the bytes on it, nothing of our wire code in between: where a layout is checked it is written out."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from tests.support.vfio_scene import FakeFunction, Served, served

WAIT_S = 5.0
NEGOTIATE = b"\x09\x00\x01\x00\x14\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + bytes(4)  # VERSION 0.0, id 9


class Wire:
    """One connection: whole byte strings out and in. TimeoutError after 5 s."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, path: Path) -> Self:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        return cls(sock)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """In one sendmsg."""
        socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)

    async def receive(self, nbytes: int) -> bytes:
        """Exactly so many bytes, fewer at the end of the stream."""
        data = b""
        async with asyncio.timeout(WAIT_S):
            while len(data) < nbytes:
                piece = await self._loop.sock_recv(self._sock, nbytes - len(data))
                if not piece:
                    break
                data += piece
        return data

    async def vfio_reply(self) -> bytes:
        """One vfio-user message, header and all."""
        header = await self.receive(16)
        return header + await self.receive(struct.unpack_from("<I", header, 4)[0] - 16)

    async def vhost_reply(self) -> bytes:
        """One vhost-user message, header and all."""
        header = await self.receive(12)
        return header + await self.receive(struct.unpack_from("<I", header, 8)[0])

    async def ask(self, data: bytes, fds: Sequence[int] = ()) -> bytes:
        """One vfio-user message and the next that comes back."""
        self.send(data, fds)
        return await self.vfio_reply()

    def close(self) -> None:
        self._sock.close()


@asynccontextmanager
async def negotiated(directory: Path, function: FakeFunction | None = None) -> AsyncIterator[tuple[Wire, Served]]:
    """A raw connection to a served function, after VERSION without text."""
    async with served(directory, function) as scene:
        wire = await Wire.connect(scene.path)
        try:
            assert await wire.ask(NEGOTIATE) == NEGOTIATE[:8] + b"\x01" + bytes(11)
            yield wire, scene
        finally:
            wire.close()


def words(layout: str, *values: int | bytes) -> bytes:
    """Little-endian fields."""
    return struct.pack("<" + layout, *values)


def request(command: int, payload: bytes = b"", ident: int = 7, flags: int = 0) -> bytes:
    """A vfio-user message, written out."""
    return words("HHIII", ident, command, 16 + len(payload), flags, 0) + payload


def answer(command: int, payload: bytes = b"", ident: int = 7) -> bytes:
    """The reply that belongs to `request`."""
    return request(command, payload, ident, 1)


def refusal(command: int, code: int, ident: int = 7) -> bytes:
    """The error that belongs to `request`: 16 bytes, flags reply and error, a positive errno."""
    return words("HHIII", ident, command, 16, 0x21, code)
