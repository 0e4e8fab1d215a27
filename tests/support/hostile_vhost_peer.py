"""One blocking vhost-user connection of a hostile front end, and rings for it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.support.hostile_peer import Peer
from tests.support.hostile_ram import memfd
from vdev.transports.vhost_session import PROTOCOL_FEATURES
from vdev.wire import vhost_user as wire
from vdev.wire.vhost_user import Command
from vdev.wire.virtio_pci import F_EVENT_IDX

GPA = 1 << 36  # where no other function of the VM has anything
HVA = 0x7F00_0000_0000
RAM_NBYTES = 1 << 20
RING_SIZE = 256
RING_STRIDE, AVAIL_AT, USED_AT = 0x10000, 0x2000, 0x4000
DESCRIPTOR = struct.Struct("<QIHH")
NEXT = 1


class VhostPeer(Peer):
    """`tell` sends and goes on, `ask` waits for the answer; every step raises what `Peer`'s steps raise."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.features = 0

    def negotiated(self) -> Self:
        """With all features, so that `acked` works."""
        try:
            self.features = wire.U64.parse(self.ask(Command.GET_FEATURES)).value & ~F_EVENT_IDX
            self.tell(Command.SET_PROTOCOL_FEATURES, wire.U64(PROTOCOL_FEATURES).pack())
            self.accepted(Command.SET_FEATURES, wire.U64(self.features).pack())
        except BaseException:
            self.sock.close()
            raise
        return self

    def tell(self, command: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """A message whose answer, if there is one, nobody reads."""
        self.send(wire.message(command, body, flags), fds)

    def ask(self, command: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> bytes:
        """The body of the answer to a message that has one."""
        self.tell(command, body, fds, flags)
        header = wire.Header.parse(self._exactly(wire.HEADER_NBYTES))
        assert header.command == command
        return self._exactly(header.size)

    def acked(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> int:
        """The errno of the acknowledgement; nonsense has one, too, where the answer has no body."""
        answer = self.ask(command, body, fds, wire.NEED_REPLY)
        return wire.U64.parse(answer).value if answer else -1

    def accepted(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A message that must be taken."""
        code = self.acked(command, body, fds)
        assert code == 0, f"command {command}: errno {code}"

    def nonsense(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A message that must be refused."""
        assert self.acked(command, body, fds) != 0, f"command {command} was accepted"

    def served(self) -> None:
        """It must still be answered."""
        assert len(self.ask(Command.GET_FEATURES)) == wire.U64.layout.size


def region(gpa: int = GPA, nbytes: int = RAM_NBYTES, hva: int = HVA, offset: int = 0) -> bytes:
    """The body of an ADD_MEM_REG or REM_MEM_REG."""
    return wire.SingleRegion(0, gpa, nbytes, hva, offset).pack()


def table(*regions: tuple[int, int, int, int]) -> bytes:
    """The body of a SET_MEM_TABLE, from GPAs, sizes, HVAs and offsets."""
    rows = b"".join(wire.MemoryRegion(*fields).pack() for fields in regions)
    return wire.MemoryTable(len(regions), 0).pack() + rows


def address(index: int, hva: int = HVA) -> bytes:
    """The body of a SET_VRING_ADDR for a ring where `Rings` has it."""
    at = hva + index * RING_STRIDE
    return wire.RingAddress(index, 0, at, at + USED_AT, at + AVAIL_AT, 0).pack()


class Rings:
    """RAM, and two rings in it with their eventfds, which are handed over by `start`."""

    def __init__(self, ram: int, kicks: Sequence[int], calls: Sequence[int], errors: Sequence[int]) -> None:
        self.ram, self.kicks, self.calls, self.errors = ram, kicks, calls, errors

    def configure(self, peer: VhostPeer, hva: int = HVA, base: int = 0) -> None:
        """Everything of a start but the memory and the enabling."""
        for index in range(2):
            number = wire.U64(index).pack()
            peer.accepted(Command.SET_VRING_NUM, wire.RingState(index, RING_SIZE).pack())
            peer.accepted(Command.SET_VRING_BASE, wire.RingState(index, base).pack())
            peer.accepted(Command.SET_VRING_ADDR, address(index, hva))
            peer.accepted(Command.SET_VRING_KICK, number, [self.kicks[index]])
            peer.accepted(Command.SET_VRING_CALL, number, [self.calls[index]])
            peer.accepted(Command.SET_VRING_ERR, number, [self.errors[index]])

    def start(self, peer: VhostPeer, hva: int = HVA, base: int = 0) -> None:
        """DRIVER_OK; the memory is the caller's to have added."""
        self.configure(peer, hva, base)
        enable(peer, True)

    def submit(self, chains: int, *, loops: bool = False) -> None:
        """`chains` requests of 8 bytes for ring 0, or the first of them a chain that never ends."""
        for head in range(chains):
            flags, following = (NEXT, head) if loops else (0, 0)
            os.pwrite(self.ram, DESCRIPTOR.pack(GPA + 0x80000, 8, flags, following), head * DESCRIPTOR.size)
        heads = struct.pack(f"<{chains}H", *range(chains))
        os.pwrite(self.ram, struct.pack("<HH", 0, chains) + heads, AVAIL_AT)
        os.eventfd_write(self.kicks[0], 1)


def enable(peer: VhostPeer, enabled: bool) -> None:
    """Both rings."""
    for index in range(2):
        peer.accepted(Command.SET_VRING_ENABLE, wire.RingState(index, int(enabled)).pack())


@contextmanager
def rings(*, sealed: bool = True, flags: int = 0) -> Iterator[Rings]:
    """RAM and eventfds of our own; blocking ones unless `flags` say otherwise."""
    with ExitStack() as stack:
        ram = stack.enter_context(memfd(RAM_NBYTES, sealed=sealed))
        fds = [os.eventfd(0, flags | os.EFD_CLOEXEC) for _ in range(6)]
        for fd in fds:
            stack.callback(os.close, fd)
        yield Rings(ram, fds[:2], fds[2:4], fds[4:])


@contextmanager
def running(path: Path) -> Iterator[tuple[VhostPeer, Rings]]:
    """A front end whose driver runs."""
    with VhostPeer(path).negotiated() as peer, rings() as both:
        peer.accepted(Command.ADD_MEM_REG, region(), [both.ram])
        both.start(peer)
        yield peer, both
