"""The one door between an endpoint and guest memory: gates, then the IOMMU, then RAM.

Every refusal is a DmaError with a stable `reason` and nothing touched:

    bus-master-off       the function may not reach the bus (bus master, stopped, removed)
    frozen               all DMA of this endpoint is held: the VM is stopped, or the unit's rings are suspended
    pasid-required       a TranslationFault as the next three: no PASID, of an endpoint that has to have one (P46)
    pasid-disabled,      the function's PASID capability is not enabled, or too narrow for this one (P42)
      pasid-too-wide
    execute-disabled,    the right is requested, and the capability has it not enabled (P43)
      privileged-disabled
    unsupported-request  translated, but not (wholly) RAM; peer-to-peer targets are not there yet
    cancelled            an access in flight that is over
    completer-abort      injected: whoever has the memory gives it up
    delayed              injected: the same access succeeds later, and `resumed` is called then
    anything else        a TranslationFault of the IOMMU, already reported to the guest through `Engine.fault`

Views are good until the endpoint's slice ends: guest memory and mappings change between slices.

An access is one call (`views`, `read`, `write`) or has two phases. One call needs no tracking: nothing else happens
before its slice ends, so no request is answered and no register written while it is under way. An access whose bytes
move in a later slice is translated by `begin` and in flight from then on (`iommu.in_flight`); `land` gives its memory
through the gates and RAM as they are then, not through the mappings again: those may be gone, which is what their UNMAP
waits for. Only where the unit is told to `revalidate` are they asked a second time.

Accesses with a PASID go through `tagged`, which has the same methods.

While faults are injected, a `Detour` stands between the gates and the memory. Without one nothing of it is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vdev.errors import DmaError, MemoryAccessError, TranslationFault
from vdev.events import DmaDone, Trace
from vdev.iommu.in_flight import Flight, InFlight
from vdev.iommu.settings import UnitSettings
from vdev.iommu.tag import Tag
from vdev.memory import RegionTable
from vdev.wire import pci
from vdev.wire.viommu import FAULT_R_MAPPING
from vdev.wire.viommu_pasid import FAULT_R_PASID_DISABLED, FAULT_R_PASID_REQUIRED

READ = 1
WRITE = 2

MAX_COUNTED_PASIDS = 64  # a guest has a million to try
MAX_PIECES = 256  # mappings under one slice: they cost a microsecond or two each, whatever their size


class Translator(Protocol):
    """What the door needs of `iommu.engine.Engine`."""

    in_flight: InFlight

    @property
    def settings(self) -> UnitSettings: ...

    @property
    def granule(self) -> int:
        """Bytes of the smallest mapping."""

    def begin(self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None) -> Flight: ...

    def translate(
        self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None
    ) -> list[tuple[int, int]]: ...

    def retranslate(self, flight: Flight, tag: Tag | None) -> list[tuple[int, int]]: ...

    def fault(self, endpoint: int, error: TranslationFault, access: int, tag: Tag | None = None) -> None: ...


class DmaFunction(Protocol):
    """What the door needs of the `PciFunction` it belongs to."""

    memory: RegionTable

    @property
    def dma_enabled(self) -> bool: ...

    @property
    def pasid_control(self) -> int: ...

    @property
    def pasid_bits(self) -> int: ...


class Detour(Protocol):
    """The way of accesses to memory while faults are injected. It raises DmaError as the door does."""

    def reach(self, iova: int, nbytes: int, access: int, tag: Tag | None, quiet: bool) -> list[memoryview]:
        """In place of `DmaDoor.look_up`."""

    def begin(self, iova: int, nbytes: int, access: int, tag: Tag | None, again: Flight | None) -> Flight:
        """In place of `DmaDoor.take_off`. `again`: the access was in flight as that, which was given back."""

    def landed(self, flight: Flight, views: list[memoryview]) -> list[memoryview]:
        """The memory that `flight` gets, of all of it; `views` is what it would get."""

    def hurry(self) -> None:
        """Nothing is delayed any longer."""

    def forget(self) -> None:
        """The accesses that were delayed will not come again."""


def _nobody(*_: Any) -> None:
    """No one wants to hear of it."""


class DmaDoor:
    """All DMA of one endpoint."""

    def __init__(
        self,
        engine: Translator,
        endpoint_id: int,
        function: DmaFunction,
        *,
        after_fault: Callable[[], None] = _nobody,
    ) -> None:
        """`after_fault` is told when a fault record may wait for delivery (`ViommuDevice.faults_pending`)."""
        self.endpoint_id = endpoint_id
        self.frozen = False
        self.pasid_only = False  # refuse what carries no PASID
        self.refused: dict[str, int] = {}  # by reason; reasons are a fixed set of words, so this stays small
        self.refused_pasids: dict[int, int] = {}  # of those by PASID, the first so many; 0: with any other
        self.slice_nbytes = MAX_PIECES * engine.granule
        self.trace: Trace | None = None
        self.function = function
        # Of injected faults: told that there is a detour now, or none; and that what was delayed may be tried again.
        self.diverted: Callable[[bool], None] = _nobody
        self.resumed: Callable[[], None] = _nobody
        self.detour: Detour | None = None
        self.translator = engine  # fault injection puts one in its place that asks this one
        self._engine = engine
        self._after_fault = after_fault

    def tagged(self, tag: Tag) -> TaggedDoor:
        """The door for accesses that carry `tag`."""
        return TaggedDoor(self, tag)

    def read(self, iova: int, nbytes: int, tag: Tag | None = None) -> bytes:
        """A copy of [iova, iova+nbytes); DmaError as the module says."""
        views = self.views(iova, nbytes, write=False, tag=tag)
        return bytes(views[0]) if len(views) == 1 else b"".join(views)

    def write(self, iova: int, data: bytes | bytearray | memoryview, tag: Tag | None = None) -> None:
        """Store `data` at `iova`, all of it or, with a DmaError, nothing."""
        source = memoryview(data).cast("B")
        cursor = 0
        for view in self.views(iova, len(source), write=True, tag=tag):
            view[:] = source[cursor : cursor + len(view)]
            cursor += len(view)

    def views(
        self, iova: int, nbytes: int, *, write: bool, quiet: bool = False, tag: Tag | None = None
    ) -> list[memoryview]:
        """The memory behind [iova, iova+nbytes) in order; the whole range is checked before this returns.

        `nbytes` 0 gives []. The caller keeps `nbytes` to its slice and to `slice_nbytes`: with small pages every page
        costs. Pages that are neighbours in guest memory share a view. `quiet`: a trace is told of a refusal only.
        """
        access = WRITE if write else READ
        try:
            detour = self.detour
            if detour is None:
                views = self.look_up(iova, nbytes, access, tag)
            else:
                views = detour.reach(iova, nbytes, access, tag, quiet)
        except DmaError as error:
            self.refuse(error, iova, nbytes, access, tag)
            raise
        if self.trace is not None and not quiet:
            self.trace(DmaDone(self.endpoint_id, iova, nbytes, write, len(views), pasid=_pasid_of(tag)))
        return views

    def count_untried(self, reason: str) -> None:
        """The endpoint has an access to make and knows that it would be refused for `reason`: it is not tried, and
        counts all the same."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def begin(
        self, iova: int, nbytes: int, *, write: bool, tag: Tag | None = None, again: Flight | None = None
    ) -> Flight:
        """Translate an access to [iova, iova+nbytes), `nbytes` > 0 and as for `views`; it is in flight until `end`.

        Whoever begins one sees to it that it ends soon: at a time it knows, or with the function's next gate or reset;
        one that is `late` when `resumed` is called. One that is `cut` covers less than was asked for. `again` is the
        flight of the same access that was given back.
        """
        access = WRITE if write else READ
        try:
            self.check_gates(iova, tag)
            detour = self.detour
            if detour is None:
                flight = self.take_off(iova, nbytes, access, tag)
            else:
                flight = detour.begin(iova, nbytes, access, tag, again)
        except DmaError as error:
            self.refuse(error, iova, nbytes, access, tag)
            raise
        return flight

    def land(self, flight: Flight, tag: Tag | None = None) -> list[memoryview]:
        """The memory of an access in flight, to be moved in this slice, before `end`. DmaError as the module says.

        `tag` is that of `begin`. A flight that is over lands nowhere: `cancelled`, for endpoints that did not look.
        """
        iova, nbytes, access = flight.start, flight.stop - flight.start, flight.access
        try:
            self.check_gates(iova, tag)
            if flight.over:
                raise DmaError("cancelled", iova, passing=True)
            engine = self.translator
            if engine.settings.revalidate and engine.retranslate(flight, tag) != flight.pieces:
                raise TranslationFault(FAULT_R_MAPPING, "translation-changed", iova)
            views = self._memory(flight.pieces, iova, access)
        except DmaError as error:
            self.refuse(error, iova, nbytes, access, tag)
            raise
        if self.detour is not None:
            views = self.detour.landed(flight, views)
        if self.trace is not None:
            self.trace(DmaDone(self.endpoint_id, iova, nbytes, access == WRITE, len(views), pasid=flight.pasid))
        return views

    def end(self, flight: Flight) -> None:
        """Its bytes have moved, or will not: whoever waits for it goes on. Again is no change."""
        self._engine.in_flight.end(flight)

    def break_off(self, flight: Flight, tag: Tag | None = None) -> TranslationFault:
        """What a flight that is `cut` ends with, where it ends: reported, for the endpoint to raise."""
        fault = TranslationFault(FAULT_R_MAPPING, "not-mapped", flight.stop)
        self.refuse(fault, flight.stop, flight.cut, flight.access, tag)
        return fault

    def divert(self, detour: Detour | None) -> None:
        """Accesses take `detour` from now on; None: the straight way."""
        self.detour = detour
        self.diverted(detour is not None)

    def hurry(self) -> None:
        """The endpoint cannot wait: what is delayed may be tried again now."""
        if self.detour is not None:
            self.detour.hurry()

    def forget(self) -> None:
        """The endpoint was reset, or gave up: no access of before comes again."""
        if self.detour is not None:
            self.detour.forget()

    @property
    def nflights(self) -> int:
        """How many accesses are in flight."""
        return len(self._engine.in_flight.of(self.endpoint_id))

    def refuse(self, error: DmaError, iova: int, nbytes: int, access: int, tag: Tag | None) -> None:
        """Count, trace and report a refusal, which the caller raises."""
        self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
        if tag is not None:
            counted = self.refused_pasids
            pasid = tag.pasid if tag.pasid in counted or len(counted) < MAX_COUNTED_PASIDS else 0
            counted[pasid] = counted.get(pasid, 0) + 1
        if self.trace is not None:
            self.trace(DmaDone(self.endpoint_id, iova, nbytes, access == WRITE, 0, error.reason, _pasid_of(tag)))
        if isinstance(error, TranslationFault):
            self._engine.fault(self.endpoint_id, error, access, tag)
            self._after_fault()

    def check_gates(self, iova: int, tag: Tag | None) -> None:
        """DmaError for an access that may not leave the function."""
        if not self.function.dma_enabled:
            raise DmaError("bus-master-off", iova, passing=True)
        if self.frozen:
            raise DmaError("frozen", iova, passing=True)
        if tag is not None:
            self.check_tag(iova, tag)
        # P46: an endpoint with ONLY makes no access without a PASID
        elif self.pasid_only:
            raise TranslationFault(FAULT_R_PASID_REQUIRED, "pasid-required", iova)

    def check_tag(self, iova: int, tag: Tag) -> None:
        """What the capability allows, whatever the endpoint does: we are the root complex, too. TranslationFault."""
        control = self.function.pasid_control
        # P42: enabled, and the PASID fits the width
        if not control & pci.PASID_ENABLE:
            raise TranslationFault(FAULT_R_PASID_DISABLED, "pasid-disabled", iova)
        if tag.pasid >> self.function.pasid_bits:
            raise TranslationFault(FAULT_R_PASID_DISABLED, "pasid-too-wide", iova, f"PASID {tag.pasid:#x}")
        # P43: a request needs its enable bit
        if tag.execute and not control & pci.PASID_EXECUTE:
            raise TranslationFault(FAULT_R_PASID_DISABLED, "execute-disabled", iova)
        if tag.privileged and not control & pci.PASID_PRIVILEGED:
            raise TranslationFault(FAULT_R_PASID_DISABLED, "privileged-disabled", iova)

    def look_up(self, iova: int, nbytes: int, access: int, tag: Tag | None) -> list[memoryview]:
        """The straight way to memory, gates first."""
        self.check_gates(iova, tag)
        if nbytes <= 0:
            return []
        return self._memory(self.translator.translate(self.endpoint_id, iova, nbytes, access, tag), iova, access)

    def take_off(self, iova: int, nbytes: int, access: int, tag: Tag | None) -> Flight:
        """The straight way into the air, past the gates."""
        flight = self.translator.begin(self.endpoint_id, iova, nbytes, access, tag)
        try:
            self._memory(flight.pieces, iova, access)
        except DmaError:
            self._engine.in_flight.end(flight)
            raise
        return flight

    def _memory(self, pieces: list[tuple[int, int]], iova: int, access: int) -> list[memoryview]:
        views: list[memoryview] = []
        slices, write = self.function.memory.slices, access == WRITE
        try:
            for gpa, length in pieces if len(pieces) == 1 else joined(pieces):
                views += slices(gpa, length, write=write)
        except MemoryAccessError as error:
            raise DmaError("unsupported-request", iova, str(error), passing=error.lost) from error
        return views


class TaggedDoor:
    """A door's accesses with one tag; see `DmaDoor`."""

    __slots__ = ("_door", "_tag", "slice_nbytes")

    def __init__(self, door: DmaDoor, tag: Tag) -> None:
        self._door = door
        self._tag = tag
        self.slice_nbytes = door.slice_nbytes

    @property
    def frozen(self) -> bool:
        """Whether all DMA is held."""
        return self._door.frozen

    def read(self, iova: int, nbytes: int) -> bytes:
        """As `DmaDoor.read`."""
        return self._door.read(iova, nbytes, self._tag)

    def write(self, iova: int, data: bytes) -> None:
        """As `DmaDoor.write`."""
        self._door.write(iova, data, self._tag)

    def views(self, iova: int, nbytes: int, *, write: bool) -> list[memoryview]:
        """As `DmaDoor.views`."""
        return self._door.views(iova, nbytes, write=write, tag=self._tag)

    def begin(self, iova: int, nbytes: int, *, write: bool, again: Flight | None = None) -> Flight:
        """As `DmaDoor.begin`."""
        return self._door.begin(iova, nbytes, write=write, tag=self._tag, again=again)

    def land(self, flight: Flight) -> list[memoryview]:
        """As `DmaDoor.land`."""
        return self._door.land(flight, self._tag)

    def end(self, flight: Flight) -> None:
        """As `DmaDoor.end`."""
        self._door.end(flight)

    def break_off(self, flight: Flight) -> TranslationFault:
        """As `DmaDoor.break_off`."""
        return self._door.break_off(flight, self._tag)


def _pasid_of(tag: Tag | None) -> int:
    return 0 if tag is None else tag.pasid


def joined(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """`pieces` with those that continue each other made one."""
    out: list[tuple[int, int]] = []
    start = stop = -1
    for gpa, nbytes in pieces:
        if gpa == stop:
            stop += nbytes
            continue
        if start >= 0:
            out.append((start, stop - start))
        start, stop = gpa, gpa + nbytes
    out.append((start, stop - start))
    return out
