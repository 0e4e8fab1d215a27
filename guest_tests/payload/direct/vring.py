"""The driver's side of a split virtqueue in memory of ours, well-formed or broken on purpose.

virtio 1.4, "Split Virtqueues". A `Chain` is what will be written: descriptors, and an indirect table if any. A test
takes a good one, changes a field, and posts it:

    chain = ring.chain([Segment(20), Segment(4, is_writable=True)])
    chain.parts[1].flags, chain.parts[1].next = NEXT | WRITE_ONLY, chain.head  # a loop
    ring.post(chain)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from . import fence
from .errors import RingFull, RingViolation
from .memory import Allocator, DmaBuffer

DESCRIPTOR_NBYTES = 16
NEXT, WRITE_ONLY, INDIRECT = 1, 2, 4  # descriptor flags
NO_INTERRUPT = 1  # of the available ring
NO_NOTIFY = 1  # of the used ring

USED_ELEMENT = Struct("<II")  # id, nbytes
MAX_SIZE = 32768
SLOT_NBYTES = 1024
UNWRITTEN = 0xEE  # fills what the device may write, so that what it did not is seen
_AHEAD = 0x8000  # an event index this far away is not met soon


@dataclass(slots=True)
class Descriptor:
    """struct virtq_desc."""

    layout: ClassVar[Struct] = Struct("<QIHH")
    gpa: int
    nbytes: int
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        """The 16 bytes."""
        return self.layout.pack(self.gpa, self.nbytes, self.flags, self.next)


@dataclass(frozen=True, slots=True)
class Segment:
    """One descriptor's worth of a chain: `nbytes` in the ring's own memory, or at `gpa` wherever that is."""

    nbytes: int
    is_writable: bool = False
    gpa: int | None = None


@dataclass(slots=True)
class Chain:
    """A chain before it is posted. Every field may be changed; it is written as it stands.

    `descriptors[n]` goes to index `indexes[n]` of the descriptor table. With an indirect table there is one of them,
    and `table` is what it points at. `head` is what the available ring will say.
    """

    head: int
    indexes: list[int]
    descriptors: list[Descriptor]
    table: list[Descriptor]
    memory: memoryview  # the segments in our own memory, packed: readable first
    table_memory: memoryview
    nreadable: int
    nwritable: int
    buffer: DmaBuffer | None = None  # what was allocated for it, when it did not fit its slot

    @property
    def parts(self) -> list[Descriptor]:
        """The descriptors of the buffers themselves, wherever they are."""
        return self.table or self.descriptors

    def set_readable(self, data: bytes) -> None:
        """Store what the device is to read."""
        self.memory[: self.nreadable] = data

    def written(self) -> bytes:
        """The writable part as it is now."""
        return self.memory[self.nreadable : self.nreadable + self.nwritable].tobytes()


@dataclass(frozen=True, slots=True)
class Used:
    """A used element: the chain it gives back, and how many bytes the device says it wrote."""

    chain: Chain
    nbytes: int


def ring_nbytes(size: int) -> tuple[int, int, int]:
    """Bytes of descriptor table, available ring and used ring, the last two with their event words."""
    return DESCRIPTOR_NBYTES * size, 6 + 2 * size, 6 + 8 * size


def need_event(event: int, new: int, old: int) -> bool:
    """Whether going from `old` to `new` passes `event`, modulo 2^16."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class SplitRing:
    """A ring of `size` entries, zeroed, in memory of its own."""

    def __init__(
        self, size: int, memory: Allocator, *, event_idx: bool = False, slot_nbytes: int = SLOT_NBYTES
    ) -> None:
        """Raises ValueError for a size no ring can have, OutOfDmaMemory."""
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise ValueError(f"ring size {size} is not a power of two up to {MAX_SIZE}")
        desc, avail, used = ring_nbytes(size)
        used_at = -(-(desc + avail) // 4) * 4
        self.size, self.event_idx = size, event_idx
        self._allocator, self._slot_nbytes = memory, slot_nbytes
        self.buffer = memory.alloc(used_at + used)
        self.nslots = min(size, (1 << 20) // slot_nbytes)
        self._slots = memory.alloc(self.nslots * slot_nbytes)
        self.desc_gpa, self.avail_gpa, self.used_gpa = (self.buffer.gpa + at for at in (0, desc, used_at))
        self._avail = self.buffer.memory[desc : desc + avail].cast("H")
        self._used = self.buffer.memory[used_at : used_at + used].cast("H")
        self._used_elements = self.buffer.memory[used_at + 4 :]
        self._free = list(range(size - 1, -1, -1))  # popped from its end: lowest first, so indexes can be foreseen
        self.outstanding: dict[int, Chain] = {}
        self.nlate = 0  # chains that came back when nobody waited for them any more
        self._given_up: set[int] = set()  # heads of outstanding chains that nobody waits for
        self._next_avail = self._next_used = self._announced = 0
        self._wants_interrupts = True

    # building

    def chain(self, segments: Sequence[Segment], *, indirect: bool = False) -> Chain:
        """A well-formed chain of these segments, not posted yet. Raises RingFull.

        Readable segments must come first for it to be well-formed; nobody checks.
        """
        count = 1 if indirect else len(segments)
        if count > len(self._free):
            raise RingFull(f"{count} descriptors wanted, {len(self._free)} of {self.size} are free")
        nreadable = nwritable = 0
        for segment in segments:
            if segment.gpa is None and segment.is_writable:
                nwritable += segment.nbytes
            elif segment.gpa is None:
                nreadable += segment.nbytes
        table_nbytes = DESCRIPTOR_NBYTES * len(segments) if indirect else 0
        indexes = [self._free.pop() for _ in range(count)]
        gpa, memory, buffer = self._room(indexes[0], table_nbytes + nreadable + nwritable)
        data_gpa = gpa + table_nbytes
        parts = _linked(segments, data_gpa, data_gpa + nreadable, range(len(segments)) if indirect else indexes)
        memory[table_nbytes + nreadable :] = bytes([UNWRITTEN]) * nwritable
        return Chain(
            head=indexes[0],
            indexes=indexes,
            descriptors=[Descriptor(gpa, table_nbytes, INDIRECT)] if indirect else parts,
            table=parts if indirect else [],
            memory=memory[table_nbytes:],
            table_memory=memory[:table_nbytes],
            nreadable=nreadable,
            nwritable=nwritable,
            buffer=buffer,
        )

    def _room(self, index: int, nbytes: int) -> tuple[int, memoryview, DmaBuffer | None]:
        """Memory for a chain's table and data: its slot, or a buffer of its own."""
        if nbytes <= self._slot_nbytes and index < self.nslots:
            at = index * self._slot_nbytes
            return self._slots.gpa + at, self._slots.memory[at : at + nbytes], None
        buffer = self._allocator.alloc(max(nbytes, 1), 16)
        return buffer.gpa, buffer.memory[:nbytes], buffer

    def put(self, index: int, descriptor: Descriptor) -> None:
        """Write one entry of the descriptor table, free or not."""
        at = DESCRIPTOR_NBYTES * index
        self.buffer.memory[at : at + DESCRIPTOR_NBYTES] = descriptor.pack()

    def post(self, chain: Chain) -> None:
        """Write a chain and its available entry. The device sees it after `publish`."""
        for index, descriptor in zip(chain.indexes, chain.descriptors, strict=True):
            self.put(index, descriptor)
        for number, entry in enumerate(chain.table):
            at = DESCRIPTOR_NBYTES * number
            chain.table_memory[at : at + DESCRIPTOR_NBYTES] = entry.pack()
        self.outstanding[chain.head] = chain
        self.post_head(chain.head)

    def post_head(self, head: int) -> None:
        """Write an available entry, whatever it names."""
        self._avail[2 + self._next_avail % self.size] = head
        self._next_avail = (self._next_avail + 1) & 0xFFFF

    def publish(self, ahead: int = 0) -> None:
        """Let the device see what was posted; `ahead` entries that were not, too. One 16-bit store."""
        self._avail[1] = (self._next_avail + ahead) & 0xFFFF

    def wants_kick(self) -> bool:
        """Whether the device wants to be told of what was published since the last call."""
        fence.full()
        old, self._announced = self._announced, self._next_avail
        if self.event_idx:
            return need_event(self.avail_event, self._next_avail, old)
        return not self.used_flags & NO_NOTIFY

    @property
    def next_avail(self) -> int:
        """The index of the next entry to be posted, modulo 2^16."""
        return self._next_avail

    @property
    def used_flags(self) -> int:
        """The device's flags: NO_NOTIFY, where EVENT_IDX was not negotiated."""
        return self._used[0]

    @property
    def avail_event(self) -> int:
        """The index of the entry the device wants a kick for, where EVENT_IDX was negotiated."""
        return self._used[2 + 4 * self.size]

    # the device's answers

    @property
    def has_used(self) -> bool:
        """Whether the device gave back something that was not reaped."""
        return self._used[1] != self._next_used

    def reap(self) -> list[Used]:
        """What the device gave back since the last call, in its order; what was given up is recycled and only counted.

        Raises RingViolation.
        """
        found: list[Used] = []
        before = self._next_used
        while self.has_used:
            at = self._next_used % self.size
            head, nbytes = USED_ELEMENT.unpack_from(self._used_elements, 8 * at)
            chain = self.outstanding.pop(head, None)
            if chain is None:
                raise RingViolation(f"used element {self._next_used} names id {head}, which is not out; {self}")
            self._next_used = (self._next_used + 1) & 0xFFFF
            if head in self._given_up:
                self._given_up.remove(head)
                self.nlate += 1
                self.recycle(chain)
            else:
                found.append(Used(chain, nbytes))
        if self._next_used != before and self.event_idx and self._wants_interrupts:
            self.want_interrupts(True)  # the event index asks for one interrupt only
        return found

    def give_up(self, chain: Chain) -> None:
        """Nobody waits for a posted chain any more: `reap` does not show it when it comes back. It is the device's
        until then."""
        if self.outstanding.get(chain.head) is chain:
            self._given_up.add(chain.head)

    def recycle(self, chain: Chain) -> None:
        """A chain that came back, or was never posted, is done with: its descriptors and memory are free."""
        self._free += reversed(chain.indexes)
        if chain.buffer is not None:
            chain.memory.release()
            chain.table_memory.release()
            chain.buffer.close()

    def want_interrupts(self, wanted: bool) -> None:
        """Ask for an interrupt whenever something comes back, or for none."""
        self._wants_interrupts = wanted
        if self.event_idx:
            self._avail[2 + self.size] = (self._next_used + (0 if wanted else _AHEAD)) & 0xFFFF
        else:
            self._avail[0] = 0 if wanted else NO_INTERRUPT

    def want_interrupt_after(self, count: int) -> None:
        """Ask for one interrupt, when `count` more chains came back: EVENT_IDX must be negotiated."""
        self._wants_interrupts = False
        self._avail[2 + self.size] = (self._next_used + count - 1) & 0xFFFF

    def __str__(self) -> str:
        """The ring's state, for error texts."""
        used_flags, used_idx, event = self.used_flags, self._used[1], self.avail_event
        words = f"available idx {self._avail[1]}, used idx {used_idx}, reaped {self._next_used}"
        wish = f"avail_event {event}" if self.event_idx else f"used flags {used_flags:#x}"
        return f"ring of {self.size}: {words}, {wish}, heads out {sorted(self.outstanding)[:8]}"


def _linked(segments: Sequence[Segment], readable: int, writable: int, indexes: Sequence[int]) -> list[Descriptor]:
    """Descriptors of `segments` in their order, each but the last pointing at the next of `indexes`.

    Own memory is taken from gpa `readable` and `writable` on, whatever the order of the segments.
    """
    parts: list[Descriptor] = []
    last = len(segments) - 1
    for number, segment in enumerate(segments):
        flags, following = (NEXT, indexes[number + 1]) if number < last else (0, 0)
        at = segment.gpa
        if segment.is_writable:
            flags |= WRITE_ONLY
            if at is None:
                at = writable
                writable += segment.nbytes
        elif at is None:
            at = readable
            readable += segment.nbytes
        parts.append(Descriptor(at, segment.nbytes, flags, following))
    return parts
