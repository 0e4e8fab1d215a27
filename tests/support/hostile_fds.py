"""Hostile acts with file descriptors: of every wrong kind, too many, in the wrong place."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from tests.support.hostile_peer import Peer, dma_map
from tests.support.hostile_ram import PAGE, memfd
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

TRIGGER_EVENTFD = 0x24
TRIGGER_NOW = 0x21
Maker = Callable[[], AbstractContextManager[int]]


@contextmanager
def one(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def a_pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    with one(reading), one(writing):
        yield reading


@contextmanager
def a_socket() -> Iterator[int]:
    with socket.socket(socket.AF_UNIX) as sock:
        yield sock.fileno()


@contextmanager
def an_epoll() -> Iterator[int]:
    with select.epoll() as epoll:
        yield epoll.fileno()


@contextmanager
def an_o_path_eventfd() -> Iterator[int]:
    """It has an eventfd's name."""
    with one(os.eventfd(0)) as fd, one(os.open(f"/proc/self/fd/{fd}", os.O_PATH)) as path:
        yield path


@contextmanager
def a_file(flags: int) -> Iterator[int]:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(PAGE)
        with one(os.open(file.name, flags)) as fd:
            yield fd


@contextmanager
def huge_pages() -> Iterator[int]:
    """A file of more huge pages than any machine sets aside, sealed."""
    fd = os.memfd_create("hostile-huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    with one(fd):
        os.ftruncate(fd, 1 << 42)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        yield fd


def _kernel_has_huge_pages() -> bool:
    try:
        with huge_pages():
            return True
    except OSError:
        return False


_REFUSED, _NO_SEAL = "refused DMA_MAP", "not sealed against shrinking"

# What it is; how it is made; what the log must say when it is called guest RAM.
WRONG_RAM: dict[str, tuple[str, Maker, str]] = {
    "pipe": ("a pipe", a_pipe, _NO_SEAL),
    "directory": ("a directory", lambda: one(os.open("/", os.O_RDONLY | os.O_DIRECTORY)), _NO_SEAL),
    "socket": ("a socket", a_socket, _NO_SEAL),
    "epoll": ("an epoll", an_epoll, _NO_SEAL),
    "eventfd": ("an eventfd", lambda: one(os.eventfd(0)), _NO_SEAL),
    "zero": ("/dev/zero", lambda: one(os.open("/dev/zero", os.O_RDWR)), _NO_SEAL),
    "null": ("/dev/null", lambda: one(os.open(os.devnull, os.O_RDWR)), _NO_SEAL),
    "path": ("an O_PATH fd", lambda: a_file(os.O_PATH), _NO_SEAL),
    "read-only": ("a file opened for reading", lambda: a_file(os.O_RDONLY), _NO_SEAL),
    "file": ("an ordinary file", lambda: a_file(os.O_RDWR), _NO_SEAL),
    "empty": ("a memfd of no bytes", lambda: memfd(0), _REFUSED),
}
if _kernel_has_huge_pages():
    WRONG_RAM["huge"] = ("huge pages that are not there", huge_pages, "cannot be mapped")


def as_ram(make: Maker) -> Callable[[Path], None]:
    """A DMA_MAP of what `make` makes; whether it is refused or becomes RAM nobody reaches is told by the log."""

    def act(path: Path) -> None:
        with Peer(path).negotiated() as peer, make() as fd:
            peer.message(Command.DMA_MAP, dma_map(0, PAGE), [fd])
            peer.reply()

    return act


def as_vectors(path: Path) -> None:
    payload = wire.SetIrqs(20, TRIGGER_EVENTFD, wire.IRQ_MSIX, 0, 1).pack()
    makers = [make for name, (_, make, _) in WRONG_RAM.items() if name != "eventfd"]
    with Peer(path).negotiated() as peer:
        for make in (*makers, an_o_path_eventfd):
            with make() as fd:
                peer.refused(Command.DEVICE_SET_IRQS, payload, [fd])


def full_vector(path: Path) -> None:
    """An eventfd that is full when it is triggered, and made blocking again behind our back."""
    with Peer(path).negotiated() as peer, one(os.eventfd(0)) as fd:
        peer.request(Command.DEVICE_SET_IRQS, wire.SetIrqs(20, TRIGGER_EVENTFD, 2, 0, 1).pack(), [fd])
        os.eventfd_write(fd, (1 << 64) - 2)
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        for _ in range(20):
            peer.request(Command.DEVICE_SET_IRQS, wire.SetIrqs(20, TRIGGER_NOW, 2, 0, 1).pack())


def too_few_vectors(path: Path) -> None:
    with Peer(path).negotiated() as peer, one(os.eventfd(0)) as fd:
        peer.refused(Command.DEVICE_SET_IRQS, wire.SetIrqs(20, TRIGGER_EVENTFD, 2, 0, 2).pack(), [fd])


def stray(path: Path) -> None:
    with Peer(path).negotiated() as peer, one(os.eventfd(0)) as fd:
        peer.refused(Command.DEVICE_GET_INFO, bytes(16), [fd])


def as_many_as_the_kernel_takes(path: Path) -> None:
    with Peer(path).negotiated() as peer, one(os.eventfd(0)) as fd:
        peer.refused(Command.DMA_MAP, dma_map(0, PAGE), [fd] * 253)


def spread(path: Path) -> None:
    raw = wire.message(5, Command.DMA_MAP, dma_map(0, PAGE))
    with Peer(path).negotiated() as peer, one(os.eventfd(0)) as fd:
        for at in range(0, len(raw), 4):
            peer.send(raw[at : at + 4], [fd] * 5)
        header, _ = peer.reply()
        assert header.flags & wire.ERROR


def half(path: Path) -> None:
    with Peer(path).negotiated() as peer, ExitStack() as stack:
        fds = [stack.enter_context(one(os.eventfd(0))) for _ in range(8)]
        peer.send(wire.message(5, Command.DEVICE_SET_IRQS, bytes(52))[:30], fds)


def cycle(path: Path) -> None:
    """Its end of the connection, sent over the connection: it lives as long as nobody reads it."""
    with Peer(path).negotiated() as peer:
        peer.message(Command.DEVICE_RESET, b"", [peer.sock.fileno()] * 4, wire.NO_REPLY)


@contextmanager
def lingering_socket() -> Iterator[int]:
    """A TCP socket full of data its peer does not read, whose last close waits a minute."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        sock = socket.create_connection(listening.getsockname())
        stack.enter_context(listening.accept()[0])
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        yield sock.detach()


def lingering(path: Path) -> None:
    """Its last reference is the server's."""
    with Peer(path).negotiated() as peer, lingering_socket() as fd:
        rights = array.array("i", [fd])
        message = wire.message(9, Command.DEVICE_GET_INFO, bytes(16))
        try:
            peer.sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            os.close(fd)  # sent: no longer the last reference
        header, _ = peer.reply()
        assert header.flags & wire.ERROR
