"""One blocking connection of a hostile peer, and the messages its acts are made of."""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

TIMEOUT_S = 20.0  # of any one step; a server that does not survive an act does not answer
VERSION = wire.message(1, Command.VERSION, wire.Version(0, 0).pack() + b'{"capabilities":{}}\0')


class Peer:
    """A connected socket. Steps raise TimeoutError when nothing comes, EOFError when the server hung up."""

    def __init__(self, path: Path) -> None:
        self._ident = 1
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            # Blocking, because a UNIX socket's connect waits for room in the backlog only then.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(TIMEOUT_S), 0))
            self.sock.connect(str(path))
            self.sock.settimeout(TIMEOUT_S)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def negotiated(self) -> Self:
        """After VERSION; EOFError or ConnectionError when there is no room for another connection."""
        try:
            self.send(VERSION)
            self.reply()
        except BaseException:
            self.sock.close()
            raise
        return self

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """All of `data`; the fds go with its first bytes."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([data], rights)
        if sent < len(data):  # even no bytes at all are an error once the server has hung up
            self.sock.sendall(data[sent:])

    def message(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """One request."""
        self._ident = (self._ident + 1) & 0xFFFF
        self.send(wire.message(self._ident, command, payload, flags), fds)

    def request(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """One request; the payload of its answer, which must not be an error."""
        self.message(command, payload, fds)
        header, answer = self.reply()
        assert not header.flags & wire.ERROR, f"errno {header.errno}"
        return answer

    def refused(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """One request that must be answered with an error."""
        self.message(command, payload, fds, flags)
        header, _ = self.reply()
        assert header.flags & wire.ERROR, f"command {command} was accepted"

    def reply(self) -> tuple[wire.Header, bytes]:
        """The next message."""
        header = wire.Header.parse(self._exactly(wire.HEADER_NBYTES))
        return header, self._exactly(header.size - wire.HEADER_NBYTES)

    def lines(self, count: int) -> None:
        """Read `count` lines."""
        with self.sock.makefile("rb") as file:
            for _ in range(count):
                if not file.readline():
                    raise EOFError("the server hung up")

    def wait_for_the_end(self) -> None:
        """Read until the server hangs up."""
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(65536):
                pass

    def _exactly(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            piece = self.sock.recv(nbytes - len(data))
            if not piece:
                raise EOFError("the server hung up")
            data += piece
        return data


def dma_map(gpa: int, nbytes: int, offset: int = 0, flags: int = 3) -> bytes:
    """The payload of a DMA_MAP."""
    return wire.DmaMap(32, flags, offset, gpa, nbytes).pack()


def region_read(nbytes: int) -> bytes:
    """The payload of a REGION_READ of config space."""
    return wire.RegionAccess(0, wire.REGION_CONFIG, nbytes).pack()
