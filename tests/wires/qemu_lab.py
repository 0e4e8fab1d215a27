"""A real QEMU without a guest, connected to our functions: what it sends is noted, and qtest plays the guest."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.vfio_scene import until
from vdev.app import App
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.parts.qemu import Qemu, find_qemu
from vdev.transports.stream import Message
from vdev.transports.vfio_session import Session
from vdev.transports.vfio_user import VfioUserConnection
from vdev.transports.vhost_session import VhostSession
from vdev.wire import vfio_user as wire
from vdev.wire import vhost_user

RAM_MIB = 64
ECAM = 0xB000_0000
BAR_AT = 0xC000_0000
SLOT = 4  # on the root bus, where qtest needs no bridge to reach it
START_S = 30.0
SHARED_RAM = ("-machine", "q35,memory-backend=m0", "-object", f"memory-backend-memfd,id=m0,size={RAM_MIB}M,share=on")
PRIVATE_RAM = ("-machine", "q35,memory-backend=m0", "-object", f"memory-backend-memfd,id=m0,size={RAM_MIB}M,share=off")
PLAIN_RAM = ("-machine", "q35")
_COMMAND = 4
_MEMORY_SPACE, _BUS_MASTER = 2, 4


@dataclass
class Seen:
    """One message as QEMU sent it; `nbytes` counts its header."""

    command: int
    ident: int
    flags: int
    payload: bytes
    nfds: int
    nbytes: int


Tamper = Callable[[Seen, bytes | None], bytes | None]  # what is sent instead of our answer


class Silence(Exception):
    """QEMU closed its qtest socket."""


class Qtest:
    """QEMU's qtest socket: accesses as a CPU would do them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, line: str) -> str:
        """One command; the words of its answer after "OK"."""
        self._writer.write(line.encode() + b"\n")
        async with asyncio.timeout(START_S):
            while True:
                words = (await self._reader.readline()).decode().split()
                if not words:
                    raise Silence
                if words[0] != "IRQ":
                    assert words[0] == "OK", f"{line}: {words}"
                    return words[1] if len(words) > 1 else ""

    async def read(self, address: int, nbytes: int) -> int:
        """A load of 1, 2, 4 or 8 bytes."""
        return int(await self.ask(f"read{'bwlq'[nbytes.bit_length() - 1]} {address:#x}"), 0)

    async def write(self, address: int, nbytes: int, value: int) -> None:
        """A store of 1, 2, 4 or 8 bytes."""
        await self.ask(f"write{'bwlq'[nbytes.bit_length() - 1]} {address:#x} {value:#x}")

    async def ram(self, address: int, nbytes: int) -> bytes:
        """Guest memory."""
        return bytes.fromhex((await self.ask(f"read {address:#x} {nbytes:#x}"))[2:])

    async def config_read(self, offset: int, nbytes: int) -> int:
        """Configuration space of our function."""
        return await self.read(ECAM + (SLOT << 15) + offset, nbytes)

    async def config_write(self, offset: int, nbytes: int, value: int) -> None:
        await self.write(ECAM + (SLOT << 15) + offset, nbytes, value)

    async def capability(self, ident: int) -> int:
        """Where the function's capability `ident` is."""
        at = await self.config_read(0x34, 1)
        while at and await self.config_read(at, 1) != ident:
            at = await self.config_read(at + 1, 1)
        assert at, f"no capability {ident:#x}"
        return at

    async def place_bar(self, bar: int, *, bus_master: bool = False) -> int:
        """Give 64-bit BAR `bar` an address, and open memory space (and bus mastering)."""
        await self.config_write(0x10 + 4 * bar, 4, BAR_AT)
        await self.config_write(0x14 + 4 * bar, 4, 0)
        await self.config_write(_COMMAND, 2, _MEMORY_SPACE | (_BUS_MASTER if bus_master else 0))
        return BAR_AT


class Lab:
    """A running App, a QEMU connected to it and what QEMU said, in order, by kind of session."""

    def __init__(self, app: App, directory: Path) -> None:
        self.app = app
        self._directory = directory
        self.vfio: list[Seen] = []
        self.vhost: list[Seen] = []
        self.tamper: Tamper = lambda seen, answer: answer
        self.process: asyncio.subprocess.Process
        self.qtest: Qtest

    @property
    def endpoint(self) -> VfioUserConnection:
        """The connection of the endpoint's function."""
        connection = self.app.servers["accel0"].connection
        assert isinstance(connection, VfioUserConnection)
        return connection

    def commands(self, since: int = 0) -> list[str]:
        """The names of what came by vfio-user."""
        return [wire.COMMAND_NAMES[seen.command] for seen in self.vfio[since:]]

    async def ended(self) -> None:
        """Wait for QEMU's end."""
        async with asyncio.timeout(START_S):
            await self.process.wait()

    @property
    def stderr(self) -> str:
        """What QEMU said to people."""
        return (self._directory / "qemu.stderr").read_text()

    def note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Write down every message from now on."""
        for kind, notes in ((Session, self.vfio), (VhostSession, self.vhost)):
            monkeypatch.setattr(kind, "handle", self._noting(kind.handle, notes))

    def _noting(self, handle: Any, notes: list[Seen]) -> Any:
        def noting(session: Any, message: Message[Any]) -> bytes | None:
            header, payload = message.header, bytes(message.payload)
            ident, body = (header.id, 0) if notes is self.vfio else (0, vhost_user.HEADER_NBYTES)
            seen = Seen(header.command, ident, header.flags, payload, len(message.fds), header.size + body)
            notes.append(seen)
            return self.tamper(seen, handle(session, message))

        return noting

    async def start(self, arguments: Sequence[str], ram: Sequence[str] = SHARED_RAM) -> bool:
        """Start QEMU and wait until its devices are there; False when it gave up over one."""
        words = [*_found().argv_prefix, "-nodefaults", "-display", "none", "-accel", "qtest", "-m", str(RAM_MIB), *ram]
        path = self._directory / "qtest.sock"
        words += ["-qtest", f"unix:{path},server=on,wait=off", "-qtest-log", "/dev/null", *arguments]
        with (self._directory / "qemu.stderr").open("w") as log:
            self.process = await asyncio.create_subprocess_exec(
                *words,
                env={**os.environ, **_found().env},
                stdin=asyncio.subprocess.DEVNULL,
                stderr=log,
                preexec_fn=_without_core,
            )
        async with asyncio.timeout(START_S):
            while self.process.returncode is None:
                try:
                    self.qtest = Qtest(*await asyncio.open_unix_connection(path, limit=1 << 20))
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(0.01)
                else:
                    return await self._answers()
        return False

    async def _answers(self) -> bool:
        """Whether QEMU has come as far as answering; then its configuration spaces are opened."""
        try:
            await self.qtest.ask("outl 0xcf8 0x80000060")
            await self.qtest.ask(f"outl 0xcfc {ECAM | 1:#x}")
        except (Silence, ConnectionError):
            await self.ended()
            return False
        return True

    async def stop(self) -> None:
        """End QEMU, and wait until its connections are gone."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        if hasattr(self, "qtest"):
            self.qtest._writer.close()
        await until(lambda: all(server.connection is None for server in self.app.servers.values()))


@cache
def _found() -> Qemu:
    return find_qemu(None, lambda line: None)


def _without_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # some tests make QEMU abort


def qemu_version() -> tuple[int, int]:
    """Of the QEMU that is tested with."""
    major, minor, *_ = _found().version.split(".")
    return int(major), int(minor)


def vfio_device(path: Path, **properties: Any) -> list[str]:
    """The endpoint as a device on the root bus."""
    device = {"driver": "vfio-user-pci", "id": "vu0", "bus": "pcie.0", "addr": str(SLOT)}
    socket = {"type": "unix", "path": str(path)}
    return ["-device", json.dumps({**device, "socket": socket, **properties})]


def vhost_device(path: Path) -> list[str]:
    """The unit as QEMU's generic vhost-user device on the root bus."""
    device = f"vhost-user-test-device-pci,chardev=c0,virtio-id=23,num_vqs=2,vq_size=256,config_size=64,addr={SLOT}"
    return ["-chardev", f"socket,id=c0,path={path}", "-device", device]


@asynccontextmanager
async def lab(directory: Path, monkeypatch: pytest.MonkeyPatch, attach: str = "vfio-user") -> AsyncIterator[Lab]:
    """An App that serves unit iommu0 (attached by `attach`) and endpoint accel0; QEMU is started by the test."""
    config = Config(units=(UnitConfig(name="iommu0", attach=attach),), endpoints=(EndpointConfig(name="accel0"),))  # type: ignore[arg-type]
    app = App(config, directory / "run")
    listens = asyncio.Event()
    task = asyncio.create_task(app.run(lambda line: listens.set()))
    scene = Lab(app, directory)
    scene.note(monkeypatch)
    try:
        await listens.wait()
        yield scene
    finally:
        if hasattr(scene, "process"):
            await scene.stop()
        app.stopping.set()
        await task
        app.close()


@asynccontextmanager
async def endpoint_lab(directory: Path, monkeypatch: pytest.MonkeyPatch, **properties: Any) -> AsyncIterator[Lab]:
    """A QEMU that has the endpoint, realized and reset."""
    async with lab(directory, monkeypatch) as scene:
        await scene.start(vfio_device(scene.app.servers["accel0"].path, **properties))
        yield scene


@asynccontextmanager
async def unit_lab(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    """A QEMU that has the unit by vhost-user, realized and reset."""
    async with lab(directory, monkeypatch, "vhost-user") as scene:
        await scene.start(vhost_device(scene.app.servers["iommu0"].path))
        yield scene
