"""The vfio-user server: one listening socket per PCI function, one connection at a time, any number of them in turn.

QEMU never reconnects and aborts when a live socket closes, so a connection ends only when QEMU ends it, breaks the
protocol, or this process stops. The conversation itself is in `vfio_session`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdev.errors import PeerError
from vdev.pci.function import Function
from vdev.transports.access import OURS, SocketAccess
from vdev.transports.identity import Peer, VmIdentity
from vdev.transports.listener import Listener
from vdev.transports.ram import ConnectionRam, RamFiles
from vdev.transports.stream import Message, MessageStream
from vdev.transports.vfio_dma import DmaMessages
from vdev.transports.vfio_irqs import Vectors
from vdev.transports.vfio_session import Session

log = logging.getLogger(__name__)

# Below QEMU's default x-msg-timeout of 5 s; an answer that needed longer goes out without its payload.
DEFAULT_DEADLINE_S = 4.5
ACCEPT_RETRY_S = 0.5  # when this process is out of fds or memory
_SHORT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class VmContext:
    """What all functions of one VM share: its process's identity, its RAM mappings, its live connections."""

    def __init__(
        self, *, identity_checked: bool = True, require_sealed: bool = False, access: SocketAccess = OURS
    ) -> None:
        self.access = access
        self.identity = VmIdentity(checked=identity_checked, access=access)
        self.ram = RamFiles(require_sealed=require_sealed)
        self._connections: set[Connection] = set()

    def admit(self, sock: socket.socket) -> Peer:
        """The peer of `sock` if it may connect, else PeerError. A new QEMU ends what its dead predecessor left."""
        if self.identity.is_gone():
            for connection in tuple(self._connections):
                connection.end()
        return self.identity.admit(sock)

    def add(self, connection: Connection) -> None:
        """`connection` is live."""
        self._connections.add(connection)

    def remove(self, connection: Connection) -> None:
        """`connection` is over."""
        self._connections.discard(connection)

    @property
    def is_unused(self) -> bool:
        """Whether no process is bound and nothing is connected."""
        return self.identity.pid is None and not self._connections

    def close(self) -> None:
        """Forget the process; the servers are closed already."""
        self.identity.close()

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {**self.identity.describe(), "connections": len(self._connections), "ram": self.ram.describe()}


class Connection:
    """One accepted socket and everything that came through it: its maps, its eventfds, its requests under way."""

    def __init__(
        self, sock: socket.socket, peer: Peer, function: Function, vm: VmContext, clock_ns: Callable[[], int]
    ) -> None:
        self.peer = peer
        self._function = function
        self._vm = vm
        self._stream = MessageStream(sock, self._on_message, clock_ns)
        self.ram = ConnectionRam(vm.ram, function.memory, peer.pid)
        self.vectors = Vectors(function.msix_vectors)
        self.dma = DmaMessages(self._stream.send, lambda: self.session.client_transfer_nbytes)
        self.session = Session(function, self.ram, self.vectors, on_reset=lambda: self.dma.cancel("reset"))
        self._deadline_ns = 0

    async def run(self, deadline_s: float) -> None:
        """Serve until the peer leaves or breaks the protocol (logged); a bug of ours propagates. Cleans up always."""
        self._deadline_ns = int(deadline_s * 1e9)
        self._vm.add(self)
        # Last pushed, first run; a step that fails does not keep the others from running.
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._vm.remove, self)
            cleanup.callback(self._function.memory_changed)
            cleanup.callback(self.ram.clear)
            cleanup.callback(self._function.disconnected)
            cleanup.callback(self.vectors.disable)
            cleanup.callback(setattr, self._function, "raise_vector", _drop_interrupt)
            cleanup.callback(self._stream.close)
            cleanup.callback(self.dma.close)
            self._function.raise_vector = self.vectors.fire
            self._stream.start()
            try:
                await self._stream.ended
            except PeerError as error:
                log.warning("%s: connection of pid %d dropped: %s", self._function.name, self.peer.pid, error)

    @property
    def is_over(self) -> bool:
        """True once the stream has ended, though `run` may still be cleaning up."""
        return self._stream.ended.done()

    def poll(self) -> None:
        """Take in what has arrived, an end of the stream included."""
        self._stream.poll()

    def end(self) -> None:
        """Make `run` finish."""
        self._stream.end()

    def close(self) -> None:
        """Close the socket, for a `run` that was cancelled before it began; otherwise it is closed already."""
        self._stream.close()

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "pid": self.peer.pid,
            **self.ram.describe(),
            "vectors_assigned": self.vectors.assigned,
            "messages": self.session.handled,
            "refused": self.session.refused,
            "dma_messages_in_flight": self.dma.in_flight,
        }

    def _on_message(self, message: Message) -> None:
        if message.header.is_reply:
            with message.fds:
                self.dma.complete(message.header, message.payload)
            return
        reply = self.session.handle(message)
        if reply is not None:
            self._stream.send(reply, message.arrived_ns + self._deadline_ns)


class VfioUserServer:
    """Serves `function` at `path`. `listen()`, then `serve()` inside a TaskGroup; `close()` makes it return.

    `deadline_s` must be below the x-msg-timeout QEMU runs with.
    """

    def __init__(
        self,
        function: Function,
        path: Path,
        vm: VmContext,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.function = function
        self.path = path
        self._vm = vm
        self._deadline_s = deadline_s
        self._clock_ns = clock_ns
        self._listener: Listener | None = None
        self._stop = asyncio.Event()
        self._serving = False
        self._running: asyncio.Task[None] | None = None
        self.connection: Connection | None = None

    def listen(self) -> None:
        """Create the socket (QEMU fails at once if it is not there); ConfigError when that is not possible."""
        if self._listener is None:
            self._listener = Listener(self.path, self._vm.access)

    async def serve(self) -> None:
        """Accept and serve until close() or cancellation. A bug of ours in the function ends it with that exception."""
        self.listen()
        assert self._listener is not None
        self._serving = True
        try:
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(self._accept(self._listener.socket, group))
                await self._stop.wait()
                accepting.cancel()
                if self.connection is not None:
                    self.connection.end()
        finally:
            self._serving = False
            self._unlisten()

    def close(self) -> None:
        """Stop listening and end the connection, after which QEMU cannot go on with this device."""
        self._stop.set()
        if not self._serving:  # else serve() does it, after its accept was cancelled
            self._unlisten()

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        connection = self.connection.describe() if self.connection is not None else None
        return {"function": self.function.name, "path": str(self.path), "connection": connection}

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _accept(self, listening: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in _SHORT_OF_RESOURCES:
                    raise
                log.error("%s: cannot accept: %s", self.function.name, error.strerror)
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            await self._admit(sock, group)

    async def _admit(self, sock: socket.socket, group: asyncio.TaskGroup) -> None:
        """Start a connection on `sock`, or close it with a line in the log."""
        with contextlib.ExitStack() as unless_accepted:
            unless_accepted.callback(sock.close)
            try:
                peer = self._vm.admit(sock)
                await self._make_room()
            except PeerError as error:
                log.warning("%s: connection refused: %s", self.function.name, error)
                return
            unless_accepted.pop_all()
        log.info("%s: pid %d connected", self.function.name, peer.pid)
        self.connection = Connection(sock, peer, self.function, self._vm, self._clock_ns)
        self._running = group.create_task(self.connection.run(self._deadline_s))
        self._running.add_done_callback(self._finished)

    async def _make_room(self) -> None:
        """Wait for a connection that is ending; PeerError when there is one that is not."""
        if self.connection is None or self._running is None:
            return
        self.connection.poll()
        if not self.connection.is_over:
            raise PeerError(f"pid {self.connection.peer.pid} is connected already, and a function has one connection")
        await asyncio.wait([self._running])

    def _finished(self, task: asyncio.Task[None]) -> None:
        if self.connection is not None:
            log.info("%s: pid %d is gone", self.function.name, self.connection.peer.pid)
            self.connection.close()
        self.connection = self._running = None


def _drop_interrupt(vector: int) -> None:
    """`raise_vector` of a function nobody is connected to."""
