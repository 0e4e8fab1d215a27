"""Hostile acts of a vhost-user front end: its stream, its memory, its rings, its configuration. See `hostile_peers`."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import hostile_vhost_fds
from tests.support.hostile_ram import HUGE_NBYTES, PAGE, memfd
from tests.support.hostile_vhost_peer import (
    GPA,
    HVA,
    RAM_NBYTES,
    VhostPeer,
    address,
    enable,
    region,
    rings,
    running,
    table,
)
from vdev.transports.ram import MAX_FILES
from vdev.wire import vhost_user as wire
from vdev.wire.vhost_user import Command

PAUSE_S = 0.02
MANY = 1000
LAST = (1 << 64) - PAGE  # the address space's last page
Act = Callable[[Path], None]
GET_FEATURES = wire.message(Command.GET_FEATURES)
CUT = wire.message(Command.SET_VRING_NUM, wire.RingState(0, 256).pack())[:-3]

# The stream


def cut(nbytes: int) -> Act:
    """Vanish after so much of a message."""

    def act(path: Path) -> None:
        with VhostPeer(path).negotiated() as peer:
            peer.send(CUT[:nbytes])

    return act


def oversize(path: Path) -> None:
    with VhostPeer(path) as peer:
        peer.send(wire.Header(Command.SET_CONFIG, wire.VERSION, 64 << 20).pack())
        peer.wait_for_the_end()


def garbage(path: Path) -> None:
    with VhostPeer(path) as peer:
        peer.send(b"\xff" * 4096)
        peer.wait_for_the_end()


def slow(path: Path) -> None:
    with VhostPeer(path) as peer:
        for byte in CUT:
            peer.send(bytes([byte]))
            time.sleep(PAUSE_S)


def half_closed(path: Path) -> None:
    with running(path) as (peer, _):
        peer.sock.shutdown(socket.SHUT_WR)
        peer.wait_for_the_end()


def half_closed_inside(path: Path) -> None:
    with VhostPeer(path).negotiated() as peer:
        peer.send(CUT)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.wait_for_the_end()


def deaf(path: Path) -> None:
    with VhostPeer(path).negotiated() as peer:
        peer.sock.shutdown(socket.SHUT_RD)
        with contextlib.suppress(ConnectionError):
            for _ in range(2):
                peer.tell(Command.GET_FEATURES)


def never_reads(command: int, flags: int) -> Act:
    def act(path: Path) -> None:
        with VhostPeer(path).negotiated() as peer, contextlib.suppress(ConnectionError):
            while True:
                peer.tell(command, flags=flags)

    return act


def vanishes(path: Path) -> None:
    """With the rings running, requests in them and messages under way."""
    with running(path) as (peer, both):
        both.submit(200)
        peer.send(GET_FEATURES * 40)


# Messages


def refused(*messages: tuple[int, bytes]) -> Act:
    """Messages that must be refused, and an honest one after them."""

    def act(path: Path) -> None:
        with VhostPeer(path).negotiated() as peer:
            for command, body in messages:
                peer.nonsense(command, body)
            peer.served()

    return act


def bad_flags(path: Path) -> None:
    """Of another version, or an answer to nothing."""
    with VhostPeer(path).negotiated() as peer:
        for flags in (0, 2, 3, wire.VERSION | wire.REPLY):
            peer.send(wire.Header(Command.SET_OWNER, flags, 0).pack())
        peer.served()


def while_running(*messages: tuple[int, bytes]) -> Act:
    """Messages that must be refused as long as the rings run."""

    def act(path: Path) -> None:
        with running(path) as (peer, _):
            for command, body in messages:
                peer.nonsense(command, body)
            peer.served()

    return act


# Memory


def senseless(*regions: bytes) -> Act:
    """ADD_MEM_REGs of one page's file beside a good one, each of which must be refused."""

    def act(path: Path) -> None:
        with VhostPeer(path).negotiated() as peer, memfd(PAGE) as ram:
            peer.accepted(Command.ADD_MEM_REG, region(nbytes=PAGE), [ram])
            for body in regions:
                peer.nonsense(Command.ADD_MEM_REG, body, [ram])
            peer.accepted(Command.REM_MEM_REG, region(nbytes=PAGE))

    return act


def bad_table(path: Path) -> None:
    """Tables of eight regions whose last one is wrong, while the rings are in the first."""
    good = [(GPA + index * RAM_NBYTES, RAM_NBYTES, HVA + index * RAM_NBYTES, 0) for index in range(7)]
    wrong = [(GPA, PAGE, LAST, 0), (LAST, RAM_NBYTES, 1 << 40, 0), (GPA - PAGE, PAGE, 1 << 40, 1 << 62), good[3]]
    with running(path) as (peer, both):
        for last in wrong:
            peer.nonsense(Command.SET_MEM_TABLE, table(*good, last), [both.ram] * 8)
            both.submit(1)
            peer.served()
        peer.nonsense(Command.SET_MEM_TABLE, wire.MemoryTable(0xFFFFFFFF, 0).pack())


def many_regions(path: Path) -> None:
    """More than there are slots, all of one file, as fast as they can be sent."""
    with VhostPeer(path).negotiated() as peer, memfd(PAGE) as ram:
        for index in range(1 << 16):
            at = index * PAGE
            peer.tell(Command.ADD_MEM_REG, region(GPA + at, PAGE, HVA + at), [ram])
        peer.served()


def many_files(path: Path) -> None:
    with VhostPeer(path).negotiated() as peer:
        for index in range(MAX_FILES + 4):
            at = index * PAGE
            with memfd(PAGE) as ram:
                peer.accepted(Command.ADD_MEM_REG, region(GPA + at, PAGE, HVA + at), [ram])


def sparse(path: Path) -> None:
    with VhostPeer(path).negotiated() as peer:
        for index in range(1, 5):
            with memfd(HUGE_NBYTES) as ram:
                peer.accepted(Command.ADD_MEM_REG, region(index << 45, HUGE_NBYTES, index << 45), [ram])


def table_storm(path: Path) -> None:
    """The memory taken away and given back under running rings."""
    with running(path) as (peer, both):
        for _ in range(200):
            peer.accepted(Command.SET_MEM_TABLE, table())
            both.submit(8)
            peer.accepted(Command.SET_MEM_TABLE, table((GPA, RAM_NBYTES, HVA, 0)), [both.ram])


def truncated(path: Path) -> None:
    """Unsealed RAM with rings in it, truncated; then everything that would touch it."""
    with VhostPeer(path).negotiated() as peer, rings(sealed=False) as both:
        peer.accepted(Command.ADD_MEM_REG, region(), [both.ram])
        both.configure(peer)
        os.ftruncate(both.ram, 0)
        for _ in range(3):
            enable(peer, True)
            os.eventfd_write(both.kicks[0], 1)
            peer.served()
            enable(peer, False)


def other_ram(path: Path) -> None:
    """Main RAM that is not the RAM the VM's other functions have."""
    with VhostPeer(path).negotiated() as peer, rings() as both:
        peer.accepted(Command.ADD_MEM_REG, region(gpa=0), [both.ram])
        both.start(peer)
        peer.served()


# Rings


def early(path: Path) -> None:
    """Enabled before anything else was said, then with doorbells and an index but no addresses, and no memory."""
    with VhostPeer(path).negotiated() as peer, rings() as both:
        enable(peer, True)
        enable(peer, False)
        for index in range(2):
            peer.accepted(Command.SET_VRING_BASE, wire.RingState(index, 7).pack())
            peer.accepted(Command.SET_VRING_KICK, wire.U64(index).pack(), [both.kicks[index]])
        enable(peer, True)
        os.eventfd_write(both.kicks[0], 1)
        peer.served()


def at_the_edge(path: Path) -> None:
    """Rings that begin in memory and end behind it, and one on an odd address."""
    with VhostPeer(path).negotiated() as peer, rings() as both:
        peer.accepted(Command.ADD_MEM_REG, region(nbytes=RAM_NBYTES // 2), [both.ram])
        for at in (RAM_NBYTES // 2 - 0x14800, 1):
            both.start(peer, HVA + at)
            os.eventfd_write(both.kicks[0], 1)
            peer.served()
            enable(peer, False)


def on_top_of_each_other(path: Path) -> None:
    with VhostPeer(path).negotiated() as peer, rings() as both:
        peer.accepted(Command.ADD_MEM_REG, region(), [both.ram])
        both.configure(peer)
        for index in range(2):
            peer.accepted(Command.SET_VRING_ADDR, wire.RingAddress(index, 0, HVA, HVA, HVA, 0).pack())
        enable(peer, True)
        both.submit(100)
        peer.served()


def lost(path: Path) -> None:
    """Memory taken away between the addresses and the start, with an index to go on from."""
    with VhostPeer(path).negotiated() as peer, rings() as both:
        for base in (0, 7):
            peer.accepted(Command.ADD_MEM_REG, region(), [both.ram])
            both.configure(peer, base=base)
            peer.accepted(Command.REM_MEM_REG, region())
            enable(peer, True)
            os.eventfd_write(both.kicks[0], 1)
            peer.served()
            enable(peer, False)


def loop(path: Path) -> None:
    with running(path) as (peer, both):
        both.submit(1, loops=True)
        for _ in range(20):
            peer.served()


def restarts(path: Path) -> None:
    with running(path) as (peer, both):
        for index in range(300):
            both.submit(1 + index % 200)
            enable(peer, False)
            enable(peer, True)


def resets(path: Path) -> None:
    with running(path) as (peer, both):
        for _ in range(300):
            both.submit(100)
            peer.accepted(Command.RESET_DEVICE)
        peer.served()


def _states(command: int, *states: tuple[int, int]) -> list[tuple[int, bytes]]:
    return [(command, wire.RingState(*state).pack()) for state in states]


def _config(command: int, *accesses: tuple[int, int, int]) -> list[tuple[int, bytes]]:
    """Accesses by offset, size and the number of bytes that really follow."""
    return [(command, wire.ConfigAccess(offset, said, 0).pack() + bytes(sent)) for offset, said, sent in accesses]


_CUT = "the connection ended inside a message"
_MAX32 = 0xFFFFFFFF
_CONFIGS = [(0, 300, 300), (256, 1, 1), (_MAX32, 1, 1), (1, _MAX32, 64), (0, 0, 64), (0, 4084, 4084)]
_UNKNOWN = [(number, bytes(8)) for number in (0, 4, 6, 7, 19, 28, 31, 33, 39, 41, 44, 45, 99, 1 << 31, _MAX32)]
_SIZES = [(number, bytes(nbytes)) for number in range(50) for nbytes in (3, 4096)]
_OUTSIDE = [(Command.SET_VRING_ADDR, address(index, hva)) for index, hva in ((0, 0), (0, 1 << 63), (1, HVA), (9, HVA))]
_RUNNING = [*_states(Command.SET_VRING_NUM, (0, 128)), *_states(Command.SET_VRING_BASE, (0, 1)),
            (Command.SET_FEATURES, bytes(8))]  # fmt: skip
_REGION = "refused ADD_MEM_REG"

ACTS: dict[str, tuple[str, Act, str]] = {
    "garbage": ("bytes that are no message", garbage, "allowed: up to 4096"),
    "cut-header": ("vanishes inside a header", cut(7), _CUT),
    "cut-body": ("vanishes inside a body", cut(15), _CUT),
    "promise-64m": ("promises a body of 64 MiB", oversize, "a body of 67108864 bytes"),
    "slow": ("sends a byte at a time, then vanishes", slow, _CUT),
    "half-closed": ("closes its sending side while its rings run", half_closed, ""),
    "half-closed-inside": ("closes its sending side inside a message", half_closed_inside, _CUT),
    "deaf": ("shuts its receiving side and asks", deaf, ""),
    "never-reads": ("asks and never reads", never_reads(Command.GET_FEATURES, 0), "the client does not read"),
    "never-reads-acks": ("wants everything acknowledged and never reads",
        never_reads(Command.SET_OWNER, wire.NEED_REPLY), "the client does not read"),
    "vanishes": ("vanishes with requests under way", vanishes, ""),
    "unknown-messages": ("sends messages nobody knows, or for other devices", refused(*_UNKNOWN), "not known, or"),
    "wrong-sizes": ("sends every message with 3 bytes and with 4096", refused(*_SIZES), "refused GET_FEATURES"),
    "bad-flags": ("sends messages of another version, and answers", bad_flags, "are not those of a request"),
    "many-refusals": ("sends 1000 wrong messages",
        refused(*[(Command.REM_MEM_REG, region())] * MANY), "refused REM_MEM_REG"),
    "features": ("accepts features that were not offered",
        refused((Command.SET_FEATURES, b"\xff" * 8), (Command.SET_PROTOCOL_FEATURES, b"\xff" * 8)), "were not offered"),
    "ram-beyond": ("adds more than the file has", senseless(region(1 << 40, 2 * PAGE, 1 << 40)), "the map ends at"),
    "ram-offset": ("adds from an offset behind the file",
        senseless(*(region(1 << 40, PAGE, 1 << 40, at) for at in (PAGE, 1 << 62, LAST))), _REGION),
    "ram-wraps": ("adds past the end of either address space",
        senseless(region(LAST, 2 * PAGE, 1 << 40), region(1 << 40, 2 * PAGE, LAST)), _REGION),
    "ram-nothing": ("adds no bytes", senseless(region(1 << 40, 0, 1 << 40)), _REGION),
    "ram-overlap": ("adds what is there, for the guest or for itself",
        senseless(region(GPA, PAGE, 1 << 40), region(1 << 40, PAGE, HVA)), _REGION),
    "ram-table": ("gives tables with a wrong region at the end", bad_table, "refused SET_MEM_TABLE"),
    "ram-table-storm": ("takes its RAM away under running rings and gives it back, 200 times", table_storm, ""),
    "ram-many-regions": ("adds 65536 regions", many_regions, "more than 509 memory regions"),
    "ram-many-files": ("adds 260 files", many_files, "more than 256 RAM files"),
    "ram-sparse": ("adds files of 16 TiB", sparse, "takes the VM past"),
    "ram-truncated": ("truncates its unsealed RAM with rings in it", truncated, "not sealed against shrinking"),
    "ram-other": ("has another RAM than the VM's other functions", other_ram, "is not the RAM that this VM's other"),
    "ring-outside": ("has its rings outside memory", refused(*_OUTSIDE), "is in no memory region"),
    "ring-edge": ("has rings that leave memory, or are not aligned", at_the_edge, "a ring cannot be used"),
    "ring-overlap": ("has all rings at one address", on_top_of_each_other, ""),
    "ring-lost": ("takes the memory away before it starts the rings", lost, "a ring cannot be used"),
    "ring-loop": ("submits a chain that never ends", loop, "a ring is broken"),
    "ring-size": ("has rings of 0, 3, 512 and 2^32-1 entries",
        refused(*_states(Command.SET_VRING_NUM, (0, 0), (0, 3), (1, 512), (0, _MAX32))), "is not a power of two"),
    "ring-number": ("speaks of rings there are not", refused(
        *_states(Command.SET_VRING_NUM, (2, 256)), *_states(Command.GET_VRING_BASE, (2, 0), (_MAX32, 0)),
        *_states(Command.SET_VRING_ENABLE, (2, 1), (_MAX32, 0))), "there is no ring"),
    "ring-base": ("begins at entries there are not",
        refused(*_states(Command.SET_VRING_BASE, (0, 1 << 16), (1, _MAX32))), "cannot start at"),
    "ring-enable": ("enables a ring twice as much",
        refused(*_states(Command.SET_VRING_ENABLE, (0, 2), (1, _MAX32))), "neither enables nor"),
    "ring-early": ("enables rings before it says where they are", early, "a ring cannot be used"),
    "ring-running": ("changes rings that run", while_running(*_RUNNING), "runs"),
    "ring-restarts": ("stops and starts 300 times with requests under way", restarts, ""),
    "ring-resets": ("resets the device 300 times", resets, ""),
    "config-read": ("reads beyond the configuration", refused(*_config(Command.GET_CONFIG, *_CONFIGS)),
        "of configuration at"),
    "config-write": ("writes beyond the configuration", refused(*_config(Command.SET_CONFIG, *_CONFIGS)),
        "of configuration at"),
    **hostile_vhost_fds.ACTS,
}  # fmt: skip
