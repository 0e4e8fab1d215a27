"""A connection to a function in this process: the peer's end of its socket, and what a peer can do at it."""

from __future__ import annotations

import array
import asyncio
import fcntl
import gc
import logging
import os
import socket
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

from tests.fuzz.reader import WORD, Reader
from vdev.transports.function_server import Connection, VmContext

RAM_NBYTES = 1 << 16
MAX_TURNS = 40  # of the event loop after something was sent: a few are needed
EDGES = (
    0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 20, 24, 32, 0x21, 0x22, 0x24, 0xFF, 0x100, 0xFFF, 0x1000, 0x1001, 0x2000, 0x8000,
    RAM_NBYTES, 0x10_0000, 1 << 31, (1 << 32) - 1, 1 << 63, WORD, WORD - 0xFFF, (1 << 63) - 1, 0xFEE0_0000,
)  # fmt: skip
_FIELDS = {"B": 1, "H": 2, "I": 4, "Q": 8}
# Without a handler of their own, what vdev logs would go to standard error.
logging.getLogger("vdev").addHandler(logging.NullHandler())


class NotedVm(VmContext):
    """A VM whose log is a list."""

    def __init__(self) -> None:
        super().__init__(identity_checked=False)
        self.notes: list[tuple[str, str]] = []

    def note(self, level: int, function: str, kind: str, text: str) -> None:
        self.notes.append((kind, text))


class Line:
    """One connection that is served, and the peer's end of it."""

    def __init__(self, connect: Callable[[socket.socket], Connection[Any]]) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        self.connection = connect(theirs)
        self._serving = asyncio.get_running_loop().create_task(self.connection.run())

    def send(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """Send `data` and `fds`, which are closed; whether it went, as a whole."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self.sock.sendmsg([data], rights) == len(data)
        except (BlockingIOError, ConnectionError):
            return False
        finally:
            for fd in fds:
                os.close(fd)

    async def turn(self) -> bytes:
        """One turn of the event loop; what has come by then."""
        await asyncio.sleep(0)
        try:
            return self.sock.recv(1 << 22)
        except (BlockingIOError, ConnectionError):
            return b""

    async def close(self) -> None:
        """The peer hangs up; what the connection raises is raised."""
        self.sock.close()
        async with asyncio.timeout(5):
            await self._serving


def play(scene: Callable[[], Any]) -> None:
    """Run the coroutine `scene` makes in a loop of its own. AssertionError when a file descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(_watched(scene))
    if len(os.listdir("/proc/self/fd")) != before:
        gc.collect()  # an error that was kept keeps mappings
        assert len(os.listdir("/proc/self/fd")) == before, "a file descriptor is left"


async def _watched(scene: Callable[[], Any]) -> None:
    """`scene`, and what callbacks of the loop raised meanwhile."""
    raised: list[BaseException] = []

    def keep(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raised.append(context.get("exception") or AssertionError(context["message"]))

    asyncio.get_running_loop().set_exception_handler(keep)
    await scene()
    if raised:
        raise raised[0]


def number(given: Reader, nbytes: int) -> int:
    """A number for a field of `nbytes`: one of EDGES mostly, any for the upper quarter of the choices."""
    choice = given.byte()
    value = EDGES[choice % len(EDGES)] if choice < 0xC0 else given.number(nbytes)
    return value & ((1 << 8 * nbytes) - 1)


def fields(given: Reader, layout: Struct) -> bytes:
    """The bytes of a record of `layout` with a number in each field."""
    found, repeat = b"", ""
    for letter in layout.format[1:]:
        if letter in _FIELDS:
            found += number(given, _FIELDS[letter]).to_bytes(_FIELDS[letter], "little")
        elif letter.isdigit():
            repeat += letter
        else:  # "s" and "x"
            found += given.take(int(repeat)).ljust(int(repeat), b"\0")
            repeat = ""
    return found


def sent(message: bytes, fds: int = 0) -> bytes:
    """The bytes of the move that sends `message` as it is: number 1 in both peers' tables."""
    return bytes([1, fds, len(message)]) + message


def make_fds(given: Reader) -> list[int]:
    """None for most choices, up to 20 of one kind for the others."""
    choice = given.byte()
    if choice < 0x80:
        return []
    kind, count = choice & 7, (choice >> 3 & 15) or 20
    return [_KINDS[kind]() for _ in range(count)]


def _eventfd() -> int:
    return os.eventfd(0)  # blocking, as a peer may leave it


def _memfd(nbytes: int = RAM_NBYTES, *, sealed: bool = True) -> int:
    fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def _socket() -> int:
    ours, theirs = socket.socketpair()
    ours.close()
    return theirs.detach()


def _pipe() -> int:
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours


def _null() -> int:
    return os.open(os.devnull, os.O_RDWR)


def _empty() -> int:
    return _memfd(0)


def _unsealed() -> int:
    return _memfd(sealed=False)


def _nothing() -> int:
    return os.open("/", os.O_PATH)


_KINDS: tuple[Callable[[], int], ...] = (_eventfd, _memfd, _unsealed, _empty, _null, _socket, _pipe, _nothing)
EVENTFD, MEMFD, SOCKET = 0x88, 0x89, 0x8D  # choices of `make_fds`: one of them
