"""A driver of the accelerator's engine and a small IOMMU to run it against. Helpers build and run; tests assert."""

from __future__ import annotations

from dataclasses import dataclass, field

from vdev.endpoints.accelerator_engine import Engine
from vdev.errors import DmaError, TranslationFault
from vdev.iommu.in_flight import Flight
from vdev.iommu.tag import Tag
from vdev.wire.accelerator import (
    COMPLETION_NBYTES,
    DESCRIPTOR_NBYTES,
    Completion,
    Control,
    Descriptor,
    Op,
    Register,
)

PAGE = 4096
READ, WRITE = 1, 2
RING = 0x10_0000
COMPLETIONS = 0x20_0000
RING_SIZE = 8


class PagedDoor:
    """DMA through a page table: `pages[iova page] = (byte offset in ram, access)`; None stands for non-RAM."""

    def __init__(self, ram_nbytes: int) -> None:
        self.ram = bytearray(ram_nbytes)
        self.pages: dict[int, tuple[int | None, int]] = {}
        self.stores: list[tuple[int, bytes]] = []
        self.accesses = 0
        self.slice_nbytes = 1 << 20
        self.frozen = False
        self.flights: list[Flight] = []
        self.spaces: dict[int, PagedDoor] = {}  # by PASID, with the same RAM; those not there have no page
        self.tags: list[Tag] = []  # every one that a door was asked for
        self._landings: dict[int, list[memoryview]] = {}

    def map(self, iova: int, offset: int | None, nbytes: int, access: int = READ | WRITE) -> None:
        for at in range(0, nbytes, PAGE):
            self.pages[(iova + at) // PAGE] = (None if offset is None else offset + at, access)

    def unmap(self, iova: int, nbytes: int) -> None:
        for at in range(0, nbytes, PAGE):
            del self.pages[(iova + at) // PAGE]

    def tagged(self, tag: Tag) -> PagedDoor:
        self.tags.append(tag)
        return self.space(tag.pasid)

    def space(self, pasid: int) -> PagedDoor:
        """What accesses with `pasid` reach."""
        if pasid not in self.spaces:
            self.spaces[pasid] = PagedDoor(0)
            self.spaces[pasid].ram, self.spaces[pasid].flights = self.ram, self.flights
        return self.spaces[pasid]

    def read(self, iova: int, nbytes: int) -> bytes:
        return b"".join(self.views(iova, nbytes, write=False))

    def write(self, iova: int, data: bytes) -> None:
        self.stores.append((iova, data))
        at = 0
        for view in self.views(iova, len(data), write=True):
            view[:] = data[at : at + len(view)]
            at += len(view)

    def begin(self, iova: int, nbytes: int, *, write: bool, again: Flight | None = None) -> Flight:
        self.views(iova, nbytes, write=write)
        flight = Flight(0, 0, iova, iova + nbytes, WRITE if write else READ, [])
        self.flights.append(flight)
        self._landings[id(flight)] = self.views(iova, nbytes, write=write)
        return flight

    def land(self, flight: Flight) -> list[memoryview]:
        """The memory as it was translated."""
        assert not flight.over
        return self._landings[id(flight)]

    def end(self, flight: Flight) -> None:
        flight.over = True
        if flight in self.flights:
            self.flights.remove(flight)

    def break_off(self, flight: Flight) -> TranslationFault:
        return TranslationFault(2, "not-mapped", flight.stop)

    def hurry(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def views(self, iova: int, nbytes: int, *, write: bool) -> list[memoryview]:
        self.accesses += 1
        out: list[memoryview] = []
        cursor, stop = iova, iova + nbytes
        while cursor < stop:
            end = min(stop, (cursor // PAGE + 1) * PAGE)
            offset, access = self.pages.get(cursor // PAGE, (None, 0))
            if not access & (WRITE if write else READ):
                raise TranslationFault(2, "translation-fault", cursor)
            if offset is None:
                raise DmaError("unsupported-request", cursor)
            start = offset + cursor % PAGE
            out.append(memoryview(self.ram)[start : start + end - cursor])
            cursor = end
        return out


@dataclass
class Host:
    """The function around the engine."""

    dma_enabled: bool = True
    vectors: list[int] = field(default_factory=list)

    def interrupt(self, vector: int) -> None:
        self.vectors.append(vector)


def descriptor(op: int = Op.COPY, **fields: int | bytes) -> Descriptor:
    """A descriptor with zeros where nothing is said; keywords are its field names."""
    out = Descriptor(op, 0, 0, 0, 0, 0, 0, 0, bytes(24))
    for name, value in fields.items():
        setattr(out, name, value)
    return out


class Rig:
    """Engine, IOMMU and driver in one; ring and completions are mapped, everything else is the test's business."""

    def __init__(self, ram_nbytes: int = 1 << 20, devmem_nbytes: int = 4 * PAGE, latency_ns: int = 0) -> None:
        self.door = PagedDoor(ram_nbytes + 2 * PAGE)
        self.host = Host()
        self.devmem = bytearray(devmem_nbytes)
        self.engine = Engine(self.host, self.door, memoryview(self.devmem), lambda: None, latency_ns)
        self.now_ns = 0
        self.ram = memoryview(self.door.ram)[2 * PAGE :]
        self.tail = 0
        self.door.map(RING, 0, PAGE, READ)
        self.door.map(COMPLETIONS, PAGE, PAGE)

    def map(self, iova: int, offset: int | None, nbytes: int, access: int = READ | WRITE) -> None:
        """Map [iova, +nbytes) to `self.ram[offset:]`."""
        self.door.map(iova, None if offset is None else self.at(offset), nbytes, access)

    def at(self, offset: int) -> int:
        """The offset in all of the door's RAM of one in `ram`."""
        return offset + 2 * PAGE

    def read32(self, register: int) -> int:
        return int.from_bytes(self.engine.registers.read(register, 4), "little")

    def read64(self, register: int) -> int:
        return int.from_bytes(self.engine.registers.read(register, 8), "little")

    def write32(self, register: int, value: int) -> None:
        self.engine.write(register, value.to_bytes(4, "little"))

    def write64(self, register: int, value: int) -> None:
        self.engine.write(register, value.to_bytes(8, "little"))

    def start(self, control: int = Control.ENABLE | Control.IRQ_ENABLE, ring_size: int = RING_SIZE) -> Rig:
        """Set up the ring and write CONTROL; returns itself."""
        self.write64(Register.RING_BASE, RING)
        self.write32(Register.RING_SIZE, ring_size)
        self.write64(Register.COMPLETION_BASE, COMPLETIONS)
        self.write32(Register.CONTROL, control)
        self.tail = 0
        return self

    def put(self, *descriptors: Descriptor) -> None:
        """Store descriptors behind the last one and ring the doorbell."""
        for entry in descriptors:
            start = self.tail * DESCRIPTOR_NBYTES
            self.door.ram[start : start + DESCRIPTOR_NBYTES] = entry.pack()
            self.tail = (self.tail + 1) % RING_SIZE
        self.write32(Register.RING_TAIL, self.tail)

    def slice(self) -> None:
        """One slice, at the time the one in flight lands."""
        if self.engine.lands_ns is not None:
            self.now_ns = self.engine.lands_ns
        self.engine.run(self.now_ns)

    def run(self) -> int:
        """Run slices until there is no work; their number."""
        slices = 0
        while self.engine.has_work:
            self.slice()
            slices += 1
        return slices

    def completion(self, index: int = 0) -> Completion:
        return Completion.parse(self.door.ram, PAGE + index * COMPLETION_NBYTES)

    def do(self, entry: Descriptor) -> Completion:
        """Execute one descriptor to its end and return its completion."""
        index = self.tail
        self.put(entry)
        self.run()
        return self.completion(index)
