"""What a broken or hostile process can do to a socket of `vdev serve`: a table of acts, each a plain blocking function.

An act gets the path of a socket, does its worst and leaves. Acts on `Where.FUNCTION` are stream abuse every server of a
PCI function must survive, those on `Where.VFIO` speak vfio-user first, those on `Where.VHOST` are for the socket of a
unit attached by vhost-user, those on `Where.CONTROL` for the control socket.
Tests perform each alone, the soak draws them at random; both judge what became of the process.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from tests.support import hostile_fds, hostile_ram, hostile_vhost
from tests.support.hostile_peer import VERSION, Peer, dma_map, region_read
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

STORM = 1000
NSTORMS_AT_ONCE = 4
PAUSE_S = 0.02
LINE = b'{"execute": "query-status"}\n'
STOPPED = """
import os, signal, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.send(bytes.fromhex(sys.argv[2]))
print("stopped", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


class Where(Enum):
    """Which socket an act is for."""

    FUNCTION = auto()
    VFIO = auto()
    VHOST = auto()
    CONTROL = auto()


@dataclass(frozen=True)
class Act:
    """`words` must be in the line this act causes in the log; "" for one that is not worth a warning."""

    name: str
    where: Where
    sentence: str
    do: Callable[[Path], None]
    words: str


def whatever_comes(act: Act, path: Path) -> None:
    """Perform `act` where others are at it too: it may be turned away at the door, and says nothing then."""
    with contextlib.suppress(EOFError, ConnectionError):
        act.do(path)


def garbage(path: Path) -> None:
    with Peer(path) as peer:
        peer.send(b"\xff" * 4096)
        peer.wait_for_the_end()


def cut_header(path: Path) -> None:
    with Peer(path) as peer:
        peer.send(VERSION[:7])


def cut_body(path: Path) -> None:
    with Peer(path) as peer:
        peer.send(VERSION[:30])


def promise(nbytes: int) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with Peer(path) as peer:
            peer.send(wire.Header(1, Command.VERSION, nbytes, 0, 0).pack())
            peer.wait_for_the_end()

    return act


def slow(path: Path) -> None:
    with Peer(path) as peer:
        for at in range(20):
            peer.send(VERSION[at : at + 1])
            time.sleep(PAUSE_S)


def stopped(data: bytes) -> Callable[[Path], None]:
    """After it has sent `data`."""

    def act(path: Path) -> None:
        command = [sys.executable, "-c", STOPPED, str(path), data.hex()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as popen:
            try:
                assert popen.stdout is not None
                popen.stdout.readline()
                time.sleep(PAUSE_S)
            finally:
                popen.send_signal(signal.SIGKILL)

    return act


def half_closed(path: Path) -> None:
    with Peer(path) as peer:
        peer.sock.shutdown(socket.SHUT_WR)
        peer.wait_for_the_end()


def duplicates(path: Path) -> None:
    with Peer(path):
        for _ in range(50):
            with contextlib.suppress(ConnectionError), Peer(path) as second:
                second.sock.shutdown(socket.SHUT_WR)  # should it be served because the first was not, it ends, too
                second.wait_for_the_end()


def _room_for_fds() -> None:
    """Let this process have the fds of several storms: 1024 is what a login gives.

    Not taken back: storms overlap. The process attacked has its own limit, which it got when it started.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NSTORMS_AT_ONCE * STORM
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def storm(path: Path) -> None:
    """All at once, all held open; who is refused is only told so by the end of the stream."""
    _room_for_fds()
    with ExitStack() as peers:
        for _ in range(STORM):
            peers.enter_context(Peer(path))


def deaf(path: Path) -> None:
    """Cannot be answered: its receiving side is shut."""
    with Peer(path).negotiated() as peer:
        peer.sock.shutdown(socket.SHUT_RD)
        with contextlib.suppress(ConnectionError):
            for _ in range(2):
                peer.message(Command.DEVICE_GET_INFO, wire.DeviceInfo(16, 0, 0, 0).pack())


def never_reads(path: Path) -> None:
    with Peer(path).negotiated() as peer, contextlib.suppress(ConnectionError):
        while True:
            peer.message(Command.REGION_READ, region_read(4096))


def vanishes_with_requests_under_way(path: Path) -> None:
    with Peer(path).negotiated() as peer:
        for _ in range(40):
            peer.message(Command.REGION_READ, region_read(4096))


def before_version(path: Path) -> None:
    with Peer(path) as peer:
        peer.refused(Command.DEVICE_RESET)


def refused_message(command: int, payload: bytes = b"", flags: int = 0) -> Callable[[Path], None]:
    """A message that must be refused, and an honest one after it."""

    def act(path: Path) -> None:
        with Peer(path).negotiated() as peer:
            peer.refused(command, payload, flags=flags)
            assert len(peer.request(Command.DEVICE_GET_INFO, wire.DeviceInfo(16, 0, 0, 0).pack())) == 16

    return act


def bad_version(text: bytes) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with Peer(path) as peer:
            peer.refused(Command.VERSION, bytes(4) + text)

    return act


def unasked_replies(path: Path) -> None:
    with Peer(path).negotiated() as peer:
        for ident in range(STORM):
            peer.send(wire.message(ident, Command.DMA_READ, bytes(64), 1))
        peer.request(Command.DEVICE_GET_INFO, wire.DeviceInfo(16, 0, 0, 0).pack())


def many_refusals(path: Path) -> None:
    with Peer(path).negotiated() as peer:
        for _ in range(STORM):
            peer.refused(Command.DMA_UNMAP, bytes(24))


def unmap_of_nothing_and_overlap(path: Path) -> None:
    with Peer(path).negotiated() as peer:
        peer.request(Command.DMA_MAP, dma_map(0, 8192))
        peer.refused(Command.DMA_MAP, dma_map(4096, 8192))


# The control socket


def control_garbage(path: Path) -> None:
    with Peer(path) as peer:
        peer.send(b"\xff\xfe{]\n\0\n{}\n[1]\n")
        peer.lines(4)


def control_nesting(path: Path) -> None:
    with Peer(path) as peer:
        peer.send(b'{"execute": "query-status", "id": ' + b"[" * 20000 + b"]" * 20000 + b"}\n")
        peer.lines(1)


def control_long_line(path: Path) -> None:
    with Peer(path) as peer, contextlib.suppress(ConnectionError):
        while True:
            peer.send(b"x" * 65536)


def control_half_line(path: Path) -> None:
    with Peer(path) as peer:
        peer.send(LINE[:10])


def control_slow(path: Path) -> None:
    with Peer(path) as peer:
        for at in range(len(LINE)):
            peer.send(LINE[at : at + 1])
            time.sleep(PAUSE_S / 4)
        peer.lines(1)


def control_never_reads(path: Path) -> None:
    with Peer(path) as peer:
        peer.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.sock.send(LINE * 100)
        time.sleep(PAUSE_S)


def control_vanishes(path: Path) -> None:
    with Peer(path) as peer:
        peer.send(b'{"execute": "query-events", "arguments": {"limit": 100000}}\n' * 50)


_F, _V, _H, _C = Where.FUNCTION, Where.VFIO, Where.VHOST, Where.CONTROL
_CUT = "the connection ended inside a message"
_DEEP = b'{"capabilities": ' + b"[" * 4000

ACTS = (
    Act("garbage", _F, "bytes that are no message", garbage, "allowed: 16 to"),
    Act("cut-header", _F, "vanishes inside a header", cut_header, _CUT),
    Act("cut-body", _F, "vanishes inside a body", cut_body, _CUT),
    Act("promise-64m", _F, "promises a message of 64 MiB", promise(64 << 20), "a message of 67108864 bytes"),
    Act("promise-3", _F, "promises a message of 3 bytes", promise(3), "a message of 3 bytes"),
    Act("slow", _F, "sends a byte at a time, then vanishes", slow, _CUT),
    Act("stopped", _F, "is stopped (SIGSTOP) inside a message, then killed", stopped(VERSION[:20]), _CUT),
    Act("half-closed", _F, "closes its sending side and waits", half_closed, ""),
    Act("duplicates", _F, "connects again and again while connected", duplicates, "is connected already"),
    Act("storm", _F, "connects 1000 times and holds on", storm, "is connected already"),
    Act("deaf", _V, "shuts its receiving side and asks", deaf, ""),
    Act("never-reads", _V, "asks and never reads", never_reads, "the client does not read"),
    Act("vanishes", _V, "vanishes with requests under way", vanishes_with_requests_under_way, ""),
    Act("before-version", _V, "speaks before VERSION", before_version, "VERSION comes first"),
    Act("version-nested", _V, "nests its VERSION text", bad_version(_DEEP + b"\0"), "VERSION text"),
    Act("version-long", _V, "sends a VERSION text of 9000 bytes",
        bad_version(b"{}" + b" " * 9000 + b"\0"), "at most 4096"),
    Act("unknown-command", _V, "sends an unknown command", refused_message(99), "unknown command"),
    Act("bad-type", _V, "sends what is neither request nor reply",
        refused_message(Command.DEVICE_RESET, flags=2), "neither request nor reply"),
    Act("short-payload", _V, "sends half a payload", refused_message(Command.DMA_MAP, bytes(16)), "at least 32 belong"),
    Act("outside-bar", _V, "reads outside a BAR",
        refused_message(Command.REGION_READ, wire.RegionAccess((1 << 64) - 4, 0, 8).pack()), "leaves the region"),
    Act("write-multi", _V, "promises 2^32 writes in one message",
        refused_message(Command.REGION_WRITE_MULTI, b"\xff" * 8), "writes in 0 bytes"),
    Act("unasked-replies", _V, "answers what was never asked, 1000 times", unasked_replies, ""),
    Act("many-refusals", _V, "sends 1000 wrong messages", many_refusals, "refused DMA_UNMAP"),
    Act("overlap", _V, "maps what is mapped", unmap_of_nothing_and_overlap, "overlaps region"),
    *(Act(f"ram-fd-{name}", _V, f"calls {what} guest RAM", hostile_fds.as_ram(make), words)
      for name, (what, make, words) in hostile_fds.WRONG_RAM.items()),
    Act("irq-fds", _V, "gives fds of every wrong kind for an interrupt", hostile_fds.as_vectors, "not an eventfd"),
    Act("irq-full", _V, "gives an eventfd that is full and blocks", hostile_fds.full_vector, ""),
    Act("irq-counts", _V, "gives fewer fds than vectors", hostile_fds.too_few_vectors, "fds for"),
    Act("stray-fd", _V, "sends an fd where none belongs", hostile_fds.stray, "at most 0 belong"),
    Act("fds-253", _V, "sends 253 fds at once", hostile_fds.as_many_as_the_kernel_takes, "fds, at most"),
    Act("fds-spread", _V, "spreads 60 fds over one message", hostile_fds.spread, "fds, at most"),
    Act("fds-half", _V, "vanishes after fds and half a message", hostile_fds.half, _CUT),
    Act("fd-cycle", _V, "sends the socket itself over itself, and leaves", hostile_fds.cycle, "at most 0 belong"),
    Act("fd-lingers", _V, "sends a TCP socket whose close takes a minute", hostile_fds.lingering, "at most 0 belong"),
    *(Act(f"ram-{name}", _V, what, act, words) for name, (what, act, words) in hostile_ram.ACTS.items()),
    Act("vhost-stopped", _H, "is stopped (SIGSTOP) inside a message, then killed", stopped(hostile_vhost.CUT), _CUT),
    Act("vhost-duplicates", _H, "connects again and again while connected", duplicates, "is connected already"),
    Act("vhost-storm", _H, "connects 1000 times and holds on", storm, "is connected already"),
    *(Act(f"vhost-{name}", _H, what, act, words) for name, (what, act, words) in hostile_vhost.ACTS.items()),
    Act("control-garbage", _C, "sends lines that are no JSON", control_garbage, ""),
    Act("control-nesting", _C, "nests JSON 20000 deep", control_nesting, ""),
    Act("control-long-line", _C, "sends a line without an end", control_long_line, "control: client (pid"),
    Act("control-half-line", _C, "vanishes inside a line", control_half_line, ""),
    Act("control-slow", _C, "sends a byte at a time", control_slow, ""),
    Act("control-never-reads", _C, "asks and never reads", control_never_reads, ""),
    Act("control-vanishes", _C, "vanishes while it is answered", control_vanishes, ""),
    Act("control-storm", _C, "connects 1000 times and holds on", storm, "control: refused a client (pid"),
)  # fmt: skip
