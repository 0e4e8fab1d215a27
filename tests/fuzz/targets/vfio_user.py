"""vfio-user: what a peer sends over a connection, whole messages and any bytes, cut anywhere, with any descriptors.

Input: one byte (its lowest bit: VERSION is over before), then moves, each a byte that names it and its operands
(`_MOVES`). A second reader of the stream (`Expected`) says which messages were sent. Every request that wants a reply
gets one, in order, of the right size, and success only by the rules; nothing else comes but DMA messages to the
interrupt controller; the connection ends where a message cannot be one, with a reason in the log, and nowhere else.
Another function of the same VM is served all the same, and no descriptor is left.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from tests.fuzz.line import EVENTFD, MAX_TURNS, MEMFD, RAM_NBYTES, Line, NotedVm, fields, make_fds, number, play, sent
from tests.fuzz.reader import Reader
from vdev.memory import RegionTable
from vdev.pci.function import CONFIG_NBYTES, Bar
from vdev.transports.identity import Peer
from vdev.transports.vfio_messages import DOORBELL
from vdev.transports.vfio_session import CAPABILITIES, COMMANDS
from vdev.transports.vfio_user import DEFAULT_DEADLINE_S, VfioUserConnection
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

PEER = Peer(0, 0, 0)  # of a process that cannot be seen: nothing of this one is looked at
BARS: tuple[Bar, ...] = (Bar(0, 4096), Bar(2, 1 << 16))
VECTORS = 4
VERSION = wire.Version(0, 0).pack()
FLAGS = (0, 0, 0, 0, wire.NO_REPLY, wire.TYPE_REPLY, 2, wire.ERROR)
MAX_MOVES = 64


class Function:
    """Config space and BARs of plain bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bars = BARS
        self.msix_vectors = VECTORS
        self.memory = RegionTable()
        self.raise_vector: Callable[[int], None] = lambda vector: None
        self.raise_message: Callable[[int, int, int], None] = lambda vector, address, data: None
        self.void_messages: Callable[[], None] = lambda: None
        self._spaces = {wire.REGION_CONFIG: CONFIG_NBYTES} | {bar.index: bar.nbytes for bar in BARS}

    def config_read(self, offset: int, nbytes: int) -> bytes:
        return self.bar_read(wire.REGION_CONFIG, offset, nbytes)

    def config_write(self, offset: int, data: bytes) -> None:
        self.bar_write(wire.REGION_CONFIG, offset, data)

    def bar_read(self, bar: int, offset: int, nbytes: int) -> bytes:
        assert 0 <= offset < offset + nbytes <= self._spaces[bar], "a read outside its region"
        return bytes(nbytes)

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        assert 0 <= offset < offset + len(data) <= self._spaces[bar], "a write outside its region"

    def reset(self) -> None:
        """It has no state."""

    def memory_changed(self) -> None:
        """The table says what it should: pieces that do not overlap, each with all its bytes or none."""
        stop = 0
        for region in sorted(self.memory.regions(), key=lambda region: region.gpa):
            assert stop <= region.gpa
            assert region.view is None or len(region.view) == region.nbytes
            stop = region.gpa + region.nbytes
            assert stop <= 1 << 64

    def disconnected(self) -> None:
        """It has no state."""


class Expected:
    """Reads what a peer sends by the protocol's rules: the requests that are to be answered, and whether it broke."""

    def __init__(self) -> None:
        self.unanswered: deque[tuple[wire.Header, bytes]] = deque()
        self.broken = False
        self.may_be_open = False  # VERSION was sent, and wanted no reply
        self._bytes = bytearray()

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._bytes)

    def feed(self, data: bytes) -> None:
        """It has sent this."""
        self._bytes += data
        while len(self._bytes) >= wire.HEADER_NBYTES and not self.broken:
            header = wire.Header.parse(self._bytes)
            self.broken = not wire.HEADER_NBYTES <= header.size <= wire.MAX_MESSAGE_NBYTES
            if self.broken or len(self._bytes) < header.size:
                return
            payload = bytes(self._bytes[wire.HEADER_NBYTES : header.size])
            del self._bytes[: header.size]
            if not header.is_reply and header.wants_reply:
                self.unanswered.append((header, payload))
            elif header.command == Command.VERSION and not header.is_reply:
                self.may_be_open = True


class Scene:
    """A VM with two functions, and a peer at one of them."""

    def __init__(self) -> None:
        self.vm = NotedVm()
        self.now_ns = 0
        self.function, self.other = Function("fuzzed"), Function("other")
        self.line = Line(partial(self._connect, self.function))
        self.expected = Expected()
        self.received = bytearray()
        self.requests: list[wire.Header] = []  # of the function's, not answered
        self.is_open = False

    def _connect(self, function: Function, sock: Any) -> VfioUserConnection:
        return VfioUserConnection(sock, PEER, function, self.vm, DEFAULT_DEADLINE_S, lambda: self.now_ns)

    # what a peer does

    async def send(self, data: bytes, fds: list[int]) -> None:
        """Send it, and see what comes back."""
        if self.line.send(data, fds):
            self.expected.feed(data)
            await self.settle()

    async def message(self, given: Reader) -> None:
        """A message whose header fits; its record's fields are probably of interest."""
        command, flags = given.byte(), FLAGS[given.byte() % len(FLAGS)]
        row = COMMANDS.get(command)
        payload = fields(given, row.record.layout) if row is not None and row.record is not None else b""
        payload += given.take(given.byte())
        await self.send(wire.message(number(given, 2), command, payload, flags), make_fds(given))

    async def pieces(self, given: Reader) -> None:
        """Any bytes: a header, a piece of a message, several."""
        fds = make_fds(given)
        await self.send(given.take(given.byte()) or b"\0", fds)

    async def filler(self, given: Reader) -> None:
        """More bytes than an input has."""
        await self.send(bytes(given.byte() << 8 | 1), [])

    async def answer(self, given: Reader) -> None:
        """A reply to the function's last request, or to none."""
        header = self.requests.pop() if self.requests else wire.Header(given.byte(), Command.DMA_WRITE, 0, 0, 0)
        choice, payload = given.byte(), given.take(given.byte() & 63)
        code = (0, 0, 14, 19, 1, 7, 38, 5)[choice & 7]
        flags = wire.TYPE_REPLY | (wire.ERROR if code else 0)
        command = header.command ^ (choice >> 3 & 1)
        size = wire.HEADER_NBYTES + len(payload)
        await self.send(wire.Header(header.id ^ (choice >> 4 & 1), command, size, flags, code).pack() + payload, [])

    # what happens around it

    async def interrupt(self, given: Reader) -> None:
        """The function raises a vector, or sends an MSI-X message."""
        choice = given.byte()
        if choice & 1:
            self.function.raise_vector((choice >> 1) % (VECTORS + 2))
        else:
            self.function.raise_message(choice >> 1 & 3, number(given, 8), number(given, 4))
        await self.settle()

    async def hold(self, given: Reader) -> None:
        """The VM is stopped, or runs again."""
        self.line.connection.hold_interrupts(bool(given.byte() & 1))
        await self.settle()

    async def wait(self, given: Reader) -> None:
        """Time passes: what is answered later is late."""
        self.now_ns += given.byte() << 26

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
            assert not self.expected.unanswered, "a request is not answered"
        self.received += await self.line.turn()
        while self._take_message():
            pass

    def _take_message(self) -> bool:
        if len(self.received) < wire.HEADER_NBYTES:
            return False
        header = wire.Header.parse(self.received)
        assert wire.HEADER_NBYTES <= header.size <= wire.MAX_MESSAGE_NBYTES
        assert len(self.received) >= header.size, "half a message"
        payload = bytes(self.received[wire.HEADER_NBYTES : header.size])
        del self.received[: header.size]
        if header.is_reply:
            self._check_reply(header, payload)
        else:
            self._check_request(header, payload)
        return True

    def _check_reply(self, header: wire.Header, payload: bytes) -> None:
        assert self.expected.unanswered, "a reply to nothing"
        request, given = self.expected.unanswered.popleft()
        assert (header.id, header.command) == (request.id, request.command)
        if header.flags & wire.ERROR:
            assert header.flags == wire.TYPE_REPLY | wire.ERROR
            assert not payload
            assert 0 < header.errno < 4096
            return
        assert (header.flags, header.errno) == (wire.TYPE_REPLY, 0)
        assert not request.flags & wire.TYPE_MASK
        in_turn = self.is_open == (request.command != Command.VERSION)
        assert in_turn or self.expected.may_be_open, "VERSION comes first, and once"
        _CHECKS[request.command](given, payload)
        self.is_open = True

    def _check_request(self, header: wire.Header, payload: bytes) -> None:
        assert header.command == Command.DMA_WRITE
        assert header.flags == wire.TYPE_REQUEST
        address, count = wire.DmaAccessShort.layout.unpack_from(payload)
        assert (address, count) == (0, 0) or (address in DOORBELL and count == 4)
        self.requests.append(header)

    async def finish(self) -> None:
        """The peer hangs up, and the other function is served."""
        await self.settle()
        json.dumps(self.line.connection.describe())
        other = Line(partial(self._connect, self.other))
        read = wire.RegionAccess(0, wire.REGION_CONFIG, 4).pack()
        other.send(wire.message(1, Command.VERSION, VERSION) + wire.message(2, Command.REGION_READ, read))
        answer = b""
        for _ in range(MAX_TURNS):
            answer += await other.turn()
            if len(answer) == 72:
                break
        assert answer.endswith(read + bytes(4)), "the other function is not served"
        await other.close()
        await self.line.close()
        assert not self.function.memory.regions()
        if self.expected.broken or self.expected.inside:
            assert any(kind == "connections dropped" for kind, _ in self.vm.notes), "no reason is named"
        self.vm.close()


def _is_nothing(given: bytes, payload: bytes) -> None:
    assert payload == b""


def _is_version(given: bytes, payload: bytes) -> None:
    assert wire.HEADER_NBYTES + len(payload) <= wire.MAX_VERSION_REPLY_NBYTES
    assert payload[:4] == VERSION
    if len(payload) > 4:
        assert len(payload) <= len(given)
        json.loads(payload[4:-1])


def _is_dma_map(given: bytes, payload: bytes) -> None:
    request = wire.DmaMap.parse(given)
    assert payload == b""
    assert request.argsz >= 32
    assert 0 < request.nbytes <= (1 << 64) - request.iova
    assert request.flags < 16


def _is_unmap(given: bytes, payload: bytes) -> None:
    assert payload == given[:24]


def _is_info(given: bytes, payload: bytes) -> None:
    assert len(payload) == 16
    assert int.from_bytes(payload[:4], "little") == len(payload)


def _is_region_info(given: bytes, payload: bytes) -> None:
    info = wire.RegionInfo.parse(payload)
    assert len(payload) == 32
    assert info.index < wire.NUM_REGIONS
    assert bool(info.nbytes) == bool(info.flags)


def _is_access(given: bytes, payload: bytes) -> wire.RegionAccess:
    access = wire.RegionAccess.parse(given)
    sizes = {wire.REGION_CONFIG: CONFIG_NBYTES} | {bar.index: bar.nbytes for bar in BARS}
    assert payload[:16] == given[:16]
    assert access.count > 0
    assert access.offset + access.count <= sizes[access.region]
    return access


def _is_read(given: bytes, payload: bytes) -> None:
    assert len(payload) == 16 + _is_access(given, payload).count


def _is_write(given: bytes, payload: bytes) -> None:
    assert len(payload) == 16
    assert len(given) == 16 + _is_access(given, payload).count


def _is_multi(given: bytes, payload: bytes) -> None:
    assert payload == given[:8]
    assert wire.WriteMulti.parse(given).count <= wire.MAX_MULTI_WRITES


def _is_set_irqs(given: bytes, payload: bytes) -> None:
    request = wire.SetIrqs.parse(given)
    assert payload == b""
    assert request.index <= wire.IRQ_MSIX
    assert request.start + request.count <= (VECTORS if request.index == wire.IRQ_MSIX else 0)


# What a successful reply of each command says; the others are never successful.
_CHECKS: dict[int, Callable[[bytes, bytes], None]] = {
    Command.VERSION: _is_version,
    Command.DMA_MAP: _is_dma_map,
    Command.DMA_UNMAP: _is_unmap,
    Command.DEVICE_GET_INFO: _is_info,
    Command.DEVICE_GET_REGION_INFO: _is_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: _is_info,
    Command.DEVICE_GET_IRQ_INFO: _is_info,
    Command.DEVICE_SET_IRQS: _is_set_irqs,
    Command.REGION_READ: _is_read,
    Command.REGION_WRITE: _is_write,
    Command.DEVICE_RESET: _is_nothing,
    Command.REGION_WRITE_MULTI: _is_multi,
}
_MOVES: tuple[Callable[[Scene, Reader], Awaitable[None]], ...] = (
    Scene.message,
    Scene.pieces,
    Scene.interrupt,
    Scene.answer,
    Scene.hold,
    Scene.wait,
    Scene.filler,
)


async def _play(data: bytes) -> None:
    given, scene = Reader(data), Scene()
    if given.byte() & 1:
        await scene.send(wire.message(0, Command.VERSION, VERSION), [])
    for _ in range(MAX_MOVES):
        if not given.more or scene.expected.broken:
            break
        await _MOVES[given.byte() % len(_MOVES)](scene, given)
    await scene.finish()


def one_input(data: bytes) -> None:
    """Play one input in a new VM."""
    play(partial(_play, data))


def seeds() -> Iterator[bytes]:
    """A start as QEMU does it, DMA maps, interrupts of both kinds, accesses."""
    text = VERSION + json.dumps({"capabilities": CAPABILITIES}).encode().ljust(197) + b"\0"
    yield b"\0" + sent(wire.message(1, Command.VERSION, text))
    yield b"\0" + sent(wire.message(1, Command.VERSION, VERSION + b'{"capabilities":{}}\0'))
    dma_map = wire.message(2, Command.DMA_MAP, wire.DmaMap(32, 3, 0, 0, RAM_NBYTES).pack())
    unmap = wire.message(3, Command.DMA_UNMAP, wire.DmaUnmap(24, 0, 0, RAM_NBYTES).pack())
    yield b"\1" + sent(dma_map, MEMFD) + sent(unmap)
    infos = wire.message(4, Command.DEVICE_GET_INFO, wire.DeviceInfo(16, 0, 0, 0).pack())
    infos += wire.message(5, Command.DEVICE_GET_REGION_INFO, wire.RegionInfo(32, 0, 7, 0, 0, 0).pack())
    infos += wire.message(6, Command.DEVICE_GET_IRQ_INFO, wire.IrqInfo(16, 0, 2, 0).pack())
    infos += wire.message(6, Command.DEVICE_GET_REGION_IO_FDS, wire.RegionIoFds(16, 0, 0, 0).pack())
    yield b"\1" + sent(infos)
    set_irqs = wire.message(7, Command.DEVICE_SET_IRQS, wire.SetIrqs(20, 0x24, 2, 0, 1).pack())
    yield b"\1\2\3" + sent(set_irqs, EVENTFD) + b"\2\1\4\1\2\1\4\0"
    yield b"\1\2\0\x1f\0\3\0\x10" + bytes(16) + b"\2\0\x1f\5\3\1\0"
    read = wire.message(8, Command.REGION_READ, wire.RegionAccess(0, 7, 64).pack())
    write = wire.message(9, Command.REGION_WRITE, wire.RegionAccess(8, 0, 4).pack() + b"abcd")
    entry = wire.WriteMultiEntry(0, 2, 8, b"abcdefgh").pack()
    multi = wire.message(10, Command.REGION_WRITE_MULTI, wire.WriteMulti(2).pack() + entry + entry, wire.NO_REPLY)
    yield b"\1" + sent(read) + sent(write) + sent(multi) + sent(wire.message(11, Command.DEVICE_RESET))
    yield b"\1" + sent(read[:20]) + sent(read[20:] + write) + b"\5\xff"
    for command in COMMANDS:
        yield bytes([1, 0, command]) + bytes(40) + bytes([0, command, 0]) + b"\x10\x0a" * 8
