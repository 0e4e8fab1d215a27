"""vhost-user connections: one virtio device behind a socket. The conversation itself is in `vhost_session`."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdev.errors import PeerError
from vdev.functions.vhost import VhostCarrier
from vdev.transports.function_server import Connection, FunctionServer, VmContext
from vdev.transports.identity import Peer
from vdev.transports.ram import ConnectionRam
from vdev.transports.stream import Framing, Message
from vdev.transports.vhost_fds import BackendChannel, RingFds
from vdev.transports.vhost_memory import VhostMemory
from vdev.transports.vhost_session import VhostSession
from vdev.wire import vhost_user as wire


def _parse_header(buffer: bytearray) -> tuple[wire.Header, int]:
    header = wire.Header.parse(buffer)
    if header.size > wire.MAX_BODY_NBYTES:
        raise PeerError(f"a message with a body of {header.size} bytes (allowed: up to {wire.MAX_BODY_NBYTES})")
    return header, header.size


def _never_late(data: bytes) -> bytes:
    """QEMU waits for a reply as long as it takes."""
    return data


FRAMING = Framing(wire.HEADER_NBYTES, wire.MAX_FDS, _parse_header, _never_late)


class VhostUserConnection(Connection[wire.Header]):
    """One accepted socket and everything that came through it: memory, eventfds, the back-end channel."""

    def __init__(
        self, sock: socket.socket, peer: Peer, carrier: VhostCarrier, vm: VmContext, clock_ns: Callable[[], int]
    ) -> None:
        self._carrier = carrier
        super().__init__(carrier.name, peer, vm, sock, FRAMING, clock_ns)
        self.ram = ConnectionRam(vm.ram, carrier.memory, peer.pid, same_as_others=True)
        self.memory = VhostMemory(self.ram)
        self.rings = RingFds(len(carrier.rings), carrier.kicked)
        self.channel = BackendChannel()
        self.session = VhostSession(carrier, self.memory, self.rings, self.channel, on_refusal=self._refused)

    def _open(self, cleanup: contextlib.ExitStack) -> None:
        carrier = self._carrier
        cleanup.callback(carrier.memory_changed)
        cleanup.callback(self.memory.clear)
        cleanup.callback(carrier.disconnected)
        cleanup.callback(carrier.detach)
        cleanup.callback(self.channel.close)
        cleanup.callback(self.rings.close)
        cleanup.callback(self._stream.close)
        carrier.raise_call, carrier.raise_error = self.rings.call, self.rings.error
        carrier.push_config = self.channel.config_changed
        carrier.told = self._told
        self._stream.start()

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "pid": self.peer.pid,
            **self.ram.describe(),
            **self._carrier.describe(),
            "messages": self.session.handled,
            "refused": self.session.refused,
            "config_changes_dropped": self.channel.dropped,
        }

    def _on_message(self, message: Message[wire.Header]) -> None:
        reply = self.session.handle(message)
        if reply is not None:
            self._stream.send(reply)

    def _told(self, line: str) -> None:
        # A guest can make these as fast as it resets its driver; `describe` counts them all.
        self._vm.note(logging.INFO, self._name, "ring changes", line)


class VhostUserServer(FunctionServer[VhostUserConnection]):
    """Serves the device behind `carrier` at `path`."""

    def __init__(
        self, carrier: VhostCarrier, path: Path, vm: VmContext, *, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        super().__init__(carrier.name, path, vm)
        self.carrier = carrier
        self._clock_ns = clock_ns

    def _connect(self, sock: socket.socket, peer: Peer) -> VhostUserConnection:
        return VhostUserConnection(sock, peer, self.carrier, self._vm, self._clock_ns)
