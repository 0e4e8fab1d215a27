"""vfio-user connections: one PCI function behind a socket. The conversation itself is in `vfio_session`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdev.errors import PeerError
from vdev.pci.function import Function
from vdev.transports.function_server import Connection, FunctionServer, VmContext
from vdev.transports.identity import Peer
from vdev.transports.ram import ConnectionRam
from vdev.transports.stream import Framing, Message
from vdev.transports.vfio_dma import DmaMessages
from vdev.transports.vfio_irqs import Vectors
from vdev.transports.vfio_messages import MsixMessages
from vdev.transports.vfio_session import Session
from vdev.wire import vfio_user as wire

__all__ = ["VfioUserConnection", "VfioUserServer", "VmContext"]

# Below QEMU's default x-msg-timeout of 5 s; an answer that needed longer goes out without its payload.
DEFAULT_DEADLINE_S = 4.5


def _parse_header(buffer: bytearray) -> tuple[wire.Header, int]:
    header = wire.Header.parse(buffer)
    if not wire.HEADER_NBYTES <= header.size <= wire.MAX_MESSAGE_NBYTES:
        raise PeerError(
            f"a message of {header.size} bytes (allowed: {wire.HEADER_NBYTES} to {wire.MAX_MESSAGE_NBYTES})"
        )
    return header, header.size - wire.HEADER_NBYTES


FRAMING = Framing(wire.HEADER_NBYTES, wire.MAX_FDS, _parse_header, wire.late_reply)


class VfioUserConnection(Connection[wire.Header]):
    """One accepted socket and everything that came through it: its maps, its eventfds, its requests under way."""

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        function: Function,
        vm: VmContext,
        deadline_s: float,
        clock_ns: Callable[[], int],
    ) -> None:
        self._function = function
        super().__init__(function.name, peer, vm, sock, FRAMING, clock_ns)
        self.ram = ConnectionRam(vm.ram, function.memory, peer.pid)
        self.vectors = Vectors(function.msix_vectors, held=vm.interrupts_held)
        self.dma = DmaMessages(self._stream.send, lambda: self.session.client_transfer_nbytes)
        self.messages = MsixMessages(self.dma.write, held=vm.interrupts_held)
        self.session = Session(function, self.ram, self.vectors, on_reset=self._reset_dma, on_refusal=self._refused)
        self._deadline_ns = int(deadline_s * 1e9)

    def _open(self, cleanup: contextlib.ExitStack) -> None:
        cleanup.callback(self._function.memory_changed)
        cleanup.callback(self.ram.clear)
        cleanup.callback(self._function.disconnected)
        cleanup.callback(self.vectors.disable)
        cleanup.callback(setattr, self._function, "raise_vector", _drop_interrupt)
        cleanup.callback(setattr, self._function, "raise_message", _drop_message)
        cleanup.callback(setattr, self._function, "void_messages", _nothing_to_void)
        cleanup.callback(self._stream.close)
        cleanup.callback(self.dma.close)
        self._function.raise_vector = self.vectors.fire
        self._function.raise_message = self.messages.fire
        self._function.void_messages = self._reset_dma
        cleanup.callback(asyncio.get_running_loop().create_task(self.messages.run()).cancel)
        self._stream.start()

    def hold_interrupts(self, held: bool) -> None:
        """Remember interrupts, or let them out."""
        self.vectors.hold(held)
        self.messages.hold(held)

    def _reset_dma(self) -> None:
        self.messages.reset()
        self.dma.cancel("reset")

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "pid": self.peer.pid,
            **self.ram.describe(),
            "vectors_assigned": self.vectors.assigned,
            "messages_dropped": self.messages.dropped,
            "messages": self.session.handled,
            "refused": self.session.refused,
            "dma_messages_in_flight": self.dma.in_flight,
        }

    def _on_message(self, message: Message[wire.Header]) -> None:
        if message.header.is_reply:
            with message.fds:
                self.dma.complete(message.header, message.payload)
            return
        reply = self.session.handle(message)
        if reply is not None:
            self._stream.send(reply, message.arrived_ns + self._deadline_ns)


class VfioUserServer(FunctionServer[VfioUserConnection]):
    """Serves the PCI function `function` at `path`. `deadline_s` must be below the x-msg-timeout QEMU runs with."""

    def __init__(
        self,
        function: Function,
        path: Path,
        vm: VmContext,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(function.name, path, vm)
        self.function = function
        self._deadline_s = deadline_s
        self._clock_ns = clock_ns

    def _connect(self, sock: socket.socket, peer: Peer) -> VfioUserConnection:
        return VfioUserConnection(sock, peer, self.function, self._vm, self._deadline_s, self._clock_ns)


def _drop_interrupt(vector: int) -> None:
    """`raise_vector` of a function nobody is connected to."""


def _drop_message(vector: int, address: int, data: int) -> None:
    """`raise_message` of a function nobody is connected to."""


def _nothing_to_void() -> None:
    """`void_messages` likewise."""
