"""What all servers of one VM share: one listening socket per function, one connection at a time, any number in turn.

QEMU aborts when a live socket closes under it, whatever the protocol. So a connection ends only when QEMU ends it,
breaks the protocol, or this process stops. `vfio_user` and `vhost_user` say what a connection is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from vdev.errors import PeerError
from vdev.events import ConnectionChanged, Trace
from vdev.limited_log import LimitedLog
from vdev.transports.access import OURS, SocketAccess
from vdev.transports.identity import Peer, VmIdentity
from vdev.transports.listener import Listener
from vdev.transports.ram import RamFiles
from vdev.transports.stream import Framing, HeaderT, Message, MessageStream, close_connection

log = logging.getLogger(__name__)

ACCEPT_RETRY_S = 0.5  # when this process is out of fds or memory
_SHORT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class VmContext:
    """What all functions of one VM share: its process's identity, its RAM mappings, its live connections."""

    def __init__(
        self, *, identity_checked: bool = True, require_sealed: bool = False, access: SocketAccess = OURS
    ) -> None:
        self.access = access
        self.identity = VmIdentity(checked=identity_checked, access=access)
        self.limited_log = LimitedLog()
        self.ram = RamFiles(require_sealed=require_sealed, limited_log=self.limited_log)
        self.was_replaced: Callable[[], None] = lambda: None  # set by the app: a new QEMU came after one that died
        self.was_bound: Callable[[], None] = lambda: None  # set by the app: `identity` is of a process it was not of
        self.interrupts_held = False
        self._connections: set[Connection[Any]] = set()

    def admit(self, sock: socket.socket) -> Peer:
        """The peer of `sock` if it may connect, else PeerError. A new QEMU ends what its dead predecessor left."""
        is_successor = self.identity.is_gone()
        if is_successor:
            for connection in tuple(self._connections):
                connection.end()
        pid = self.identity.pid
        peer = self.identity.admit(sock)
        if is_successor:
            self.was_replaced()
        if is_successor or self.identity.pid != pid:
            self.was_bound()
        return peer

    def hold_interrupts(self, held: bool) -> None:
        """Remember interrupts of all functions, or let them and those that were remembered out."""
        self.interrupts_held = held
        for connection in self._connections:
            connection.hold_interrupts(held)

    def add(self, connection: Connection[Any]) -> None:
        """`connection` is live."""
        self._connections.add(connection)

    def remove(self, connection: Connection[Any]) -> None:
        """`connection` is over."""
        self._connections.discard(connection)

    @property
    def is_unused(self) -> bool:
        """Whether no process is bound and nothing is connected."""
        return self.identity.pid is None and not self._connections

    def note(self, level: int, function: str, kind: str, text: str) -> None:
        """One line about `function`, unless there were many of this `kind`: peers come and go as often as they like."""
        self.limited_log.log(log, level, (function, kind), f"{function}: {text}")

    def close(self) -> None:
        """Forget the process; the servers are closed already."""
        self.limited_log.flush(log)
        self.identity.close()

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            **self.identity.describe(),
            "unsealed_ram": "refuse" if self.ram.require_sealed else "allow",
            "connections": len(self._connections),
            "ram": self.ram.describe(),
        }


class Connection(ABC, Generic[HeaderT]):
    """One accepted socket, its `MessageStream` and everything that came through it."""

    def __init__(
        self,
        name: str,
        peer: Peer,
        vm: VmContext,
        sock: socket.socket,
        framing: Framing[HeaderT],
        clock_ns: Callable[[], int],
    ) -> None:
        """`name` is the function's."""
        self.peer = peer
        self._name = name
        self._vm = vm
        self._stream = MessageStream(sock, framing, self._on_message, clock_ns)

    async def run(self) -> None:
        """Serve until the peer leaves or breaks the protocol (logged); a bug of ours propagates. Cleans up always."""
        self._vm.add(self)
        # Last pushed, first run; a step that fails does not keep the others from running.
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._vm.remove, self)
            self._open(cleanup)
            try:
                await self._stream.ended
            except PeerError as error:
                text = f"connection of pid {self.peer.pid} dropped: {error}"
                self._vm.note(logging.WARNING, self._name, "connections dropped", text)

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

    def hold_interrupts(self, held: bool) -> None:
        """Remember what would be signalled outside a slice, or let it out."""

    @abstractmethod
    def _open(self, cleanup: contextlib.ExitStack) -> None:
        """Start serving; push what undoes it, the closing of the stream included."""

    @abstractmethod
    def _on_message(self, message: Message[HeaderT]) -> None:
        """One whole message came."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""

    def _refused(self, text: str) -> None:
        self._vm.note(logging.WARNING, self._name, "messages refused", f"pid {self.peer.pid}: {text}")


ConnectionT = TypeVar("ConnectionT", bound=Connection[Any])


class FunctionServer(ABC, Generic[ConnectionT]):
    """Serves function `name` at `path`. `listen()`, then `serve()` inside a TaskGroup; `close()` makes it return."""

    def __init__(self, name: str, path: Path, vm: VmContext) -> None:
        self.name = name
        self.path = path
        self._vm = vm
        self._listener: Listener | None = None
        self._stop = asyncio.Event()
        self._serving = False
        self._running: asyncio.Task[None] | None = None
        self.connection: ConnectionT | None = None
        self.trace: Trace | None = None
        self.refused = 0  # connections
        self.connected: Callable[[bool], None] = _nobody  # told when a connection has begun or ended

    @abstractmethod
    def _connect(self, sock: socket.socket, peer: Peer) -> ConnectionT:
        """What will serve the admitted `peer`; owns `sock`."""

    def listen(self) -> None:
        """Create the socket (QEMU fails at once if it is not there); ConfigError when that is not possible."""
        if self._listener is None:
            self._listener = Listener(self.path, self._vm.access)

    async def serve(self) -> None:
        """Accept and serve until close() or cancellation. A bug of ours in the function ends it with that exception."""
        if self._stop.is_set():
            return
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
        """Stop listening and end the connection, after which QEMU cannot go on with this device.

        The socket's path is gone when this returns, and may be another server's."""
        self._stop.set()
        if self._listener is not None:
            self._listener.withdraw()
        if not self._serving:  # else serve() does it, after its accept was cancelled
            self._unlisten()

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        found: dict[str, Any] = {"function": self.name, "path": str(self.path), "refused-connections": self.refused}
        if self.connection is not None:
            found["connection"] = self.connection.describe()
        return found

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
                self._vm.note(logging.ERROR, self.name, "accepts failed", f"cannot accept: {error.strerror}")
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            await self._admit(sock, group)

    async def _admit(self, sock: socket.socket, group: asyncio.TaskGroup) -> None:
        """Start a connection on `sock`, or close it with a line in the log."""
        with contextlib.ExitStack() as unless_accepted:
            unless_accepted.callback(close_connection, sock)
            if self._stop.is_set():
                return
            try:
                peer = self._vm.admit(sock)
                await self._make_room()
            except PeerError as error:
                self.refused += 1
                self._vm.note(logging.WARNING, self.name, "connections refused", f"connection refused: {error}")
                return
            unless_accepted.pop_all()
        self._vm.note(logging.INFO, self.name, "connections begun", f"pid {peer.pid} connected")
        if self.trace is not None:
            self.trace(ConnectionChanged(self.name, peer.pid, True))
        self.connection = self._connect(sock, peer)
        self._running = group.create_task(self.connection.run())
        self._running.add_done_callback(self._finished)
        self.connected(True)

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
            pid = self.connection.peer.pid
            self._vm.note(logging.INFO, self.name, "connections ended", f"pid {pid} is gone")
            if self.trace is not None:
                self.trace(ConnectionChanged(self.name, pid, False))
            self.connection.close()
        self.connection = self._running = None
        self.connected(False)


def _nobody(_: bool) -> None:
    """No one wants to know."""
