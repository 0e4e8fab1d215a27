"""What a driver may leave in its rings: descriptors, indirect tables, indexes; for a unit and for an rng behind one.

The real queue and device code serves rings of eight entries in 16 KiB of RAM. Input: one byte chooses the device and
the ring features, then moves (`_MOVES`). Besides that nothing raises: the device comes to rest, takes no more chains
than a ring holds, uses only heads that were offered, and stores only into its used rings and into what some
descriptor calls writable (`Scene.check`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from tests.fuzz.reader import Reader
from vdev.endpoints.rng import RngDevice
from vdev.errors import TranslationFault
from vdev.functions.base import Progress, Worker
from vdev.functions.dma import DmaDoor
from vdev.functions.door_memory import DoorMemory
from vdev.functions.viommu import Reply, ViommuDevice
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, Limits, UnitSettings
from vdev.memory import Memory, Region, RegionTable
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.polling import PollWindow
from vdev.virtio.queue import Queue, RingError
from vdev.wire import viommu as wire
from vdev.wire import vring

RAM_GPA, RAM_NBYTES = 0x1_0000, 0x4000
READ_ONLY_GPA, LOOSE_GPA, OTHER_NBYTES = 0x2_0000, 0x3_0000, 0x1000  # ROM; RAM that came without an fd
IOVA = 0x4000_0000  # where an rng finds RAM; its last page may only be read
PAGE = 0x1000
SIZE = 8
RINGS = (0x000, 0x140)  # in RAM: descriptors, then at these offsets the other two areas
AVAIL_OFFSET, USED_OFFSET, USED_NBYTES = 0x80, 0xC0, vring.used_nbytes(SIZE, event_idx=True)
RINGS_STOP = 0x280
DATA = 0x400
ENDPOINT = 0x10
LATER_NS = 10_000_000
MAX_SLICES = 1024  # until a device has to be at rest
MAX_RUNS = 40  # per input, which bounds the time it takes
MAX_RNG_NBYTES = 1 << 20
_STRANGE = {0xFF: READ_ONLY_GPA, 0xFE: LOOSE_GPA, 0xFD: (1 << 64) - 0x100, 0xFC: 0}


class Transport:
    """The function around the device."""

    def __init__(self) -> None:
        self.dma_enabled = True
        self.pasid_control = self.pasid_bits = 0
        self.interrupts = 0
        self.memory = RegionTable()

    def interrupt_queue(self, index: int) -> None:
        self.interrupts += 1

    def config_moved(self) -> None:
        """Nobody listens."""

    def config_changed(self) -> None:
        self.interrupts += 1

    def needs_reset(self, why: str) -> None:
        self.interrupts += 1


class Scene:
    """A device, its rings in RAM, and what is checked."""

    def __init__(self, kind: int) -> None:
        self.ram = memoryview(bytearray(RAM_NBYTES))
        self.transport = Transport()
        self.memory = self.transport.memory
        self.now_ns = self.runs = 0
        self.held: list[Reply] = []
        self.holding = bool(kind & 0x10)
        settings = UnitSettings("unit", limits=Limits(max_request_nbytes=256, max_pending_faults=4))
        self.engine = Engine(settings, [EndpointSettings(ENDPOINT, "endpoint")])
        self.restore_memory(Reader(b""))
        self.memory.add(Region(READ_ONLY_GPA, OTHER_NBYTES, memoryview(bytes(OTHER_NBYTES)), writable=False))
        self.memory.add(Region(LOOSE_GPA, OTHER_NBYTES, None))
        self.device: ViommuDevice | RngDevice
        if kind & 1:
            self.base = IOVA
            self.device = self._rng()
        else:
            self.base = RAM_GPA
            self.reach: Memory = self.memory
            self.device = ViommuDevice(
                self.engine, wake=_nothing, quiesce=lambda: None, window=PollWindow(), hold=self._hold
            )
        self.device.connect(self.transport)
        self.event_idx, self.indirect = bool(kind & 2), bool(kind & 4)
        self.start(Reader(b""))

    def _rng(self) -> RngDevice:
        """An rng whose driver mapped RAM at IOVA, all but the last page for writing, too."""
        rest, last = RAM_NBYTES - PAGE, RAM_GPA + RAM_NBYTES - PAGE
        for request in (
            wire.Attach(wire.T_ATTACH, bytes(3), 1, ENDPOINT),
            wire.Map(wire.T_MAP, bytes(3), 1, IOVA, IOVA + rest - 1, RAM_GPA, 3),
            wire.Map(wire.T_MAP, bytes(3), 1, IOVA + rest, IOVA + RAM_NBYTES - 1, last, 1),
        ):
            assert self.engine.handle(request.pack(), 4) == wire.TAILS[wire.S_OK]
        self.reach = DoorMemory(DmaDoor(self.engine, ENDPOINT, self.transport))
        return RngDevice(
            "rng", b"\xa5".__mul__, wake=_nothing, wake_at=_nothing, max_bytes=MAX_RNG_NBYTES, period_ns=1 << 62
        )

    def _hold(self, reply: Reply) -> bool:
        if self.holding:
            self.held.append(reply)
            assert len(self.held) <= SIZE
        return self.holding

    # what a driver does

    def start(self, given: Reader) -> None:
        """The driver resets the device and sets its rings up again where they were."""
        self.device.reset()
        self.held.clear()
        self.ram[:RINGS_STOP] = bytes(RINGS_STOP)
        self.queues: list[Queue] = []
        with suppress(RingError):  # the function refuses such a ring
            self.queues = [self._queue(at) for at in RINGS[: len(self.device.queue_sizes)]]
            self.device.driver_ok(self.device.offered_features, tuple(self.queues))

    def _queue(self, at: int) -> Queue:
        places = [self.base + at + offset for offset in (0, AVAIL_OFFSET, USED_OFFSET)]
        return Queue(self.reach, SIZE, *places, event_idx=self.event_idx, indirect=self.indirect, ordering=NoOrdering())

    def write(self, given: Reader) -> None:
        """Any bytes anywhere in RAM."""
        at, data = given.number(2) % RAM_NBYTES, given.take(given.byte() % 33)
        self.ram[at : at + len(data)] = data[: RAM_NBYTES - at]

    def describe(self, given: Reader) -> None:
        """A descriptor of a ring or of an indirect table, of memory that is probably there."""
        place, where, nbytes = given.byte(), given.number(2), given.number(2)
        flags, following = given.byte(), given.byte()
        tables = (*RINGS, DATA, DATA + 0x100)
        at = tables[place % len(tables)] + 16 * (place >> 2 & 15)
        gpa = self._gpa(where)
        vring.DESCRIPTOR.pack_into(self.ram, at, gpa, nbytes, flags & 7, following)

    def _gpa(self, where: int) -> int:
        """RAM for most numbers; ROM, RAM without an fd, and nothing for the others."""
        base = _STRANGE.get(where >> 8)
        return self.base + where % RAM_NBYTES if base is None else base + (where & 0xFF)

    def offer(self, given: Reader) -> None:
        """A head becomes available in ring 0 or 1, and the index tells of it."""
        choice = given.byte()
        at = RINGS[choice >> 7] + AVAIL_OFFSET
        words = self.ram[at : at + 4 + 2 * SIZE].cast("H")
        idx = words[vring.IDX_WORD]
        words[vring.AVAIL_RING_WORD + idx % SIZE] = choice & 0x3F
        words[vring.IDX_WORD] = (idx + 1) & 0xFFFF

    def set_word(self, given: Reader) -> None:
        """A word of an available ring: flags, index, an entry, used_event."""
        place, value = given.byte(), given.number(2)
        at = RINGS[place >> 7] + AVAIL_OFFSET + 2 * (place % (SIZE + 3))
        self.ram[at : at + 2] = value.to_bytes(2, "little")

    def request(self, given: Reader) -> None:
        """A request in two descriptors, as a driver sends it; its bytes are the input's."""
        head, nbytes, room = given.byte() % SIZE, given.byte() % 80, given.byte()
        at = DATA + 0x200 + 0x100 * head
        self.ram[at : at + nbytes] = given.take(nbytes).ljust(nbytes, b"\0")
        tail = (head + 1) % SIZE
        pack = vring.DESCRIPTOR.pack_into
        pack(self.ram, RINGS[0] + 16 * head, self.base + at, nbytes, vring.DESC_F_NEXT, tail)
        pack(self.ram, RINGS[0] + 16 * tail, self.base + at + nbytes, room, vring.DESC_F_WRITE, 0)
        self.offer(Reader(bytes([head])))

    # what happens around it

    def remove_memory(self, given: Reader) -> None:
        """QEMU takes the RAM away, for the moment or for good."""
        self.memory.remove(RAM_GPA, RAM_NBYTES)
        self._changed()

    def restore_memory(self, given: Reader) -> None:
        """RAM is back, whole or in two pieces, one of which may be read-only."""
        cut = given.number(2) % RAM_NBYTES
        if self.memory.find(RAM_GPA) is not None:
            return
        self.memory.add(Region(RAM_GPA, cut or RAM_NBYTES, self.ram[: cut or RAM_NBYTES]))
        if cut:
            writable = not given.byte() & 1
            self.memory.add(Region(RAM_GPA + cut, RAM_NBYTES - cut, self.ram[cut:], writable=writable))
        self._changed()

    def _changed(self) -> None:
        for queue in getattr(self, "queues", ()):
            queue.memory_changed()
        if hasattr(self, "device"):
            self.device.memory_changed()

    def toggle(self, given: Reader) -> None:
        """Bus master off or on, notifications, replies held or not."""
        choice = given.byte()
        self.transport.dma_enabled = not choice & 1
        self.holding = bool(choice & 2)
        self.device.queue_notified(choice >> 7)

    def fault(self, given: Reader) -> None:
        """An access of the endpoint was refused: there is something for the event ring."""
        self.engine.fault(ENDPOINT, TranslationFault(wire.FAULT_R_MAPPING, "not-mapped", given.number(8)), 1)

    def complete(self, given: Reader) -> None:
        """A reply that was held back is given to the driver, in any order."""
        if self.held and isinstance(self.device, ViommuDevice):
            self.device.complete(self.held.pop(given.byte() % len(self.held)))

    def run(self, given: Reader) -> None:
        """Slices until the device is at rest."""
        self.runs += 1
        before = bytes(self.ram)
        tame, allowed, heads = self._allowed(before)
        for _ in range(MAX_SLICES):
            self.now_ns += LATER_NS
            if isinstance(self.reach, DoorMemory):
                self.reach.renew()
            if self.device.run_slice(self.now_ns) is Progress.IDLE:
                break
        else:
            raise AssertionError("the device does not come to rest")
        if tame:
            self._check_stores(before, allowed)
            self._check_used(before, heads)
        self._check_counts()

    # what is checked

    def _allowed(self, ram: bytes) -> tuple[bool, list[tuple[int, int]], set[int]]:
        """Whether writable buffers leave rings and tables alone, what may be stored into, heads that may be used."""
        allowed: list[tuple[int, int]] = []
        tables = [(0, RINGS_STOP)]
        for at in RINGS:
            for index in range(SIZE):
                self._look_at(ram, at + 16 * index, allowed, tables)
        for start, stop in tables[1:]:
            for at in range(start, min(stop, RAM_NBYTES - 15), 16):
                self._look_at(ram, at, allowed, [])
        tame = all(stop <= low or high <= start for start, stop in allowed for low, high in tables)
        heads = {head for at in RINGS for head in _words(ram, at + AVAIL_OFFSET)[2 : 2 + SIZE]}
        heads |= {reply.chain.head for reply in self.held}
        return tame, allowed, heads

    def _look_at(self, ram: bytes, at: int, allowed: list[tuple[int, int]], tables: list[tuple[int, int]]) -> None:
        gpa, nbytes, flags, _ = vring.DESCRIPTOR.unpack_from(ram, at)
        start = gpa - self.base
        span = (max(start, 0), min(start + nbytes, RAM_NBYTES))
        if span[0] >= span[1]:
            return
        if flags & vring.DESC_F_INDIRECT:
            tables.append(span)
        elif flags & vring.DESC_F_WRITE:
            allowed.append(span)

    def _check_stores(self, before: bytes, allowed: list[tuple[int, int]]) -> None:
        expected = bytearray(before)
        used = [(at + USED_OFFSET, at + USED_OFFSET + USED_NBYTES) for at in RINGS]
        for start, stop in (*allowed, *used):
            expected[start:stop] = self.ram[start:stop]
        assert expected == self.ram, "a store outside every writable buffer"
        if self.base == IOVA:
            assert self.ram[-PAGE:] == before[-PAGE:], "a store into a page mapped for reading"

    def _check_used(self, before: bytes, heads: set[int]) -> None:
        for at in RINGS:
            old = vring.USED_ELEMENT.iter_unpack(before[at + USED_OFFSET + 4 : at + USED_OFFSET + 4 + 8 * SIZE])
            new = vring.USED_ELEMENT.iter_unpack(self.ram[at + USED_OFFSET + 4 : at + USED_OFFSET + 4 + 8 * SIZE])
            for (old_head, old_nbytes), (head, nbytes) in zip(old, new, strict=True):
                if (old_head, old_nbytes) != (head, nbytes):
                    assert head in heads, "a head that nobody offered"

    def _check_counts(self) -> None:
        for queue in self.queues:
            assert queue.in_flight <= SIZE
        assert len(self.engine.pending_faults) <= 4
        if isinstance(self.device, RngDevice):
            assert self.device.given_nbytes <= MAX_RNG_NBYTES


_MOVES: tuple[Callable[[Scene, Reader], None], ...] = (
    Scene.run,
    Scene.describe,
    Scene.offer,
    Scene.request,
    Scene.write,
    Scene.set_word,
    Scene.toggle,
    Scene.fault,
    Scene.complete,
    Scene.remove_memory,
    Scene.restore_memory,
    Scene.start,
)


def one_input(data: bytes) -> None:
    """Play one input in a new scene, and let the device come to rest."""
    given = Reader(data)
    scene = Scene(given.byte())
    while given.more and scene.runs < MAX_RUNS:
        _MOVES[given.byte() % len(_MOVES)](scene, given)
    scene.run(given)


def seeds() -> Iterator[bytes]:
    """Requests in plain and indirect chains, buffers for faults, random bytes asked for."""
    attach = wire.Attach(wire.T_ATTACH, bytes(3), 1, ENDPOINT).pack()
    probe = wire.Probe(wire.T_PROBE, bytes(3), ENDPOINT).pack()
    send = bytes([3, 0, len(attach), 4]) + attach
    ask = bytes([1, 0, 0, 0x10, 64, 0, 2, 0, 2, 0])  # descriptor 0: 64 writable bytes; offered
    indirect = bytes([1, 2, 0, 0x10, 20, 0, 1, 1, 1, 6, 0, 0x11, 4, 0, 2, 0, 1, 0, 0, 4, 32, 0, 4, 0, 2, 0])
    event = bytes([1, 1, 0, 0x12, 24, 0, 2, 0, 2, 0x80, 7, 1, 2, 3, 4, 5, 6, 7, 8])
    empty = bytes([1, 0, 0, 0x10, 0, 0, 1, 1, 1, 4, 0, 0x10, 0, 0, 0, 0, 2, 0])  # two buffers of no bytes
    moved = bytes([9, 0, 10, 0, 8, 0, 0])
    for kind in range(8):
        yield bytes([kind]) + send + b"\0" + bytes([3, 2, len(probe), 255]) + probe + b"\0"
        yield bytes([kind]) + ask + b"\0" + ask + b"\0"
        yield bytes([kind]) + empty + b"\0"
        yield bytes([kind]) + indirect + b"\0" + event + b"\0"
        yield bytes([kind | 0x10]) + send + b"\0" + moved + bytes([8, 0, 0, 11]) + send + moved


def _words(ram: bytes, at: int) -> memoryview:
    return memoryview(ram)[at : at + 4 + 2 * SIZE].cast("H")


def _nothing(*_: Worker | int) -> None:
    """Slices are run by the scene."""
