"""A mock driver for one split ring over any shared buffer: adds chains, decides about kicks, reaps used elements.

The buffer is guest RAM from `base_gpa` on; the ring, one indirect table and one data slot per descriptor are laid
out in it from `offset` on. Buffers of one chain are packed into the data slot of its head. No behaviour of the device
is assumed beyond the specification, so that the same class drives a Queue, a PCI function or another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vdev.memory import Region, RegionTable
from vdev.virtio.ordering import NoOrdering, Ordering
from vdev.virtio.queue import Queue
from vdev.wire import vring

TABLE_ENTRIES = 16  # entries of each indirect table
TABLE_NBYTES = TABLE_ENTRIES * vring.DESCRIPTOR_NBYTES


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


@dataclass(slots=True)
class Completion:
    """One used element: what the device says it wrote, and the whole writable part as it now is."""

    head: int
    used_nbytes: int
    data: bytes


@dataclass(slots=True)
class _Outstanding:
    descriptors: list[int]
    writable_offset: int
    writable_nbytes: int


class DriverRing:
    """The driver's half of a split ring of `size` entries; both indexes start at `start`."""

    def __init__(
        self,
        buffer: memoryview,
        size: int = 16,
        *,
        base_gpa: int = 0,
        offset: int = 0,
        slot_nbytes: int = 256,
        event_idx: bool = False,
        ordering: Ordering | None = None,
        start: int = 0,
    ) -> None:
        self.size, self.base_gpa, self.slot_nbytes, self.event_idx = size, base_gpa, slot_nbytes, event_idx
        self.buffer = buffer
        self._ordering: Ordering = NoOrdering() if ordering is None else ordering
        self._desc = _align(offset, 16)
        self._avail = self._desc + vring.desc_nbytes(size)
        self._used = _align(self._avail + vring.avail_nbytes(size, event_idx=True), 4)
        self._tables = _align(self._used + vring.used_nbytes(size, event_idx=True), 16)
        self._slots = self._tables + size * TABLE_NBYTES
        self.stop = self._slots + size * slot_nbytes  # first byte of the buffer after the ring's things
        if self.stop > len(buffer):
            raise ValueError(f"the ring needs {self.stop} bytes, the buffer has {len(buffer)}")
        self.desc_gpa, self.avail_gpa, self.used_gpa = (base_gpa + at for at in (self._desc, self._avail, self._used))
        avail_stop = self._avail + vring.avail_nbytes(size, event_idx=True)
        used_stop = self._used + vring.used_nbytes(size, event_idx=True)
        self.avail_words = buffer[self._avail : avail_stop].cast("H")
        self.used_words = buffer[self._used : used_stop].cast("H")
        self.free = list(range(size - 1, -1, -1))
        self.outstanding: dict[int, _Outstanding] = {}
        self._added = self._published = self._decided = self._reaped = start
        self.avail_words[vring.IDX_WORD] = self.used_words[vring.IDX_WORD] = start

    def add(self, readable: Sequence[bytes] = (), writable: Sequence[int] = (), *, indirect: bool = False) -> int:
        """Put one chain into the ring, unpublished; returns its head. The writable part is zeroed."""
        count = len(readable) + len(writable)
        descriptors = [self.free.pop() for _ in range(1 if indirect else count)]
        head = descriptors[0]
        start = cursor = self._slots + head * self.slot_nbytes
        segments: list[tuple[int, int, int]] = []
        for data in readable:
            self.buffer[cursor : cursor + len(data)] = data
            segments.append((self.base_gpa + cursor, len(data), 0))
            cursor += len(data)
        writable_offset = cursor
        for nbytes in writable:
            segments.append((self.base_gpa + cursor, nbytes, vring.DESC_F_WRITE))
            cursor += nbytes
        if cursor - start > self.slot_nbytes or count > TABLE_ENTRIES:
            raise ValueError("the chain does not fit its slot")
        self.buffer[writable_offset:cursor] = bytes(cursor - writable_offset)
        if indirect:
            table = self._tables + head * TABLE_NBYTES
            self._link(table, list(range(count)), segments)
            self.write_descriptor(head, self.base_gpa + table, count * 16, vring.DESC_F_INDIRECT, 0)
        else:
            self._link(self._desc, descriptors, segments)
        self.outstanding[head] = _Outstanding(descriptors, writable_offset, cursor - writable_offset)
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Put `head` into the available ring, unpublished (also for chains written by hand)."""
        self.avail_words[vring.AVAIL_RING_WORD + self._added % self.size] = head
        self._added = (self._added + 1) & 0xFFFF

    def write_descriptor(self, index: int, gpa: int, nbytes: int, flags: int, following: int = 0) -> None:
        """Write one descriptor of the ring's own table, whatever it says."""
        vring.DESCRIPTOR.pack_into(self.buffer, self._desc + index * 16, gpa, nbytes, flags, following)

    def publish(self) -> None:
        """Make everything added visible to the device."""
        self._ordering.release()
        self._published = self._added
        self.avail_words[vring.IDX_WORD] = self._published

    def kick_needed(self) -> bool:
        """Whether the device wants a kick for what was published since the last decision (virtqueue_kick_prepare)."""
        # Publish idx, then look at the wish: StoreLoad, the driver's half of the device's publish-then-recheck.
        self._ordering.full()
        old, self._decided = self._decided, self._published
        if self.event_idx:
            return vring.need_event(self.used_words[vring.avail_event_word(self.size)], self._decided, old)
        return not self.used_words[vring.FLAGS_WORD] & vring.USED_F_NO_NOTIFY

    def submit(self, readable: Sequence[bytes] = (), writable: Sequence[int] = (), *, indirect: bool = False) -> bool:
        """Add one chain and publish it; whether to kick."""
        self.add(readable, writable, indirect=indirect)
        self.publish()
        return self.kick_needed()

    def has_used(self) -> bool:
        """Whether `reap` would return anything."""
        return self.used_words[vring.IDX_WORD] != self._reaped

    def reap(self) -> list[Completion]:
        """Take every used element, in the device's order; AssertionError for one that was not outstanding."""
        completions: list[Completion] = []
        idx = self.used_words[vring.IDX_WORD]
        self._ordering.acquire()
        while self._reaped != idx:
            at = self._used + vring.USED_RING_OFFSET + 8 * (self._reaped % self.size)
            head, nbytes = vring.USED_ELEMENT.unpack_from(self.buffer, at)
            chain = self.outstanding.pop(head, None)
            if chain is None:
                raise AssertionError(f"the device used head {head}, which is not outstanding")
            stop = chain.writable_offset + chain.writable_nbytes
            completions.append(Completion(head, nbytes, bytes(self.buffer[chain.writable_offset : stop])))
            self.free.extend(reversed(chain.descriptors))
            self._reaped = (self._reaped + 1) & 0xFFFF
        return completions

    def enable_interrupts(self) -> None:
        """Ask for an interrupt at the next used element."""
        if self.event_idx:
            self.avail_words[vring.used_event_word(self.size)] = self._reaped
        else:
            self.avail_words[vring.FLAGS_WORD] = 0
        self._ordering.full()

    def disable_interrupts(self) -> None:
        """Ask for none; with EVENT_IDX by naming an index that is far away."""
        if self.event_idx:
            self.avail_words[vring.used_event_word(self.size)] = (self._reaped - 1) & 0xFFFF
        else:
            self.avail_words[vring.FLAGS_WORD] = vring.AVAIL_F_NO_INTERRUPT

    def device_queue(self, ordering: Ordering | None = None, *, indirect: bool = True) -> Queue:
        """The device's side over the same buffer, as one region of guest memory at `base_gpa`."""
        memory = RegionTable()
        memory.add(Region(self.base_gpa, len(self.buffer), self.buffer))
        return self.queue_over(memory, ordering, indirect=indirect)

    def queue_over(self, memory: RegionTable, ordering: Ordering | None = None, *, indirect: bool = True) -> Queue:
        """The device's side over `memory`, in which the caller placed the buffer."""
        return Queue(
            memory,
            self.size,
            self.desc_gpa,
            self.avail_gpa,
            self.used_gpa,
            event_idx=self.event_idx,
            indirect=indirect,
            ordering=NoOrdering() if ordering is None else ordering,
        )

    def _link(self, table: int, indexes: list[int], segments: list[tuple[int, int, int]]) -> None:
        for position, (gpa, nbytes, flags) in enumerate(segments):
            last = position == len(segments) - 1
            following = 0 if last else indexes[position + 1]
            flags |= 0 if last else vring.DESC_F_NEXT
            vring.DESCRIPTOR.pack_into(self.buffer, table + 16 * indexes[position], gpa, nbytes, flags, following)
