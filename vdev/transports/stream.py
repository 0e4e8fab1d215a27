"""A UNIX stream of messages with file descriptors, driven by the event loop's readiness callbacks.

What a message looks like is a `Framing`; vfio-user and vhost-user have one each. Header first, then body: a read never
crosses into the next message, so the fds that came with a read belong to the message being read. Callbacks instead of
tasks keep one message at two system calls and no task switch.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Self, TypeVar

from vdev.errors import PeerError

MAX_QUEUED_NBYTES = 4 << 20  # replies a client may leave unread before its connection ends
MAX_QUEUED_REPLIES = 4096  # likewise: each costs ten times a header's size in memory
MESSAGES_PER_WAKEUP = 64  # then the other sockets get their turn
NBYTES_PER_WAKEUP = 256 << 10  # likewise; more than a socket holds, so that only a peer that keeps writing meets it
FIRST_BUFFER_NBYTES = 64 << 10  # of a body; what a header promises beyond it costs memory when it comes
MAX_UNREAD = 4096  # messages in a socket's buffer, or connections in its backlog, which are looked at before a close
SCM_MAX_FD = 253  # fds the kernel lets a peer send at once
# Room for all of them: what does not fit the kernel closes itself, and a peer's fd may be one that is slow to close.
_ANCILLARY_NBYTES = socket.CMSG_SPACE(SCM_MAX_FD * 4)
_NO_LINGER = struct.pack("ii", 0, 0)  # struct linger: off, 0 s
_RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT

HeaderT = TypeVar("HeaderT")


@dataclass(frozen=True, slots=True)
class Framing(Generic[HeaderT]):
    """How one protocol cuts its stream into messages.

    `parse` turns a header's bytes into the header and the size of the body after it; PeerError when that size cannot
    be, since the stream is then out of step. `late_reply` is what may still go out for a message whose deadline passed.
    """

    header_nbytes: int
    max_fds: int  # in one message; what comes beyond is closed and the message marked truncated
    parse: Callable[[bytearray], tuple[HeaderT, int]]
    late_reply: Callable[[bytes], bytes]


class ReceivedFds:
    """Owns the fds of one message until somebody takes them; whatever is left is closed. Used as `with fds:`."""

    __slots__ = ("_fds", "truncated")

    def __init__(self, fds: list[int] | None = None, *, truncated: bool = False) -> None:
        self._fds = fds or []
        self.truncated = truncated  # the kernel dropped some: too many were sent, or we ran out

    def __len__(self) -> int:
        return len(self._fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def peek(self) -> int | None:
        """The first fd, still owned by this object."""
        return self._fds[0] if self._fds else None

    def peek_all(self) -> list[int]:
        """All fds, still owned by this object."""
        return list(self._fds)

    def all_eventfds(self) -> bool:
        """Whether each is an eventfd: writing to anything else could block, or reach a file of ours. One opened with
        O_PATH has the same name and allows nothing."""
        return all(
            os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
            and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
            for fd in self._fds
        )

    def take(self) -> list[int]:
        """All fds; the caller owns them now."""
        taken, self._fds = self._fds, []
        return taken

    def close(self) -> None:
        """Close what nobody took."""
        close_foreign(self.take())


@dataclass(slots=True)
class Message(Generic[HeaderT]):
    """One complete message. `arrived_ns`, on the stream's clock, is when the wake-up that saw its header began.

    How long it lay in the socket before that cannot be seen, so nothing in this process may hold the loop for long.
    """

    header: HeaderT
    payload: memoryview
    fds: ReceivedFds
    arrived_ns: int


@dataclass(slots=True)
class _Incoming(Generic[HeaderT]):
    """The message being read."""

    buffer: bytearray  # grows to `wanted`
    wanted: int
    filled: int = 0
    header: HeaderT | None = None
    fds: list[int] = field(default_factory=list)
    truncated: bool = False
    arrived_ns: int = 0


class MessageStream(Generic[HeaderT]):
    """Owns a connected socket. `on_message` gets each message and its fds; `ended` resolves when the stream is over.

    `ended` carries None after an orderly end, or the PeerError (or the bug of ours) that ended it.
    """

    def __init__(
        self,
        sock: socket.socket,
        framing: Framing[HeaderT],
        on_message: Callable[[Message[HeaderT]], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self._sock = sock
        self._framing = framing
        self._sock.setblocking(False)
        self._fd = sock.fileno()
        self._on_message = on_message
        self._clock_ns = clock_ns
        self._loop = asyncio.get_running_loop()
        self._incoming = self._fresh()
        self._outgoing: deque[tuple[bytes, int | None]] = deque()
        self._sent_of_first = 0
        self._queued_nbytes = 0
        self._woken_ns = 0
        self._turn_ns = 0  # when the present wake-up began; the one before it may have left something unread
        self._nbytes_left = 0  # of this wake-up
        self._was_cut = False
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def _fresh(self) -> _Incoming[HeaderT]:
        """A message of which nothing has come yet."""
        nbytes = self._framing.header_nbytes
        return _Incoming(bytearray(nbytes), nbytes)

    def start(self) -> None:
        """Begin delivering messages."""
        self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Close the socket and every fd of a half-read message; idempotent."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._fd = -1
        ReceivedFds(self._incoming.fds).close()
        self._incoming = self._fresh()
        self._outgoing.clear()
        close_connection(self._sock)
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Resolve `ended`; the owner then calls close()."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    # Receiving

    def poll(self) -> None:
        """Take in what has arrived, without waiting for the loop to say so; `ended` shows whether the end was there."""
        if not self.ended.done():
            self._readable()

    def _readable(self) -> None:
        # Everything read in this wake-up counts as arrived now: what waits behind a slow request ages with it. What a
        # wake-up that was cut short left unread counts as arrived when that one began.
        now = self._clock_ns()
        self._woken_ns, self._turn_ns = self._turn_ns if self._was_cut else now, now
        self._was_cut, self._nbytes_left = True, NBYTES_PER_WAKEUP
        try:
            for _ in range(MESSAGES_PER_WAKEUP):
                message = self._next_message()
                if message is None:
                    return
                self._on_message(message)
                if self.ended.done():
                    return
        except BaseException as error:
            # A broken peer and a bug of ours alike end the stream; `ended` carries either to the owner's task,
            # where a loop callback's exception would only be logged, again and again.
            self.end(error)

    def _next_message(self) -> Message[HeaderT] | None:
        """The next complete message; None when the socket has no more for now or the stream ended."""
        incoming = self._incoming
        if incoming.header is None:
            if not self._fill(incoming):
                return None
            incoming.header, body_nbytes = self._framing.parse(incoming.buffer)
            incoming.arrived_ns = self._woken_ns
            incoming.wanted = body_nbytes
            incoming.buffer = bytearray(min(body_nbytes, FIRST_BUFFER_NBYTES))
            incoming.filled = 0
        if not self._fill(incoming):
            return None
        self._incoming = self._fresh()
        fds = ReceivedFds(incoming.fds, truncated=incoming.truncated)
        return Message(incoming.header, memoryview(incoming.buffer), fds, incoming.arrived_ns)

    def _fill(self, incoming: _Incoming[HeaderT]) -> bool:
        """Read until all that is wanted is there; False when it is not yet, or at the end of the stream."""
        while incoming.filled < incoming.wanted:
            if self._nbytes_left <= 0:
                return False
            if incoming.filled == len(incoming.buffer):
                incoming.buffer.extend(bytes(min(incoming.filled, incoming.wanted - incoming.filled)))
            try:
                with memoryview(incoming.buffer)[incoming.filled :] as room:
                    nbytes, ancillary, flags, _ = self._sock.recvmsg_into([room], _ANCILLARY_NBYTES, _RECEIVE_FLAGS)
            except BlockingIOError:
                self._was_cut = False
                return False
            except ConnectionError:
                self.end()
                return False
            except OSError as error:
                raise PeerError(f"cannot receive: {error}") from error
            self._nbytes_left -= nbytes
            incoming.fds.extend(_fds_in(ancillary))
            incoming.truncated |= bool(flags & socket.MSG_CTRUNC) or len(incoming.fds) > self._framing.max_fds
            if len(incoming.fds) > self._framing.max_fds:  # at once, or spread over several reads of one message
                ReceivedFds(incoming.fds[self._framing.max_fds :]).close()
                del incoming.fds[self._framing.max_fds :]
            if nbytes == 0:
                if incoming.header is None and incoming.filled == 0:
                    self.end()
                    return False
                raise PeerError("the connection ended inside a message")
            incoming.filled += nbytes
        return True

    # Sending

    def send(self, data: bytes, deadline_ns: int | None = None) -> None:
        """Send one whole message, now or when the socket takes it.

        A message that carries a payload and goes out after `deadline_ns` shrinks to a header-only error: QEMU has
        forgotten the request by then, ignores a late header, and drops the connection over a late payload.
        A client that has left too much unread ends the stream.
        """
        if self._fd < 0 or self.ended.done():
            return
        if self._queued_nbytes + len(data) > MAX_QUEUED_NBYTES or len(self._outgoing) >= MAX_QUEUED_REPLIES:
            self.end(PeerError(f"the client does not read: {self._queued_nbytes} bytes of replies are waiting"))
            return
        self._outgoing.append((data, deadline_ns))
        self._queued_nbytes += len(data)
        if len(self._outgoing) == 1:
            self._flush()
            if self._outgoing:
                self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._flush()
        if not self._outgoing and self._fd >= 0:
            self._loop.remove_writer(self._fd)

    def _flush(self) -> None:
        while self._outgoing:
            data, deadline_ns = self._outgoing[0]
            if not self._sent_of_first and deadline_ns is not None and self._clock_ns() > deadline_ns:
                self._queued_nbytes -= len(data)
                data = self._framing.late_reply(data)
                self._queued_nbytes += len(data)
                self._outgoing[0] = (data, None)
            try:
                # One sendmsg per message: QEMU reads a header with a single call and gives up on a short one.
                sent = self._sock.sendmsg([memoryview(data)[self._sent_of_first :]], (), _SEND_FLAGS)
            except BlockingIOError:
                return
            except ConnectionError:
                self.end()
                return
            except OSError as error:
                self.end(PeerError(f"cannot send: {error}"))
                return
            self._sent_of_first += sent
            if self._sent_of_first == len(data):
                self._outgoing.popleft()
                self._queued_nbytes -= len(data)
                self._sent_of_first = 0


def _fds_in(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The fds that came with one read."""
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            fds.extend(memoryview(data)[:whole].cast("i"))
    return fds


def close_connection(sock: socket.socket) -> None:
    """Close `sock`, and first, one by one, the fds in it that nobody read: its close would close them as they are."""
    with contextlib.suppress(OSError):  # the peer may be gone
        sock.shutdown(socket.SHUT_RDWR)  # from here on nothing is added
    close_foreign(take_in(sock)[0])
    sock.close()


def take_in(sock: socket.socket, messages: int = MAX_UNREAD) -> tuple[list[int], bool]:
    """Read up to `messages` pieces of what waits in a UNIX socket: the fds in it, the caller's now, and whether the
    other side has ended. The data is thrown away."""
    fds: list[int] = []
    try:
        for _ in range(messages):
            data, ancillary, _, _ = sock.recvmsg(FIRST_BUFFER_NBYTES, _ANCILLARY_NBYTES, _RECEIVE_FLAGS)
            found = _fds_in(ancillary)
            fds += found
            if not data and not found and sock.type == socket.SOCK_STREAM:
                return fds, True
    except BlockingIOError:
        return fds, False
    except OSError:  # reset, or not connected
        return fds, True
    return fds, False


def close_foreign(fds: list[int]) -> None:
    """Close fds that a peer made, each as quickly as it can be, and empty the list.

    The last close of a TCP socket waits as SO_LINGER says: that is switched off. The last close of a UNIX socket closes
    the fds nobody read from it, or from connections nobody accepted, which may be such sockets, or UNIX sockets again.
    """
    while fds:
        fd = fds.pop()
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.close(fd)
                continue
            sock = socket.socket(fileno=fd)
        except OSError:  # opened with O_PATH
            os.close(fd)
            continue
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            if sock.family == socket.AF_UNIX:
                fds += _emptied(sock)


def _emptied(sock: socket.socket) -> list[int]:
    """What is in a foreign UNIX socket; it can be used for nothing afterwards."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # from here on nothing is added, and accepting never waits
    fds, _ = take_in(sock)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        with contextlib.suppress(OSError):
            for _ in range(MAX_UNREAD):
                fds.append(sock.accept()[0].detach())
    return fds
