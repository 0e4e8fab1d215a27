"""One client: its bytes become requests, its requests get their replies in their order, and it hears all events.

Three tasks: one reads as long as there is room for requests, one executes them one at a time, one writes. Commands out
of band are executed as they come. A client that does not read gets nothing more executed; its events wait up to a cap,
and then it is cut off. What was begun with QEMU or vdev goes on when the client is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from qmp_bridge.bridge.messages import BadEnvelope, Request, error_body, read_request, reply_line
from qmp_bridge.bridge.output import MAX_NBYTES, Output
from qmp_bridge.bridge.upstream import TAKE_FDS
from qmp_bridge.json_stream import Broken, JsonStream

MAX_QUEUED = 8  # requests that wait; the specification asks clients to send no more
MAX_OOB = 8  # commands out of band in flight
MAX_FDS = 16  # QEMU takes as many with one message
_CHUNK = 8 << 10  # read at once: parsing it must not keep the others waiting

Say = Callable[[str], None]


class Executor(Protocol):
    """What a session needs of the bridge."""

    async def execute(self, session: Session, request: Request) -> None:
        """Execute a command to the end; its reply goes to `session.reply`, or is announced by `session.output.hold`."""


class Session:
    """One client's connection. `run` serves it; the socket is closed when that ends."""

    def __init__(self, sock: socket.socket, greeting: Mapping[str, Any], executor: Executor, say: Say) -> None:
        self.negotiated = False
        self.offered: list[str] = list(greeting["QMP"]["capabilities"])
        self.oob = False  # whether the client has enabled it
        self.ended = False
        self.output = Output(self._wake)
        self._sock = sock
        self._executor = executor
        self._say = say
        self._stream = JsonStream()
        self._requests: deque[Request | BadEnvelope] = deque()
        self._oob: set[asyncio.Task[None]] = set()
        self._fds: list[int] = []  # of the newest message that carried some; for the next command that takes them
        self._complete = False  # the client says no more
        self._closing = False  # nobody says more to the client
        self._woken: set[asyncio.Future[None]] = set()
        self.output.add(json.dumps(greeting).encode() + b"\r\n")

    def event(self, line: bytes) -> None:
        """Tell the client of an event, if it has negotiated."""
        if not self.negotiated or self.ended:
            return
        self.output.add(line)
        if self.output.overrun:
            self._say(f"monitor: a client does not read: cut off with {MAX_NBYTES >> 20} MiB of events waiting")
            self.end()

    def reply(self, request: Request, body: bytes) -> None:
        """The reply to a request: its one member besides the id."""
        self.output.add(reply_line(body, request.own_id))

    def close_when_written(self) -> None:
        """Nothing more will come from us: the client gets what is there, and then its end."""
        self._closing = True
        self._wake()

    async def run(self) -> None:
        """Serve the client until it leaves, is cut off, or `close_when_written` was done."""
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = [tasks.create_task(part()) for part in (self._read, self._execute)]
                try:
                    await self._write()
                finally:
                    for part in parts:
                        part.cancel()
        finally:
            self.end()
            self._sock.close()
            for task in self._oob:
                task.cancel()
            for request in self._requests:
                if isinstance(request, Request):
                    request.close()
            self._requests.clear()
            self._drop_fds()

    def _wake(self) -> None:
        for waiter in self._woken:
            if not waiter.done():
                waiter.set_result(None)
        self._woken.clear()

    def end(self) -> None:
        """Cut the client off. Idempotent."""
        self.ended = True
        self._wake()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self.ended:
            waiter = asyncio.get_running_loop().create_future()
            self._woken.add(waiter)
            try:
                await waiter
            finally:
                self._woken.discard(waiter)

    async def _read(self) -> None:
        while not self.ended:
            await self._until(self._has_room)
            data = await self._receive()
            if not data:
                break
            self._stream.feed(data)
            while (piece := self._stream.pull()) is not None:
                await self._until(self._has_room)
                self._take(BadEnvelope(piece.problem) if isinstance(piece, Broken) else self._request(piece.value))
        self._complete = True
        self._wake()

    def _has_room(self) -> bool:
        return len(self._requests) < MAX_QUEUED and len(self._oob) < MAX_OOB and not self.output.paused

    def _request(self, value: object) -> Request | BadEnvelope:
        try:
            request = read_request(value, oob=self.oob)
        except BadEnvelope as error:
            return error
        if request.name in TAKE_FDS:
            request.fds, self._fds = self._fds, []
        return request

    def _take(self, request: Request | BadEnvelope) -> None:
        if isinstance(request, Request) and request.oob:
            task = asyncio.ensure_future(self._execute_one(request))
            self._oob.add(task)
            task.add_done_callback(self._oob_done)
        else:
            self._requests.append(request)
            self._wake()

    def _oob_done(self, task: asyncio.Task[None]) -> None:
        self._oob.discard(task)
        self._wake()

    async def _receive(self) -> bytes:
        """The client's next bytes, none at its end; file descriptors that come with them are kept."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, _CHUNK, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self._ready(loop.add_reader, loop.remove_reader)
                if self.ended:
                    return b""
            except OSError:
                return b""
            else:
                if fds:
                    self._drop_fds()
                    self._fds = list(fds)
                return data

    def _drop_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    async def _execute(self) -> None:
        while True:
            await self._until(lambda: (bool(self._requests) or self._complete) and not self.output.paused)
            if self.ended or not self._requests:
                break
            request = self._requests.popleft()
            self._wake()
            if isinstance(request, BadEnvelope):
                self.output.add(reply_line(error_body(str(request)), request.own_id))
                await asyncio.sleep(0)  # others have their turn between them
            else:
                await self._execute_one(request)
        await self._until(lambda: not self._oob)
        self.close_when_written()

    async def _execute_one(self, request: Request) -> None:
        await self._executor.execute(self, request)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                await self._until(lambda: bool(self.output.peek()) or self._closing)
                if self.ended or not (data := self.output.peek()):
                    return
                try:
                    count = self._sock.send(data)
                except BlockingIOError:
                    await self._ready(loop.add_writer, loop.remove_writer)
                else:
                    self.output.written(count)

    async def _ready(self, add: Callable[..., object], remove: Callable[[socket.socket], object]) -> None:
        """Wait until the socket can be read or written, or the session has ended."""
        ready = asyncio.Event()

        def seen() -> None:
            remove(self._sock)
            ready.set()
            self._wake()

        add(self._sock, seen)
        try:
            await self._until(ready.is_set)
        finally:
            remove(self._sock)
