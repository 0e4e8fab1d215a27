"""What QEMU hands a vhost-user back end as descriptors: the rings' eventfds, and the socket for messages of our own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

from vdev.errors import MessageError
from vdev.transports.identity import peer_of
from vdev.transports.stream import close_connection, close_foreign, take_in
from vdev.wire import vhost_user as wire

CHANNEL_READS = 4  # from the back-end channel, where nothing is expected, before others have their turn


class RingFds:
    """Owns the kick, call and error eventfds of `count` rings; `on_kick` hears of doorbells from the event loop.

    A call while there is no eventfd is remembered and made when one comes. And the last call
    on an eventfd that is replaced may have been seen by nobody, so it is made again. At worst that is one interrupt too
    many for each new eventfd.
    """

    def __init__(self, count: int, on_kick: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_kick = on_kick
        self._kicks: list[int | None] = [None] * count
        self._calls: list[int | None] = [None] * count
        self._errors: list[int | None] = [None] * count
        self._called: set[int] = set()  # rings that were ever called

    def set_kick(self, index: int, fd: int | None) -> None:
        """Watch `fd`, which is ours now, instead of what was there; None: no doorbell."""
        self._replace(self._kicks, index, fd)
        if fd is not None:
            self._loop.add_reader(fd, self._kicked, index, fd)

    def set_call(self, index: int, fd: int | None) -> None:
        """Signal `fd`, which is ours now, for used buffers; None: the driver polls."""
        self._replace(self._calls, index, fd)
        if fd is not None and index in self._called:
            _signal(fd)

    def set_error(self, index: int, fd: int | None) -> None:
        """Signal `fd`, which is ours now, when the ring breaks."""
        self._replace(self._errors, index, fd)

    def call(self, index: int) -> None:
        """Tell the driver of used buffers in ring `index`."""
        self._called.add(index)
        fd = self._calls[index]
        if fd is not None:
            _signal(fd)

    def error(self, index: int) -> None:
        """Tell QEMU that ring `index` is broken; it takes note and does nothing."""
        fd = self._errors[index]
        if fd is not None:
            _signal(fd)

    def close(self) -> None:
        """Close them all."""
        self._called.clear()
        for index in range(len(self._kicks)):
            for fds in (self._kicks, self._calls, self._errors):
                self._replace(fds, index, None)

    def _kicked(self, index: int, fd: int) -> None:
        os.set_blocking(fd, False)  # QEMU shares the flag, see _signal
        with contextlib.suppress(BlockingIOError):  # a peer may have read it before us
            os.eventfd_read(fd)
        self._on_kick(index)

    def _replace(self, fds: list[int | None], index: int, fd: int | None) -> None:
        old, fds[index] = fds[index], fd
        if old is not None:
            if fds is self._kicks:
                self._loop.remove_reader(old)
            os.close(old)


class BackendChannel:
    """The socket for the one message we send of our own accord: the configuration changed.

    Nothing is expected in return. What comes all the same is taken in and thrown away: fds that lay unread in a socket
    of ours could be the far ends of our own connections, which then never ended.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self.config_negotiated = False  # a front end that did not ask for the CONFIG feature knows no such message
        self.dropped = 0  # messages that QEMU did not take

    def set(self, fd: int) -> None:
        """SET_BACKEND_REQ_FD: takes `fd`, also when it raises MessageError because it is no UNIX stream socket, or one
        that is connected to a socket of ours."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            close_foreign([fd])
            raise MessageError(errno.EINVAL, f"the back-end channel is no socket: {error.strerror}") from error
        trouble = _trouble_with(sock)
        if trouble:
            close_foreign([sock.detach()])
            raise MessageError(errno.EINVAL, f"the back-end channel {trouble}")
        self.close()
        sock.setblocking(False)
        self._sock = sock
        self._loop.add_reader(sock, self._readable, sock)

    def config_changed(self) -> None:
        """Tell QEMU, which interrupts the driver; without waiting, and without an answer."""
        if self._sock is None or not self.config_negotiated:
            return
        message = wire.message(wire.BACKEND_CONFIG_CHANGE_MSG)
        try:
            if self._sock.send(message, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT) == len(message):
                return
        except OSError:
            pass
        # Full (then there is a message like it in the queue), or closed.
        self.dropped += 1

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            close_connection(self._sock)
            self._sock = None

    def _readable(self, sock: socket.socket) -> None:
        fds, is_over = take_in(sock, CHANNEL_READS)
        close_foreign(fds)
        if is_over:
            self.close()


def _trouble_with(sock: socket.socket) -> str:
    """What is wrong with a back-end channel, "" for nothing."""
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        return "is no UNIX stream socket"
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "listens"
    try:
        # The far end of a connection of ours: held by ourselves, the connection would outlive the peer.
        ours = bool(sock.getpeername()) and peer_of(sock).pid == os.getpid()
    except OSError:
        return "is not connected"
    return "is a connection to this process" if ours else ""


def _signal(eventfd: int) -> None:
    # Neither a full counter nor an empty one may stop the loop, and QEMU, which shares the flag, may have changed it.
    os.set_blocking(eventfd, False)
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(eventfd, 1)
