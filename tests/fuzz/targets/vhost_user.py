"""vhost-user: what a front end sends to a unit, whole messages and any bytes, with any descriptors, rings that run.

Input: one byte (its lowest bit: the rings are set up and enabled before), then moves (`_MOVES`). A second reader of the
stream (`Expected`) says which messages were sent. What has an answer of its own gets it, at once, whole or empty; the
others an acknowledgement where REPLY_ACK was accepted and the message asks for it. The connection ends where a message
cannot be one, with a reason in the log, and nowhere else; no descriptor is left, and the unit is as on power-up.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from tests.fuzz.line import (
    EVENTFD,
    MAX_TURNS,
    MEMFD,
    RAM_NBYTES,
    SOCKET,
    Line,
    NotedVm,
    fields,
    make_fds,
    number,
    play,
    sent,
)
from tests.fuzz.reader import Reader
from vdev.functions.base import Worker
from vdev.functions.vhost import VhostCarrier
from vdev.functions.vhost_rings import State
from vdev.functions.viommu import ViommuDevice
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.transports.identity import Peer
from vdev.transports.vhost_session import COMMANDS, PROTOCOL_FEATURES
from vdev.transports.vhost_user import VhostUserConnection
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.polling import PollWindow
from vdev.wire import vhost_user as wire
from vdev.wire import viommu, vring
from vdev.wire.vhost_user import Command, ProtocolFeature

PEER = Peer(0, 0, 0)  # of a process that cannot be seen: nothing of this one is looked at
FLAGS = (1, 1, 1, 9, 9, 9, 0, 5, 13, 2, 3)
ENDPOINT = 0x100
HVA = 0x1000_0000  # where guest RAM is in the front end
RINGS = (0x1000, 0x2000)
AVAIL, USED, SIZE = 0x200, 0x400, 8
DATA = 0x4000
MAX_MOVES = 64
LATER_NS = 1 << 30  # longer than any poll window
# Bytes of an answer; GET_CONFIG's are as many as were asked for.
_ANSWER_NBYTES = {
    Command.GET_FEATURES: 8,
    Command.GET_PROTOCOL_FEATURES: 8,
    Command.GET_QUEUE_NUM: 8,
    Command.GET_MAX_MEM_SLOTS: 8,
    Command.GET_VRING_BASE: 8,
}


class Expected:
    """Reads what a front end sends by the protocol's rules: the messages to be answered, and whether it broke."""

    def __init__(self) -> None:
        self.unanswered: deque[tuple[wire.Header, bytes]] = deque()
        self.broken = False
        self._bytes = bytearray()
        self._fds = 0  # that came with the message being sent
        self._acknowledges = False

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._bytes)

    def feed(self, data: bytes, nfds: int) -> None:
        """It has sent this; descriptors go with the first byte."""
        self._bytes += data
        self._fds += nfds
        while len(self._bytes) >= wire.HEADER_NBYTES and not self.broken:
            header = wire.Header.parse(self._bytes)
            nbytes = wire.HEADER_NBYTES + header.size
            self.broken = header.size > wire.MAX_BODY_NBYTES
            if self.broken or len(self._bytes) < nbytes:
                return
            body = bytes(self._bytes[wire.HEADER_NBYTES : nbytes])
            del self._bytes[:nbytes]
            self._message(header, body, self._fds)
            self._fds = 0

    def _message(self, header: wire.Header, body: bytes, nfds: int) -> None:
        if header.command == Command.SET_PROTOCOL_FEATURES and header.flags & 7 == wire.VERSION and not nfds:
            value = int.from_bytes(body, "little")
            if len(body) == 8 and not value & ~PROTOCOL_FEATURES:
                self._acknowledges = bool(value & ProtocolFeature.REPLY_ACK)
        row = COMMANDS.get(header.command)
        if (row is not None and row.answers) or (self._acknowledges and header.flags & wire.NEED_REPLY):
            self.unanswered.append((header, body))


class Scene:
    """A unit over vhost-user, and the front end's end of its connection."""

    def __init__(self) -> None:
        self.vm = NotedVm()
        self.now_ns = 0
        self.frozen = False
        self.engine = Engine(UnitSettings("unit"), [EndpointSettings(ENDPOINT, "endpoint")])
        self.device = ViommuDevice(self.engine, wake=_nothing, quiesce=lambda: None, window=PollWindow())
        self.carrier = VhostCarrier(
            "unit", self.device, NoOrdering(), system_reset=self.device.system_reset, freeze=self._freeze
        )
        self.device.connect(self.carrier)
        self.line = Line(self._connect)
        self.expected = Expected()
        self.received = bytearray()
        self.ram = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.ram, RAM_NBYTES)

    def _connect(self, sock: Any) -> VhostUserConnection:
        return VhostUserConnection(sock, PEER, self.carrier, self.vm, lambda: self.now_ns)

    def _freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    # what a front end does

    async def send(self, data: bytes, fds: list[int]) -> None:
        """Send it, and see what comes back."""
        if self.line.send(data, fds):
            self.expected.feed(data, len(fds))
            await self.settle()

    async def message(self, given: Reader) -> None:
        """A message whose header fits; its record's fields are probably of interest."""
        command, flags = given.byte(), FLAGS[given.byte() % len(FLAGS)]
        row = COMMANDS.get(command)
        body = fields(given, row.record.layout) if row is not None and row.record is not None else b""
        body += given.take(given.byte())
        await self.send(wire.Header(command, flags, len(body)).pack() + body, make_fds(given))

    async def table(self, given: Reader) -> None:
        """A memory table with as many regions as descriptors, the first one guest RAM."""
        count = given.byte() % 9
        regions = [wire.MemoryRegion(0, RAM_NBYTES, HVA, 0)]
        regions += [wire.MemoryRegion(*(number(given, 8) for _ in range(4))) for _ in range(count)]
        body = wire.MemoryTable(len(regions), 0).pack() + b"".join(region.pack() for region in regions)
        fds = [os.dup(self.ram), *make_fds(given)]
        await self.send(wire.message(Command.SET_MEM_TABLE, body, wire.NEED_REPLY), fds)

    async def ring(self, given: Reader) -> None:
        """A step of a start, or a stop, for one ring."""
        choice, value = given.byte(), given.byte()
        index, kind = choice & 1, choice >> 1 & 7
        base = HVA + RINGS[index] + (number(given, 2) if choice & 0x80 else 0)
        state = wire.RingState(index, value).pack()
        steps: tuple[tuple[int, bytes], ...] = (
            (Command.SET_VRING_NUM, state),
            (Command.SET_VRING_BASE, state),
            (Command.SET_VRING_ADDR, wire.RingAddress(index, 0, base, base + USED, base + AVAIL, 0).pack()),
            (Command.SET_VRING_ENABLE, wire.RingState(index, 1).pack()),
            (Command.SET_VRING_ENABLE, wire.RingState(index, 0).pack()),
            (Command.GET_VRING_BASE, state),
            (Command.SET_VRING_KICK, wire.U64(index).pack()),
            (Command.SET_VRING_CALL, wire.U64(index).pack()),
        )
        fds = [os.eventfd(value & 1)] if kind >= 6 else []
        await self.send(wire.message(*steps[kind], wire.NEED_REPLY), fds)

    async def pieces(self, given: Reader) -> None:
        """Any bytes: a header, a piece of a message, several."""
        fds = make_fds(given)
        await self.send(given.take(given.byte()) or b"\0", fds)

    async def start(self) -> None:
        """A driver begins."""
        features = wire.U64(self.carrier.offered_features).pack()
        await self.send(wire.message(Command.SET_PROTOCOL_FEATURES, wire.U64(PROTOCOL_FEATURES).pack()), [])
        await self.send(wire.message(Command.SET_FEATURES, features), [])
        await self.table(Reader(b""))
        for step in (0, 1, 2, 6, 7, 3):
            for index in range(2):
                await self.ring(Reader(bytes([step << 1 | index, 0 if step == 1 else SIZE])))

    # what happens around it

    async def request(self, given: Reader) -> None:
        """The driver puts a request of any bytes into the ring, and the unit works."""
        nbytes = given.byte() % 80
        os.pwrite(self.ram, given.take(nbytes), DATA)
        pack, at = vring.DESCRIPTOR.pack, RINGS[0]
        os.pwrite(self.ram, pack(DATA, nbytes, vring.DESC_F_NEXT, 1) + pack(DATA + 0x100, 4, vring.DESC_F_WRITE, 0), at)
        available = int.from_bytes(os.pread(self.ram, 2, at + AVAIL + 2), "little")
        os.pwrite(self.ram, bytes(2), at + AVAIL + 4 + 2 * (available % SIZE))
        os.pwrite(self.ram, ((available + 1) & 0xFFFF).to_bytes(2, "little"), at + AVAIL + 2)
        self.carrier.kicked(0)
        self._work()

    async def write(self, given: Reader) -> None:
        """Any bytes anywhere in guest RAM."""
        os.pwrite(self.ram, given.take(given.byte() % 33), given.number(2) % (RAM_NBYTES - 33))
        self._work()

    async def reset(self, given: Reader) -> None:
        """Another function of the VM was reset, or the VM stops or runs again, or a ring is kicked."""
        choice = given.byte()
        if choice & 3 == 0:
            self.carrier.function_was_reset()
        elif choice & 3 == 1:
            self.carrier.hold_config(bool(choice & 4))
        else:
            self.carrier.kicked(choice >> 2 & 1)
        self._work()
        await self.settle()

    def _work(self) -> None:
        for _ in range(8):
            self.now_ns += LATER_NS
            self.device.run_slice(self.now_ns)

    # what is checked

    async def settle(self) -> None:
        """Turns of the loop until everything that is to be answered is."""
        for _ in range(MAX_TURNS):
            self.received += await self.line.turn()
            while self._take_message():
                pass
            if self.line.connection.is_over or not self.expected.unanswered:
                break
        if self.line.connection.is_over:
            assert self.expected.broken, f"the connection ended: {self.vm.notes}"
        else:
            assert not self.expected.unanswered, "a message is not answered"
        self.received += await self.line.turn()
        while self._take_message():
            pass
        assert self.carrier.state is not State.SUSPENDED or self.frozen, "DMA goes on while the rings are suspended"
        assert self.carrier.state is not State.RUNNING or not self.frozen

    def _take_message(self) -> bool:
        if not self.received:
            return False
        header = wire.Header.parse(self.received)
        assert len(self.received) >= wire.HEADER_NBYTES + header.size, "half a message"
        body = bytes(self.received[wire.HEADER_NBYTES : wire.HEADER_NBYTES + header.size])
        del self.received[: wire.HEADER_NBYTES + header.size]
        assert self.expected.unanswered, "a reply to nothing"
        request, given = self.expected.unanswered.popleft()
        assert (header.command, header.flags) == (request.command, wire.VERSION | wire.REPLY)
        row = COMMANDS.get(request.command)
        if row is None or not row.answers:
            assert len(body) == 8
            assert int.from_bytes(body, "little") < 4096, "no errno"
            assert row is not None or int.from_bytes(body, "little"), "an unknown message was accepted"
        elif body and request.command == Command.GET_CONFIG:
            access = wire.ConfigAccess.parse(given)
            assert access.offset + access.nbytes <= wire.MAX_CONFIG_NBYTES
            assert len(body) == 12 + access.nbytes == len(given)
        elif body:
            assert len(body) == _ANSWER_NBYTES[Command(request.command)]
        return True

    async def finish(self) -> None:
        """The front end hangs up."""
        await self.settle()
        json.dumps(self.line.connection.describe())
        await self.line.close()
        os.close(self.ram)
        assert self.carrier.state is State.IDLE
        assert not self.frozen
        assert not self.carrier.memory.regions()
        assert not self.engine.table.domains, "a domain outlives its machine"
        if self.expected.broken or self.expected.inside:
            assert any(kind == "connections dropped" for kind, _ in self.vm.notes), "no reason is named"
        self.vm.close()


_MOVES: tuple[Callable[[Scene, Reader], Awaitable[None]], ...] = (
    Scene.message,
    Scene.pieces,
    Scene.ring,
    Scene.table,
    Scene.request,
    Scene.write,
    Scene.reset,
)


async def _play(data: bytes) -> None:
    given, scene = Reader(data), Scene()
    if given.byte() & 1:
        await scene.start()
    for _ in range(MAX_MOVES):
        if not given.more or scene.expected.broken:
            break
        await _MOVES[given.byte() % len(_MOVES)](scene, given)
    await scene.finish()


def one_input(data: bytes) -> None:
    """Play one input in a new VM."""
    play(partial(_play, data))


def seeds() -> Iterator[bytes]:
    """A start as QEMU does it, step by step; stops and restarts; memory that comes and goes; configuration."""
    questions = (Command.GET_FEATURES, Command.GET_PROTOCOL_FEATURES, Command.GET_QUEUE_NUM, Command.GET_MAX_MEM_SLOTS)
    yield b"\0" + b"".join(sent(wire.message(command)) for command in questions)
    protocol = sent(wire.message(Command.SET_PROTOCOL_FEATURES, wire.U64(PROTOCOL_FEATURES).pack()))
    yield b"\0" + protocol + sent(wire.message(Command.SET_OWNER, b"", wire.NEED_REPLY)) + b"\3\0\0"
    region = wire.SingleRegion(0, 0, RAM_NBYTES, HVA, 0).pack()
    added = sent(wire.message(Command.ADD_MEM_REG, region, wire.NEED_REPLY), MEMFD)
    yield b"\0" + protocol + added + sent(wire.message(Command.REM_MEM_REG, region, wire.NEED_REPLY))
    attach = viommu.Attach(viommu.T_ATTACH, bytes(3), 1, ENDPOINT).pack()
    ask = bytes([4, len(attach)]) + attach
    stop = bytes([2, 8, 0, 2, 9, 0, 2, 10, 0, 2, 11, 0])
    go_on = b"".join(bytes([2, step, 8]) for step in (0, 1, 4, 5, 12, 13, 14, 15)) + bytes([2, 2, 1, 2, 3, 0])
    enable = bytes([2, 6, 1, 2, 7, 1])
    yield b"\1" + ask + stop + go_on + enable + ask
    yield b"\1" + ask + stop + b"\6\0" + go_on + enable + ask + sent(wire.message(Command.RESET_DEVICE))
    access = wire.ConfigAccess(0, 64, 0).pack() + bytes(64)
    yield b"\1" + sent(wire.message(Command.GET_CONFIG, access)) + sent(wire.message(Command.SET_CONFIG, access))
    channel = sent(wire.message(Command.SET_BACKEND_REQ_FD, b"", wire.NEED_REPLY), SOCKET)
    yield b"\1" + channel + sent(wire.message(Command.SET_VRING_ERR, wire.U64(0).pack(), 8), EVENTFD) + b"\6\1\6\5"
    yield b"\1" + b"\5\4\xff\xff\xff\xff\0\x12" + b"\6\2"
    for command in COMMANDS:
        yield bytes([1, 0, command, 3]) + bytes(24) + bytes([0, command, 9, 1, 1, 1])


def _nothing(worker: Worker) -> None:
    """Slices are run by the scene."""
