"""A bridge in this process, in front of a real QEMU, beside a vdev that is played; and clients of either."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmp_bridge.bridge.server import BridgeServer, Setup
from tests.support.real_qemu import MACHINE, real_qemu

WAIT_S = 20.0
Message = dict[str, Any]


class PlayedVdev:
    """Answers vdev's control socket, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.frozen = False
        self.silent = False  # says nothing more
        self.followed = asyncio.Event()  # there is somebody in `followers`
        self._clients: list[asyncio.StreamWriter] = []
        self.followers: list[asyncio.StreamWriter] = []
        self.answers: dict[str, Message] = {}

    @asynccontextmanager
    async def listening(self, path: str) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._client, path)
        try:
            yield
        finally:
            server.close()
            for client in self._clients:
                client.close()
            await asyncio.sleep(0.01)  # transports close in the event loop

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.append(writer)
        with suppress(ConnectionError):
            while line := await reader.readline():
                command = json.loads(line)["execute"]
                if command != "query-status":
                    self.asked.append(command)
                if self.silent:
                    continue
                if command in ("freeze", "thaw"):
                    self.frozen = command == "freeze"
                if command == "events-follow":
                    self.followers.append(writer)
                    self.followed.set()
                answer = self.answers.get(command, {"return": {}})
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def tell(self, event: str, **data: object) -> None:
        """An event of vdev's."""
        line = json.dumps({"event": event, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}).encode()
        for follower in self.followers:
            follower.write(line + b"\n")


class Client:
    """A person with a socket: bytes out, JSON lines in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.greeting: Message = {}
        self.events: list[Message] = []  # that came while a reply was waited for

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)

    async def receive(self) -> Message:
        """The next message."""
        async with asyncio.timeout(WAIT_S):
            line = await self.reader.readline()
        assert line, "the monitor hung up"
        message: Message = json.loads(line, strict=False)
        return message

    async def reply(self) -> Message:
        """The next reply; events before it go to `events`."""
        while "event" in (message := await self.receive()):
            self.events.append(message)
        return message

    async def receive_after(self, data: bytes) -> Message:
        """The first message after sending `data`."""
        self.send(data)
        return await self.receive()

    async def ask(self, execute: str, **arguments: object) -> Message:
        """The reply to one command."""
        self.send(json.dumps({"execute": execute, "arguments": arguments}).encode())
        return await self.reply()

    async def event(self, name: str) -> Message:
        """The next event of that name."""
        while not (found := [event for event in self.events if event["event"] == name]):
            message = await self.receive()
            if "event" in message:
                self.events.append(message)
        self.events.remove(found[0])
        return found[0]


@asynccontextmanager
async def client(path: str, *, negotiate: bool = True, oob: bool = False) -> AsyncIterator[Client]:
    """Somebody connected to the monitor at `path`."""
    reader, writer = await asyncio.open_unix_connection(path, limit=16 << 20)
    try:
        person = Client(reader, writer)
        person.greeting = await person.receive()
        if negotiate:
            assert "return" in await person.ask("qmp_capabilities", **({"enable": ["oob"]} if oob else {}))
        yield person
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@dataclass
class Lab:
    """`direct` is a second monitor of the same QEMU, `bridged` the bridge's socket."""

    direct: str
    bridged: str
    vdev: PlayedVdev
    server: BridgeServer
    said: list[str] = field(default_factory=list)


@asynccontextmanager
async def bridge_between(qemu: str, directory: Path, *, keep: bool = False) -> AsyncIterator[Lab]:
    """A bridge in front of the monitor at `qemu`."""
    vdev, said = PlayedVdev(), list[str]()
    setup = Setup(str(directory / "monitor.sock"), qemu, str(directory / "control.sock"), keep=keep)
    async with vdev.listening(setup.vdev):
        server = BridgeServer(setup, said.append)
        running: asyncio.Task[None] | None = None
        try:
            await server.connect()
            running = asyncio.create_task(server.run())
            yield Lab("", setup.listen, vdev, server, said)
        finally:
            if running is not None and running.done():
                running.result()
            elif running is not None:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
            server.close()


@asynccontextmanager
async def lab(directory: Path, *, keep: bool = False) -> AsyncIterator[Lab]:
    """A real QEMU, a bridge in front of one of its monitors, and another monitor to compare with."""
    with real_qemu(directory, "behind", "direct", arguments=MACHINE) as paths:
        async with bridge_between(paths["behind"], directory, keep=keep) as found:
            found.direct = paths["direct"]
            yield found
