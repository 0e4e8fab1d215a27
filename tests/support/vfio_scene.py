"""What stands around a vfio-user test: a function that records, guest RAM, a running server, fd counting."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import mmap
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.vfio_client import VfioClient
from vdev.memory import RegionTable
from vdev.pci.function import Bar
from vdev.transports.vfio_user import VfioUserServer, VmContext

PAGE = 4096


class FakeFunction:
    """A function that records what the server does to it; BAR 0 and config space are plain bytes."""

    def __init__(self, bars: tuple[Bar, ...] = (Bar(0, PAGE), Bar(2, 1 << 16)), msix_vectors: int = 4) -> None:
        self.name = "fake0"
        self.bars = bars
        self.msix_vectors = msix_vectors
        self.memory = RegionTable()
        self.raise_vector: Callable[[int], None] = lambda vector: None
        self.raise_message: Callable[[int, int, int], None] = lambda vector, address, data: None
        self.void_messages: Callable[[], None] = lambda: None
        self.config = bytearray(range(256)) * 16
        self.registers = {bar.index: bytearray(bar.nbytes) for bar in bars}
        self.calls: list[str] = []
        self.on_read: Callable[[], None] = lambda: None

    def config_read(self, offset: int, nbytes: int) -> bytes:
        return bytes(self.config[offset : offset + nbytes])

    def config_write(self, offset: int, data: bytes) -> None:
        self.config[offset : offset + len(data)] = data

    def bar_read(self, bar: int, offset: int, nbytes: int) -> bytes:
        self.on_read()
        return bytes(self.registers[bar][offset : offset + nbytes])

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        self.calls.append(f"write {bar}:{offset:#x}")
        self.registers[bar][offset : offset + len(data)] = data

    def reset(self) -> None:
        self.calls.append("reset")

    def memory_changed(self) -> None:
        self.calls.append("memory")

    def disconnected(self) -> None:
        self.calls.append("disconnected")


class GuestRam:
    """A memfd as memory-backend-memfd makes it, mapped in this process, which plays QEMU. Closes itself in `with`."""

    def __init__(self, nbytes: int, *, share: bool = True, sealed: bool = True, mapped: bool = True) -> None:
        self.nbytes = nbytes
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, nbytes)
        flags = mmap.MAP_SHARED if share else mmap.MAP_PRIVATE
        self.map = mmap.mmap(self.fd, nbytes, flags) if mapped else None
        if sealed:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)
        if self.map is not None:
            self.map.close()


@dataclass
class Served:
    """A running server and what it serves."""

    server: VfioUserServer
    function: FakeFunction
    vm: VmContext
    path: Path
    clients: list[VfioClient] = field(default_factory=list)

    async def connect(self) -> VfioClient:
        """A client before VERSION."""
        client = await VfioClient.connect(self.path)
        self.clients.append(client)
        return client

    async def negotiated(self) -> VfioClient:
        """A client after VERSION."""
        client = await self.connect()
        await client.negotiate()
        return client


@asynccontextmanager
async def served(
    directory: Path, function: FakeFunction | None = None, vm: VmContext | None = None, **options: Any
) -> AsyncIterator[Served]:
    """A server in `directory`/run; on leaving, clients and server are closed, and the VmContext unless it was given."""
    own = FakeFunction() if function is None else function
    context = VmContext() if vm is None else vm
    path = directory / "run" / f"{own.name}.sock"
    server = VfioUserServer(own, path, context, **options)
    server.listen()
    scene = Served(server, own, context, path)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve())
            try:
                yield scene
            finally:
                for client in scene.clients:
                    client.close()
                server.close()
    finally:
        if vm is None:
            context.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()`; TimeoutError after 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a test's condition has no event
            await asyncio.sleep(0.002)


@contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    """`count` non-blocking eventfds."""
    fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def fired(eventfd: int) -> int:
    """How often `eventfd` was signalled since last asked."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def open_fds() -> list[str]:
    """What this process has open, with names, for a readable difference."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the directory's own fd
            continue
    return sorted(found)


@pytest.fixture(autouse=True)
async def every_fd_is_closed() -> AsyncIterator[None]:
    """Fails a test after which more (or fewer) fds are open than before; modules assign it to a name to use it."""
    gc.collect()  # what earlier tests left to the collector is not this test's
    before = open_fds()
    yield
    gc.collect()
    assert open_fds() == before
