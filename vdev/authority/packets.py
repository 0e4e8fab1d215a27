"""Packets over a SOCK_SEQPACKET socket in an event loop, with the fds that come along."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable

from vdev.authority.messages import MAX_PACKET_NBYTES

MAX_QUEUED = 2048  # packets for a peer that does not read; one with more is given up
MAX_FDS = 4  # taken in with a packet, so that they can be closed
TURN = 32  # packets of one peer before others have their turn
_FLAGS = socket.MSG_CMSG_CLOEXEC
_CUT = socket.MSG_TRUNC | socket.MSG_CTRUNC


class PacketLink:
    """Owns a connected socket. `take` gets each packet and its fds, and closes those; `ended` is called once, last.

    With `is_patient` nothing is read while the peer does not take what is queued for it: its speed bounds the queue.
    Only one end of a connection may be so, or both could wait for each other.
    """

    def __init__(
        self,
        sock: socket.socket,
        take: Callable[[bytes, list[int]], None],
        ended: Callable[[str], None],
        *,
        is_patient: bool = False,
    ) -> None:
        self.sock = sock
        self._take = take
        self._ended = ended
        self._is_patient = is_patient
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self.is_open = True
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    @property
    def is_congested(self) -> bool:
        """Whether something waits for the peer to read."""
        return bool(self._queue)

    def send(self, data: bytes, fd: int | None = None) -> None:
        """Queue one packet; `fd` is duplicated where it has to wait. Nothing happens once the link has ended."""
        if not self.is_open:
            return
        if not self._queue and self._try_send(data, [] if fd is None else [fd]):
            return
        if not self.is_open:
            return
        if len(self._queue) >= MAX_QUEUED:
            self.end(f"{MAX_QUEUED} packets wait for it")
            return
        if not self._queue:
            self._loop.add_writer(self.sock, self._writable)
            if self._is_patient:
                self._loop.remove_reader(self.sock)
        self._queue.append((data, [] if fd is None else [os.dup(fd)]))

    def _try_send(self, data: bytes, fds: list[int]) -> bool:
        try:
            socket.send_fds(self.sock, [data], fds)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True  # it is closed: what was said before that is to be read first, the end comes after it
        except OSError as error:
            self.end(error.strerror or "the connection broke")
            return False
        return True

    def _writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            if not self._try_send(data, fds):
                return
            self._queue.popleft()
            _close_all(fds)
        self._loop.remove_writer(self.sock)
        if self._is_patient:
            self._loop.add_reader(self.sock, self._readable)

    def _readable(self) -> None:
        for _ in range(TURN):
            try:
                data, fds, flags, _ = socket.recv_fds(self.sock, MAX_PACKET_NBYTES, MAX_FDS, _FLAGS)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it closed without reading all: what it said comes after that
            except OSError as error:
                self.end(error.strerror or "the connection broke")
                return
            if not data or flags & _CUT:
                _close_all(fds)
                self.end("it hung up" if not data else "a packet is too long, or has too many fds")
                return
            self._take(data, fds)
            if not self.is_open or (self._is_patient and self._queue):
                return

    def end(self, why: str) -> None:
        """Close the connection; idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        self.sock.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self._ended(why)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
