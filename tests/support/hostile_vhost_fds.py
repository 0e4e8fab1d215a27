"""Hostile acts with what comes over vhost-user as file descriptors: of every wrong kind, too many, in wrong places."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support import hostile_fds
from tests.support.hostile_fds import WRONG_RAM, Maker, an_o_path_eventfd, lingering_socket
from tests.support.hostile_ram import PAGE, memfd
from tests.support.hostile_vhost_peer import GPA, HVA, VhostPeer, region, running, table
from vdev.wire import vhost_user as wire
from vdev.wire.vhost_user import Command

FULL = (1 << 64) - 2
ROUNDS = 1000
# Every message with fds, and a body for it that names one.
BODIES: dict[Command, bytes] = {
    Command.SET_MEM_TABLE: table((GPA, PAGE, HVA, 0)),
    Command.ADD_MEM_REG: region(nbytes=PAGE),
    Command.SET_VRING_KICK: wire.U64(0).pack(),
    Command.SET_VRING_CALL: wire.U64(1).pack(),
    Command.SET_VRING_ERR: wire.U64(0).pack(),
    Command.SET_BACKEND_REQ_FD: b"",
}
_RAM = (Command.SET_MEM_TABLE, Command.ADD_MEM_REG)
_CHANNEL = (Command.SET_BACKEND_REQ_FD,)
_RINGS = (Command.SET_VRING_KICK, Command.SET_VRING_CALL, Command.SET_VRING_ERR)


@contextmanager
def a_datagram_socket() -> Iterator[int]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        for _ in range(4):
            far.send(b"")
        yield near.fileno()


@contextmanager
def a_listening_socket() -> Iterator[int]:
    with socket.socket(socket.AF_UNIX) as sock, ExitStack() as stack:
        sock.bind("")  # the kernel finds a name
        sock.listen(4)
        for _ in range(3):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(sock.getsockname())
        yield sock.fileno()


@contextmanager
def a_tcp_socket() -> Iterator[int]:
    with socket.socket() as sock:
        yield sock.fileno()


_SOCKETS: dict[str, Maker] = {"datagram": a_datagram_socket, "listening": a_listening_socket, "tcp": a_tcp_socket}
_EVENTS: dict[str, Maker] = {"o-path": an_o_path_eventfd, "memfd": lambda: memfd(PAGE)}


def _kinds(command: Command) -> dict[str, Maker]:
    """What `command` must not be given."""
    kinds = {name: make for name, (_, make, _) in WRONG_RAM.items() if command in _RAM or name != "eventfd"}
    if command in _CHANNEL:
        return kinds | {"eventfd": an_o_path_eventfd} | _SOCKETS
    return kinds | _SOCKETS | (_EVENTS if command in _RINGS else {})


def wrong_kinds(command: Command) -> Callable[[Path], None]:
    """RAM of a wrong kind may be taken and become RAM no DMA reaches; everything else must be refused."""

    def act(path: Path) -> None:
        with VhostPeer(path).negotiated() as peer:
            for make in _kinds(command).values():
                with make() as fd:
                    code = peer.acked(command, BODIES[command], [fd])
                    assert code or command in _RAM
                    if not code and command is Command.ADD_MEM_REG:
                        peer.accepted(Command.REM_MEM_REG, BODIES[command])
            peer.served()

    return act


def wrong_counts(command: Command) -> Callable[[Path], None]:
    """None, two, as many as any message has, more, and as many as the kernel takes."""

    def act(path: Path) -> None:
        with VhostPeer(path).negotiated() as peer, hostile_fds.one(os.eventfd(0)) as event, memfd(PAGE) as ram:
            near, far = socket.socketpair()
            with near, far:
                fd = ram if command in _RAM else near.fileno() if command in _CHANNEL else event
                for count in (0, 2, 8, 9, 253):
                    peer.nonsense(command, BODIES[command], [fd] * count)
            peer.served()

    return act


def stray(path: Path) -> None:
    """An fd with every message that has none."""
    with VhostPeer(path).negotiated() as peer, hostile_fds.one(os.eventfd(0)) as fd:
        for command in (Command.GET_FEATURES, Command.SET_OWNER, Command.SET_VRING_NUM, Command.GET_CONFIG):
            peer.nonsense(command, b"", [fd])


def spread(path: Path) -> None:
    raw = wire.message(Command.ADD_MEM_REG, region(), wire.NEED_REPLY)
    with VhostPeer(path).negotiated() as peer, hostile_fds.one(os.eventfd(0)) as fd:
        for at in range(0, len(raw), 4):
            peer.send(raw[at : at + 4], [fd] * 5)
        assert wire.Header.parse(peer.sock.recv(wire.HEADER_NBYTES)).command == Command.ADD_MEM_REG


def half(path: Path) -> None:
    with VhostPeer(path).negotiated() as peer, memfd(PAGE) as ram:
        peer.send(wire.message(Command.SET_MEM_TABLE, table((GPA, PAGE, HVA, 0)))[:30], [ram] * 8)


def lingering(command: Command) -> Callable[[Path], None]:
    """A TCP socket whose close takes a minute; its last reference is the server's."""

    def act(path: Path) -> None:
        with VhostPeer(path).negotiated() as peer, lingering_socket() as fd:
            try:
                peer.tell(command, BODIES.get(command, b""), [fd])
            finally:
                os.close(fd)
            peer.served()

    return act


def _hide(carrier: socket.socket, *fds: int) -> None:
    """Send `fds` over `carrier` in one message and close them: they live unread in the socket at the other end."""
    try:
        carrier.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    finally:
        for fd in fds:
            os.close(fd)


def lingering_inside(command: Command) -> Callable[[Path], None]:
    """Such a socket unread inside a UNIX socket, which is inside another one."""

    def act(path: Path) -> None:
        with lingering_socket() as fd:
            with VhostPeer(path).negotiated() as peer, ExitStack() as stack:
                inner, outer = socket.socketpair(), socket.socketpair()
                for sock in (*inner, *outer):
                    stack.enter_context(sock)
                _hide(inner[0], fd)
                _hide(outer[0], inner[1].detach())
                peer.tell(command, BODIES.get(command, b""), [outer[1].fileno()])
                outer[1].close()
                peer.served()
            with VhostPeer(path).negotiated() as peer:  # once everything of the first is closed
                peer.served()

    return act


def channel_is_itself(path: Path) -> None:
    """The connection's own far end as its channel: held by the server, it would never end."""
    with VhostPeer(path).negotiated() as peer:
        peer.tell(Command.SET_BACKEND_REQ_FD, b"", [peer.sock.fileno()])


def channel_hides_itself(path: Path) -> None:
    """The connection's own far end unread inside the channel, and the channel's far end as well."""
    near, far = socket.socketpair()
    with near, far, VhostPeer(path).negotiated() as peer:
        peer.accepted(Command.SET_BACKEND_REQ_FD, b"", [near.fileno()])
        _hide(far, os.dup(peer.sock.fileno()), os.dup(far.fileno()))


def channel_flood(path: Path) -> None:
    """Bytes and fds where nothing is expected, and our own sending side filled up."""
    near, far = socket.socketpair()
    with near, far, VhostPeer(path).negotiated() as peer, hostile_fds.one(os.eventfd(0)) as event:
        near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(bytes(1 << 16))
        near.setblocking(True)
        peer.accepted(Command.SET_BACKEND_REQ_FD, b"", [near.fileno()])
        for _ in range(ROUNDS):
            far.sendmsg([bytes(4096)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [event] * 8))])
        peer.served()


def channels(path: Path) -> None:
    """One after another, closed and left open in turn."""
    with VhostPeer(path).negotiated() as peer:
        for _ in range(ROUNDS):
            near, far = socket.socketpair()
            with near, far:
                peer.accepted(Command.SET_BACKEND_REQ_FD, b"", [near.fileno()])
        peer.served()


def blocking(path: Path) -> None:
    """All eventfds full, and made to block again behind the server's back, while a ring breaks."""
    with running(path) as (peer, rings):
        for fd in (*rings.calls, *rings.errors):
            os.eventfd_write(fd, FULL)
        for _ in range(20):
            for fd in (*rings.kicks, *rings.calls, *rings.errors):
                fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            peer.served()
        rings.submit(1, loops=True)
        for _ in range(20):
            peer.served()


def kick_storm(path: Path) -> None:
    """A doorbell that never falls silent, and one that is its own interrupt."""
    with running(path) as (peer, rings), hostile_fds.one(os.eventfd(1 << 30, os.EFD_SEMAPHORE)) as endless:
        for index in range(2):
            peer.accepted(Command.SET_VRING_KICK, wire.U64(index).pack(), [endless])
            peer.accepted(Command.SET_VRING_CALL, wire.U64(index).pack(), [endless])
        rings.submit(200)
        for _ in range(20 * ROUNDS):
            os.eventfd_write(rings.kicks[0], 1)
        time.sleep(0.1)
        peer.served()


ACTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    **{f"counts-{name.name.lower().replace('_', '-')}": (
        f"sends 0, 2, 8, 9 and 253 fds with {name.name}", wrong_counts(name), f"refused {name.name}")
       for name in BODIES},
    **{f"kinds-{name.name.lower().replace('_', '-')}": (
        f"sends fds of every wrong kind with {name.name}", wrong_kinds(name), f"refused {name.name}")
       for name in BODIES},
    "fd-stray": ("sends an fd where none belongs", stray, "at most 0 belong"),
    "fd-spread": ("spreads 65 fds over one message", spread, "fds, at most"),
    "fd-half": ("vanishes after 8 fds and half a message", half, "the connection ended inside a message"),
    "fd-lingers": ("sends a TCP socket whose close takes a minute", lingering(Command.SET_OWNER), "at most 0 belong"),
    "fd-lingers-inside": ("sends such a socket inside two UNIX sockets",
        lingering_inside(Command.SET_OWNER), "at most 0 belong"),
    "channel-lingers": ("makes such a socket the back-end channel",
        lingering(Command.SET_BACKEND_REQ_FD), "is no UNIX stream socket"),
    "channel-lingers-inside": ("leaves such a socket unread in the back-end channel",
        lingering_inside(Command.SET_BACKEND_REQ_FD), ""),
    "channel-itself": ("makes its own end of the connection the back-end channel, and leaves",
        channel_is_itself, "is a connection to this process"),
    "channel-hides-itself": ("leaves its own end of the connection unread in the back-end channel, and leaves",
        channel_hides_itself, ""),
    "channel-flood": ("floods a back-end channel it never reads", channel_flood, ""),
    "channels": ("sets 1000 back-end channels and closes each", channels, ""),
    "blocking": ("fills its eventfds and makes them block while a ring breaks", blocking, ""),
    "kick-storm": ("rings the doorbells without an end", kick_storm, ""),
}  # fmt: skip
