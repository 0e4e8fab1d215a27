"""The device side of one split virtqueue: chains out, used elements in, notifications both ways.

The driver is hostile: every index, address and flag it writes is checked, and read exactly once before it is
used. What breaks the ring's rules raises RingError before anything changed; the device then answers
DEVICE_NEEDS_RESET, except for RingOutOfReach, after which it tries again when memory has changed. Chains may be
completed in any order and at any later time ("held" replies).

Indexes and flags are single aligned 16-bit accesses through `memoryview.cast("H")`, which copies each item
in one go; `struct.pack_into` writes byte by byte, so it serves only data that an index publishes later.
Both are little endian like the ring, because the only hosts `transports.fence` accepts are.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypedDict

from vdev.errors import MemoryAccessError
from vdev.memory import Memory
from vdev.virtio.chain import Chain, GuestViews, RingError, RingOutOfReach, ring_error
from vdev.virtio.ordering import Ordering
from vdev.wire import vring

__all__ = ["Chain", "Queue", "QueueSnapshot", "RingError", "RingOutOfReach"]

# Protects memory and time per request. Linux may use more indirect entries than the ring is long, but not this many.
MAX_INDIRECT_ENTRIES = 1024
# Protects us from a request that names all of RAM many times over; devices pass less.
DEFAULT_MAX_CHAIN_NBYTES = 16 << 20
# avail_event is put half the index space ahead: the driver then does not pass it until 32768 requests later.
SUPPRESS_AHEAD = 0x8000
# A suppression is renewed after this many chains, well before the driver could reach it.
RENEW_AFTER = 0x1000

SNAPSHOT_VERSION = 1

_NOTHING = memoryview(b"")
_UNPACK = vring.DESCRIPTOR.unpack_from
_PACK_USED = vring.USED_ELEMENT.pack_into


class QueueSnapshot(TypedDict):
    """Plain data that continues a queue: indexes modulo 2^16, heads of chains popped and not yet pushed."""

    version: int
    next_avail: int
    next_used: int
    in_flight: list[int]


class Queue:
    """One enabled split virtqueue over one connection's view of guest memory.

    The three areas are looked up once and again when the memory changed. Each must lie inside one RAM region:
    a ring area that crosses regions is refused with RingError, although virtio does not forbid it, because
    its indexes could not be reached by single accesses at one address.
    """

    def __init__(  # noqa: PLR0913 - a ring has three addresses; all but five are by keyword
        self,
        memory: Memory,
        size: int,
        desc_gpa: int,
        avail_gpa: int,
        used_gpa: int,
        *,
        event_idx: bool,
        indirect: bool,
        ordering: Ordering,
        max_chain_nbytes: int = DEFAULT_MAX_CHAIN_NBYTES,
    ) -> None:
        """RingError unless size, alignments and addresses are those of a ring in RAM; what is out of reach only for
        the moment is looked up at the first use."""
        _check_geometry(size, desc_gpa, avail_gpa, used_gpa)
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.max_chain_nbytes = max_chain_nbytes
        self._memory = memory
        self._views = GuestViews(memory)
        self._gpas = (desc_gpa, avail_gpa, used_gpa)
        self._ordering = ordering
        self._mask = size - 1
        self._next_avail = 0  # the next avail entry to take
        self._seen_avail = 0  # the driver's idx as last loaded: entries before it may be read
        self._next_used = 0
        self._published_used = 0
        self._suppressed_at: int | None = None
        self._in_flight: dict[int, Chain] = {}
        with suppress(RingOutOfReach):
            self._resolve()

    @property
    def in_flight(self) -> int:
        """Chains popped and not pushed yet; at most `size`."""
        return len(self._in_flight)

    def waiting(self) -> int:
        """Chains the driver made available and nobody took; nothing changes. RingError when it is out of reach."""
        if self._generation != self._memory.generation:
            self._resolve()
        nchains = (self._avail[vring.IDX_WORD] - self._next_avail) & 0xFFFF
        if nchains > self.size:
            raise RingError(f"{nchains} chains are available in a ring of {self.size}")
        return nchains

    @property
    def next_avail(self) -> int:
        """The next available entry to take, modulo 2^16."""
        return self._next_avail

    def start_at(self, index: int) -> None:
        """Begin at available entry `index` and at the used index in memory: a ring others have worked on.

        RingError when that memory is out of reach, for the moment or for good.
        """
        if self._generation != self._memory.generation:
            self._resolve()
        self._next_avail = self._seen_avail = index & 0xFFFF
        self._next_used = self._published_used = self._used[vring.IDX_WORD]

    def pop(self) -> Chain | None:
        """The next chain the driver made available, or None. RingError, with nothing taken, for a bad ring."""
        if self._generation != self._memory.generation:
            self._resolve()
        position = self._next_avail
        if position == self._seen_avail and not self._look():
            return None
        head = self._avail[vring.AVAIL_RING_WORD + (position & self._mask)]
        if head in self._in_flight:
            raise RingError(f"descriptor {head} is made available again while it is in flight")
        chain = self._walk(head)
        self._in_flight[head] = chain
        self._next_avail = (position + 1) & 0xFFFF
        return chain

    def push(self, chain: Chain, used_nbytes: int) -> None:
        """Complete `chain`, of whose writable part `used_nbytes` were written; visible after `publish`.

        ValueError (a bug of the device) for a chain that is not in flight or for more bytes than it has.
        """
        if self._in_flight.get(chain.head) is not chain:
            raise ValueError(f"chain {chain.head} is not in flight")
        if not 0 <= used_nbytes <= chain.writable_nbytes:
            raise ValueError(f"{used_nbytes} bytes used of {chain.writable_nbytes} writable")
        if self._generation != self._memory.generation:
            self._resolve()
        offset = vring.USED_RING_OFFSET + ((self._next_used & self._mask) << 3)
        _PACK_USED(self._used_bytes, offset, chain.head, used_nbytes)
        self._next_used = (self._next_used + 1) & 0xFFFF
        del self._in_flight[chain.head]
        chain.finish()

    def push_wrong(self, chain: Chain, used_nbytes: int, times: int = 1) -> None:
        """What no honest device does, for fault injection: `used_nbytes` may be more than `chain` has room for, and it
        is used `times` times. ValueError as `push`."""
        head = chain.head
        self.push(chain, 0)
        self._next_used = (self._next_used - 1) & 0xFFFF
        for _ in range(times):
            offset = vring.USED_RING_OFFSET + ((self._next_used & self._mask) << 3)
            _PACK_USED(self._used_bytes, offset, head, used_nbytes)
            self._next_used = (self._next_used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Show the driver all pushed chains; whether it wants an interrupt for them."""
        old, new = self._published_used, self._next_used
        if old == new:
            return False
        if self._generation != self._memory.generation:
            self._resolve()
        # The elements and the data they stand for must be visible before the index that announces them.
        self._ordering.release()
        self._used[vring.IDX_WORD] = new
        self._published_used = new
        # The driver enables interrupts, then rechecks idx; we store idx, then load its wish. Without StoreLoad
        # on both sides each may miss the other. Provided here by Ordering.full (transports/fence.py: futex).
        self._ordering.full()
        if self.event_idx:
            return vring.need_event(self._avail[vring.used_event_word(self.size)], new, old)
        return not self._avail[vring.FLAGS_WORD] & vring.AVAIL_F_NO_INTERRUPT

    def suppress(self) -> None:
        """Ask the driver not to kick. A hint: a kick may still come. Call it as often as is convenient."""
        at = self._suppressed_at
        if at is not None and (self._next_avail - at) & 0xFFFF < RENEW_AFTER:
            return
        if self._generation != self._memory.generation:
            self._resolve()
        self._suppressed_at = self._next_avail
        if self.event_idx:
            # With EVENT_IDX the flags must stay 0; an event that is far away says the same.
            self._used[vring.avail_event_word(self.size)] = (self._next_avail + SUPPRESS_AHEAD) & 0xFFFF
        else:
            self._used[vring.FLAGS_WORD] = vring.USED_F_NO_NOTIFY

    def rearm(self) -> bool:
        """Ask for kicks again, then look once more: True = there is work, go on; False = safe to block.

        After True notifications stay enabled until `suppress`.
        """
        if self._generation != self._memory.generation:
            self._resolve()
        self._suppressed_at = None
        if self.event_idx:
            self._used[vring.avail_event_word(self.size)] = self._next_avail
        else:
            self._used[vring.FLAGS_WORD] = 0
        # Publish, then recheck. The driver stores idx, fences, loads our wish; we store our wish, fence, load idx.
        # With a StoreLoad barrier on both sides at least one sees the other: it kicks or we go on. Without ours
        # the store could sit in this CPU's store buffer behind the load, and a kick be lost for good. Provided by
        # Ordering.full: a futex(2) wake, whose kernel path holds a full barrier on x86 and Arm (transports/fence.py).
        self._ordering.full()
        return self._recheck()

    def memory_changed(self) -> None:
        """Regions came or went: drop every view now, so that the owner can unmap; look up again at next use."""
        self._generation = -1
        self._desc = self._used_bytes = _NOTHING
        self._avail = self._used = _NOTHING.cast("H")
        self._views.forget()
        for chain in self._in_flight.values():
            chain.drop_views()

    def snapshot(self) -> QueueSnapshot:
        """State of the ring beyond what guest memory holds; everything pushed must have been published (ValueError)."""
        if self._next_used != self._published_used:
            raise ValueError("publish before taking a snapshot")
        heads = list(self._in_flight)
        return {
            "version": SNAPSHOT_VERSION,
            "next_avail": self._next_avail,
            "next_used": self._next_used,
            "in_flight": heads,
        }

    def restore(self, snapshot: QueueSnapshot) -> list[Chain]:
        """Continue from `snapshot`; the chains that were in flight, in order. ValueError for another version."""
        if snapshot["version"] != SNAPSHOT_VERSION:
            raise ValueError(f"queue snapshot version {snapshot['version']}, not {SNAPSHOT_VERSION}")
        if self._generation != self._memory.generation:
            self._resolve()
        chains = {head: self._walk(head) for head in snapshot["in_flight"]}
        self._in_flight = chains
        self._next_avail = self._seen_avail = snapshot["next_avail"] & 0xFFFF
        self._next_used = self._published_used = snapshot["next_used"] & 0xFFFF
        self._suppressed_at = None
        return list(chains.values())

    def _recheck(self) -> bool:
        """Whether the driver's idx has moved past what was taken; tests take this away to prove it is needed."""
        return self._avail[vring.IDX_WORD] != self._next_avail

    def _look(self) -> bool:
        """Load the driver's idx; whether it has moved."""
        idx = self._avail[vring.IDX_WORD]
        if idx == self._next_avail:
            return False
        if (idx - self._next_avail) & 0xFFFF > self.size:
            raise RingError(f"available index {idx} is more than {self.size} ahead of {self._next_avail}")
        # What the index announces (ring entries, descriptors, data) must be loaded after the index.
        self._ordering.acquire()
        self._seen_avail = idx
        return True

    def _walk(self, head: int) -> Chain:
        """Follow the descriptors from `head`, each read once; RingError for anything out of order."""
        table: bytes | memoryview = self._desc
        entries, index, budget = self.size, head, self.size
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        total = 0
        while True:
            if index >= entries:
                raise RingError(f"descriptor {index} of {entries}")
            if not budget:
                raise RingError(f"the chain from {head} is a loop")
            budget -= 1
            gpa, nbytes, flags, following = _UNPACK(table, index << 4)
            if flags & vring.DESC_F_INDIRECT:
                table = self._indirect_table(gpa, nbytes, flags, nested=table is not self._desc)
                entries = budget = nbytes >> 4
                index = 0
                continue
            total += nbytes
            if total > self.max_chain_nbytes:
                raise RingError(f"the chain from {head} has more than {self.max_chain_nbytes} bytes")
            if flags & vring.DESC_F_WRITE:
                writable.append((gpa, nbytes))
            elif writable:
                raise RingError(f"the chain from {head} has a readable descriptor after a writable one")
            else:
                readable.append((gpa, nbytes))
            if not flags & vring.DESC_F_NEXT:
                return Chain(head, readable, writable, self._views)
            index = following

    def _indirect_table(self, gpa: int, nbytes: int, flags: int, *, nested: bool) -> bytes:
        """A private copy of an indirect table: the driver cannot change it under us, and it may cross regions."""
        if not self.indirect:
            raise RingError("indirect descriptor without VIRTIO_RING_F_INDIRECT_DESC")
        if nested:
            raise RingError("indirect descriptor inside an indirect table")
        if flags & vring.DESC_F_NEXT:
            raise RingError("descriptor with both INDIRECT and NEXT")
        # The WRITE flag of a descriptor that refers to an indirect table is ignored, as the specification demands.
        if not nbytes or nbytes % vring.DESCRIPTOR_NBYTES:
            raise RingError(f"indirect table of {nbytes} bytes")
        if nbytes > MAX_INDIRECT_ENTRIES * vring.DESCRIPTOR_NBYTES:
            raise RingError(f"indirect table of {nbytes} bytes: more than {MAX_INDIRECT_ENTRIES} entries")
        return b"".join(self._views.look_up([(gpa, nbytes)], False))

    def _resolve(self) -> None:
        """Look the three areas up; RingError, with no view kept, where one is not inside one RAM region."""
        self.memory_changed()
        desc_gpa, avail_gpa, used_gpa = self._gpas
        avail_nbytes = vring.avail_nbytes(self.size, event_idx=self.event_idx)
        used_nbytes = vring.used_nbytes(self.size, event_idx=self.event_idx)
        desc = self._area("descriptor table", desc_gpa, vring.desc_nbytes(self.size), write=False)
        avail = self._area("available ring", avail_gpa, avail_nbytes, write=False)
        used = self._area("used ring", used_gpa, used_nbytes, write=True)
        self._desc, self._avail = desc, avail.cast("H")
        self._used_bytes, self._used = used, used.cast("H")
        self._generation = self._memory.generation

    def _area(self, what: str, gpa: int, nbytes: int, *, write: bool) -> memoryview:
        try:
            views = self._memory.ring_area(gpa, nbytes, write=write)
        except MemoryAccessError as error:
            raise ring_error(what, error) from error
        if len(views) != 1:
            raise RingError(f"{what} at {gpa:#x} crosses RAM regions")
        return views[0]


def _check_geometry(size: int, desc_gpa: int, avail_gpa: int, used_gpa: int) -> None:
    """Queue Size is a power of two up to 32768; the areas are aligned to 16, 2 and 4."""
    if not 0 < size <= vring.MAX_QUEUE_SIZE or size & (size - 1):
        raise RingError(f"queue size {size} is not a power of two up to {vring.MAX_QUEUE_SIZE}")
    areas = (
        ("descriptor table", desc_gpa, vring.DESC_ALIGNMENT),
        ("available ring", avail_gpa, vring.AVAIL_ALIGNMENT),
        ("used ring", used_gpa, vring.USED_ALIGNMENT),
    )
    for what, gpa, alignment in areas:
        if gpa % alignment:
            raise RingError(f"{what} at {gpa:#x} is not aligned to {alignment}")
