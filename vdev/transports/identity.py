"""Who is at the other end of a socket, proven by the kernel, and which process a VM therefore is.

All sockets of one VM must come from one QEMU process. Its pid comes with the connection (SO_PEERCRED) and is pinned
by a pidfd, so that a recycled number is never taken for the old process.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import Any

from vdev.errors import PeerError
from vdev.transports.access import OURS, SocketAccess

log = logging.getLogger(__name__)

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERPIDFD = getattr(socket, "SO_PEERPIDFD", 77)  # Linux 6.5: the peer's pidfd without a race over its number


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected. pid 0: it is not visible from our pid namespace."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """Credentials the kernel recorded when the peer connected."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def start_time_of(pid: int) -> int | None:
    """Start of `pid` in clock ticks since boot (field 22 of its stat), None when it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            # The command name is in parentheses and may hold anything; the fields after the last one are plain.
            return int(stat.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


class VmIdentity:
    """The one process all sockets of a VM must come from; the first connection binds it.

    `checked=False` is the override for launchers that open the sockets and for pid namespaces that hide the pid:
    any process that `access` admits may then connect. That is checked either way.
    """

    def __init__(self, *, checked: bool = True, access: SocketAccess = OURS) -> None:
        self.checked = checked
        self.access = access
        self.pid: int | None = None
        self.start_time: int | None = None
        self.pidfd: int | None = None  # owned here; travels with the lease

    def admit(self, sock: socket.socket) -> Peer:
        """The peer of `sock`, if it may be (or become) this VM; PeerError says why it may not."""
        peer = peer_of(sock)
        if not self.access.admits(sock, peer.uid, peer.gid):
            raise PeerError(f"pid {peer.pid} belongs to user {peer.uid}; may connect: {self.access.describe()}")
        if not self.checked:
            return peer
        if peer.pid == 0:
            raise PeerError("the peer's process is not visible from here; 'identity: unchecked' would accept it")
        if self.pid is not None and not self.is_gone():
            if peer.pid != self.pid:
                raise PeerError(f"pid {peer.pid} is not the QEMU of this VM, which is pid {self.pid} and still running")
            return peer
        self._bind(peer, sock)
        return peer

    def is_gone(self) -> bool:
        """True when a process was bound and has ended."""
        if self.pidfd is None:
            return False
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(0))  # a pidfd is readable once its process has terminated

    def close(self) -> None:
        """Forget the process."""
        if self.pidfd is not None:
            os.close(self.pidfd)
        self.pid = self.start_time = self.pidfd = None

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "identity": "peer" if self.checked else "unchecked",
            "pid": self.pid,
            "start_time": self.start_time,
            "gone": self.is_gone(),
        }

    def _bind(self, peer: Peer, sock: socket.socket) -> None:
        pidfd = _pidfd_of(peer, sock)
        if self.pid is not None:
            log.info("the QEMU with pid %d has ended; this VM is now pid %d", self.pid, peer.pid)
        self.close()
        self.pid, self.pidfd = peer.pid, pidfd
        self.start_time = start_time_of(peer.pid)


def _pidfd_of(peer: Peer, sock: socket.socket) -> int:
    """A pidfd of the connected process; PeerError when it has ended already."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel, or a process that is gone; the next call tells which
        pass
    try:
        return os.pidfd_open(peer.pid)
    except OSError as error:
        raise PeerError(f"pid {peer.pid} cannot be pinned: {error}") from error
