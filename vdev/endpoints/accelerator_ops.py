"""What the accelerator's operations do to bytes: checked descriptors in, slices of work out.

Every slice asks the door again, so a mapping that went away between two slices stops the operation there.
All views of guest memory die with the slice they were taken for.

A slice is done by one call (`run`) or in two phases: `begin` translates both operands, which are in flight from then
on, `land` moves their bytes later. Either way both operands are of one translation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

from vdev.errors import DmaError, TranslationFault
from vdev.iommu.in_flight import Flight
from vdev.iommu.tag import Tag
from vdev.memory import first_of
from vdev.wire.accelerator import (
    FLAGS_DEFINED,
    MAX_OPERATION_NBYTES,
    PASID_STOP,
    Access,
    CompletionStatus,
    Descriptor,
    Flag,
    Op,
)

IOVA_SPACE = 1 << 64
NO_RESERVED = bytes(24)
NEED_PASID = Flag.EXECUTE | Flag.PRIVILEGED


class Door(Protocol):
    """The only way to guest memory; every method raises DmaError (TranslationFault included) before touching a byte."""

    slice_nbytes: int  # the most that `views` should be asked for at once: with small pages every page costs

    @property
    def frozen(self) -> bool:
        """Whether all DMA is held for now."""

    def read(self, iova: int, nbytes: int) -> bytes: ...

    def write(self, iova: int, data: bytes) -> None: ...

    def views(self, iova: int, nbytes: int, *, write: bool) -> list[memoryview]: ...

    def begin(self, iova: int, nbytes: int, *, write: bool, again: Flight | None = None) -> Flight: ...

    def land(self, flight: Flight) -> list[memoryview]: ...

    def end(self, flight: Flight) -> None: ...

    def break_off(self, flight: Flight) -> TranslationFault: ...


class Doors(Door, Protocol):
    """The function's own: without a PASID, and where the others come from."""

    def tagged(self, tag: Tag) -> Door:
        """The door for accesses with a PASID."""

    def hurry(self) -> None:
        """What was delayed may be tried again now."""

    def forget(self) -> None:
        """What was delayed will not be tried again."""


def check_descriptor(descriptor: Descriptor, devmem_nbytes: int) -> CompletionStatus:
    """OK, or BAD_DESCRIPTOR where `descriptor` is refused before any of its operands is touched.

    What the PASID capability allows is the door's to judge.
    """
    bad = CompletionStatus.BAD_DESCRIPTOR
    if descriptor.op not in _USES or descriptor.flags & ~FLAGS_DEFINED or descriptor.reserved != NO_RESERVED:
        return bad
    if descriptor.flags & Flag.PASID_VALID:
        if not 0 < descriptor.pasid < PASID_STOP:
            return bad
    elif descriptor.pasid or descriptor.flags & NEED_PASID:
        return bad
    if descriptor.op != Op.NOP and not 0 < descriptor.nbytes <= MAX_OPERATION_NBYTES:
        return bad
    uses_src, uses_dst = _USES[descriptor.op]
    src_limit = devmem_nbytes if descriptor.flags & Flag.SRC_DEVMEM else IOVA_SPACE
    dst_limit = devmem_nbytes if descriptor.flags & Flag.DST_DEVMEM else IOVA_SPACE
    if uses_src and descriptor.src + descriptor.nbytes > src_limit:
        return bad
    if uses_dst and descriptor.dst + descriptor.nbytes > dst_limit:
        return bad
    return CompletionStatus.OK


def doors_of(descriptor: Descriptor, plain: Doors) -> tuple[Door, Door]:
    """The doors for a checked descriptor's source and destination: execution is requested with reads of the source."""
    if not descriptor.flags & Flag.PASID_VALID:
        return plain, plain
    privileged = bool(descriptor.flags & Flag.PRIVILEGED)
    target = plain.tagged(Tag(descriptor.pasid, False, privileged))
    if descriptor.flags & Flag.EXECUTE:
        return plain.tagged(Tag(descriptor.pasid, True, privileged)), target
    return target, target


class Operation:
    """A checked descriptor being executed.

    `done` counts the bytes finished, `access` is what the last attempted DMA wanted (for the completion of a
    fault), `status` and `result` are valid once `run` or `land` has returned True. `begun` counts the bytes of the
    slice that is in flight, 0 for none.
    """

    __slots__ = (
        "_crc",
        "_devmem",
        "_doors",
        "_fill",
        "_flights",
        "_given_back",
        "access",
        "begun",
        "descriptor",
        "done",
        "result",
        "status",
    )

    _STEPS: ClassVar[dict[int, Callable[[Operation, int], None]]]

    def __init__(self, descriptor: Descriptor, doors: tuple[Door, Door], devmem: memoryview) -> None:
        """`doors`: for the source and for the destination, see `doors_of`."""
        self.descriptor = descriptor
        self.done = 0
        self.access = Access.NONE
        self.status = CompletionStatus.OK
        self.result = 0
        self.begun = 0
        self._flights: dict[int, Flight] = {}  # of the slice begun, by the flag that would make it device memory
        self._given_back: dict[int, Flight] = {}  # of the slice that is to be begun again
        self._doors = doors
        self._devmem = devmem
        self._crc = 0
        self._fill = b""

    def run(self, budget: int) -> bool:
        """Work on at most `budget` > 0 bytes; True when the operation has ended.

        Raises DmaError with `done` standing at the first byte of the slice that was refused, no byte of which
        was written.
        """
        if self.descriptor.op == Op.NOP:
            return True
        return self._move(min(budget, self.descriptor.nbytes - self.done))

    def begin(self, budget: int) -> None:
        """Translate a slice of at most `budget` > 0 bytes. DmaError as from `run`, and then nothing is in flight."""
        nbytes = min(budget, self.descriptor.nbytes - self.done)
        reads_source, uses_target = _USES[self.descriptor.op]
        try:
            if reads_source:
                self._take_off(self.descriptor.src, Flag.SRC_DEVMEM, nbytes, Access.READ)
            if uses_target:
                write = self.descriptor.op in _WRITES
                self._take_off(self.descriptor.dst, Flag.DST_DEVMEM, nbytes, Access.WRITE if write else Access.READ)
        except DmaError:
            self.give_back()
            raise
        self.begun = min([nbytes, *(flight.stop - flight.start for flight in self._flights.values())])

    def land(self) -> bool:
        """Move the bytes of the slice that was begun. Returns and raises as `run`; nothing is in flight afterwards.

        A flight that is `cut` is refused where it ends, after the bytes before have moved.
        """
        ends = [flag for flag, flight in self._flights.items() if flight.stop - flight.start == self.begun]
        broken = next((flag for flag in ends if self._flights[flag].cut), None)
        try:
            ended = self._move(self.begun)
            if broken is not None and not ended:
                flight = self._flights[broken]
                self.access = Access(flight.access)
                raise self._door(broken).break_off(flight)
            return ended
        finally:
            self.give_back()
            self._given_back = {}

    @property
    def is_cancelled(self) -> bool:
        """Whether the slice that was begun may not land: it has to be given back, and begun again."""
        return any(flight.over for flight in self._flights.values())

    @property
    def is_late(self) -> bool:
        """Whether the slice that was begun has to wait for more than its latency."""
        return any(flight.late for flight in self._flights.values())

    def give_back(self) -> None:
        """Nothing is in flight any more: no byte of the slice that was begun moves."""
        self.begun = 0
        for flight in self._flights.values():
            self._doors[0].end(flight)  # whichever it came through
        self._given_back = self._flights
        self._flights = {}

    def _take_off(self, base: int, devmem_flag: int, nbytes: int, access: Access) -> None:
        self.access = access
        if not self.descriptor.flags & devmem_flag:
            write = access == Access.WRITE
            again = self._given_back.get(devmem_flag)
            flight = self._door(devmem_flag).begin(base + self.done, nbytes, write=write, again=again)
            self._flights[devmem_flag] = flight

    def _door(self, devmem_flag: int) -> Door:
        return self._doors[devmem_flag == Flag.DST_DEVMEM]

    def _move(self, nbytes: int) -> bool:
        self._STEPS[self.descriptor.op](self, nbytes)
        if self.status != CompletionStatus.OK:
            return True
        self.done += nbytes
        if self.done < self.descriptor.nbytes:
            return False
        self.result = self._crc if self.descriptor.op == Op.CHECKSUM else self.done
        return True

    def _source(self, nbytes: int) -> list[memoryview]:
        self.access = Access.READ
        return self._views(self.descriptor.src, Flag.SRC_DEVMEM, nbytes, write=False)

    def _target(self, nbytes: int, *, write: bool) -> list[memoryview]:
        self.access = Access.WRITE if write else Access.READ
        return self._views(self.descriptor.dst, Flag.DST_DEVMEM, nbytes, write=write)

    def _views(self, base: int, devmem_flag: int, nbytes: int, *, write: bool) -> list[memoryview]:
        start = base + self.done
        if self.descriptor.flags & devmem_flag:
            return [self._devmem[start : start + nbytes]]
        if self._flights:
            flight = self._flights[devmem_flag]
            views = self._door(devmem_flag).land(flight)
            return views if flight.stop - flight.start == nbytes else first_of(views, nbytes)
        return self._door(devmem_flag).views(start, nbytes, write=write)

    def _copy(self, nbytes: int) -> None:
        # Both sides are proven before a byte moves: a refused slice leaves the destination as it was.
        sources = self._source(nbytes)
        for target, source in paired(self._target(nbytes, write=True), sources):
            target[:] = source

    def _fill_slice(self, nbytes: int) -> None:
        # The pattern's phase follows the destination's offset, whatever the sizes of the slices before.
        phase = self.done % 8
        if len(self._fill) < nbytes + phase:
            self._fill = self.descriptor.arg.to_bytes(8, "little") * ((nbytes + 15) // 8)
        source = memoryview(self._fill)[phase : phase + nbytes]
        for target, piece in paired(self._target(nbytes, write=True), [source]):
            target[:] = piece

    def _compare(self, nbytes: int) -> None:
        sources = self._source(nbytes)
        offset = self.done
        for left, right in paired(self._target(nbytes, write=False), sources):
            # Comparing memoryviews goes element by element; bytes go through memcmp.
            different = first_difference(bytes(left), bytes(right))
            if different is not None:
                self.status = CompletionStatus.MISMATCH
                self.result = offset + different
                return
            offset += len(left)

    def _checksum(self, nbytes: int) -> None:
        for piece in self._source(nbytes):
            self._crc = zlib.crc32(piece, self._crc)


Operation._STEPS = {
    Op.COPY: Operation._copy,
    Op.FILL: Operation._fill_slice,
    Op.COMPARE: Operation._compare,
    Op.CHECKSUM: Operation._checksum,
}

_USES: dict[int, tuple[bool, bool]] = {  # op -> (reads its source, uses its destination)
    Op.NOP: (False, False),
    Op.COPY: (True, True),
    Op.FILL: (False, True),
    Op.COMPARE: (True, True),
    Op.CHECKSUM: (True, False),
}

_WRITES = (Op.COPY, Op.FILL)


def paired(targets: Sequence[memoryview], sources: Sequence[memoryview]) -> Iterator[tuple[memoryview, memoryview]]:
    """The same bytes of both lists in runs of equal length; `sources` must hold at least as many as `targets`."""
    rest = iter(sources)
    source = memoryview(b"")
    for target in targets:
        at = 0
        while at < len(target):
            if not len(source):
                source = next(rest)
            nbytes = min(len(target) - at, len(source))
            yield target[at : at + nbytes], source[:nbytes]
            source = source[nbytes:]
            at += nbytes


def first_difference(left: bytes, right: bytes) -> int | None:
    """Offset of the first byte in which two strings of equal length differ, or None."""
    if left == right:
        return None
    start, stop = 0, len(left)
    while stop - start > 1:
        middle = (start + stop) // 2
        if left[start:middle] == right[start:middle]:
            start = middle
        else:
            stop = middle
    return start
