"""The way of an endpoint's accesses while rules stand at the points translation or dma: past both, then to memory.

An access is met once, however often it is tried: one that is delayed is tried again, one that was given back is
translated anew. A virtio endpoint's looks at its rings meet nothing: how often it looks depends on time, so no seed
could repeat what came of it.

An access in flight (the accelerator's operands) is delayed there: UNMAP and DETACH wait for it as for any other. Any
other access is refused for the moment (`DmaDelayed`), and translated when its endpoint tries it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

from vdev.errors import DmaDelayed, DmaError, TranslationFault
from vdev.faults.plan import Firing
from vdev.faults.point import Due, Services
from vdev.faults.rule import Occurrence
from vdev.faults.translators import Found
from vdev.functions.dma import READ, WRITE, DmaDoor
from vdev.iommu.engine import Engine
from vdev.iommu.in_flight import Flight
from vdev.iommu.tag import Tag
from vdev.memory import first_of
from vdev.virtio.chain import RingError
from vdev.wire.viommu import FAULT_R_MAPPING

MAX_LATE = 16  # of one endpoint; more than it has under way, so only a driver that changes its mind gets there
Key = tuple[int, int, int, int]  # iova, nbytes, access, pasid


@dataclass(slots=True)
class Late:
    """A delay. `over`: its time has come, or nobody wanted to wait for it."""

    rule: str
    due: Due
    over: bool = False


@dataclass(slots=True, eq=False)
class Fate:
    """What was decided about one access."""

    is_translated: bool = False
    found: Found | None = None  # by the point translation; None: as ever
    is_met: bool = False
    firing: Firing | None = None  # of the point dma
    late: Late | None = None
    flight: Flight | None = None  # it is in now


@dataclass(frozen=True, slots=True)
class Place:
    """Whose accesses they are."""

    unit: str
    engine: Engine
    name: str
    door: DmaDoor

    def occurrence(self, point: str, iova: int, nbytes: int, access: int, tag: Tag | None) -> Occurrence:
        """One of their accesses, which a rule may meet."""
        pasid = None if tag is None else tag.pasid
        domain = self.engine.table.domain_of(self.door.endpoint_id, pasid or 0)
        return Occurrence(
            point,
            unit=self.unit,
            endpoint=self.door.endpoint_id,
            domain=None if domain is None else domain.id,
            pasid=pasid,
            start=iova,
            stop=iova + nbytes,
            access="write" if access == WRITE else "read",
            function=self.name,
        )


class Detours:
    """The detours of all doors, which both points put in place together. `fate` is of the access that is being
    translated; None: it is a message, or nobody's."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.fate: Fate | None = None
        self._armed: set[str] = set()
        self._detours: dict[int, Detour] = {}  # by the door's id()

    def arm(self, point: str) -> None:
        """Rules stand at `point`; again after endpoints came."""
        self._armed.add(point)
        self.tidy()
        for place in self._places():
            if id(place.door) not in self._detours:
                detour = self._detours[id(place.door)] = Detour(self, place)
                place.door.divert(detour)

    def disarm(self, point: str) -> None:
        """No rule stands at `point` any more."""
        self._armed.discard(point)
        self.tidy()

    def is_armed(self, point: str) -> bool:
        """Whether rules stand there."""
        return point in self._armed

    def all(self) -> list[Detour]:
        """Those in place."""
        return list(self._detours.values())

    def is_there(self, door: DmaDoor) -> bool:
        """Whether its endpoint is still plugged in."""
        return any(place.door is door for place in self._places())

    def tidy(self) -> None:
        """Take away what is needed no longer."""
        for key, detour in list(self._detours.items()):
            if not self.is_there(detour.place.door):
                del self._detours[key]
                detour.cancel()
            elif not self._armed and not detour.is_busy:
                del self._detours[key]
                detour.place.door.divert(None)

    def _places(self) -> Iterator[Place]:
        for unit, parts in self.services.units.items():
            for name, door in parts.doors.items():
                yield Place(unit, parts.engine, name, door)


class Detour:
    """One door's. Implements `functions.dma.Detour`."""

    def __init__(self, detours: Detours, place: Place) -> None:
        self.place = place
        self._door = place.door
        self._detours = detours
        self._refused: dict[Key, Fate] = {}  # delayed, and to be tried again
        self._lates: list[Fate] = []  # those and the ones in flight whose time has not come

    @property
    def is_busy(self) -> bool:
        """Whether it holds something."""
        return bool(self._lates)

    def reach(self, iova: int, nbytes: int, access: int, tag: Tag | None, quiet: bool) -> list[memoryview]:
        """As `functions.dma.Detour`."""
        self._door.check_gates(iova, tag)
        if quiet or nbytes <= 0:
            return self._straight(Fate(is_translated=True), iova, nbytes, access, tag)
        key = (iova, nbytes, access, 0 if tag is None else tag.pasid)
        fate = self._refused.get(key)
        if fate is None:
            fate = Fate()
        elif fate.late is not None and not fate.late.over:
            raise DmaDelayed(iova)
        self._refused.pop(key, None)
        views = self._straight(fate, iova, nbytes, access, tag)
        if fate.is_met:
            return views
        self._meet(fate, iova, nbytes, access, tag)
        return self._act(fate, views, key, tag)

    def begin(self, iova: int, nbytes: int, access: int, tag: Tag | None, again: Flight | None) -> Flight:
        """As `functions.dma.Detour`."""
        fate = again.fate if again is not None and isinstance(again.fate, Fate) else Fate()
        self._detours.fate = fate
        try:
            flight = self._door.take_off(iova, nbytes, access, tag)
        finally:
            self._detours.fate = None
        flight.fate, fate.flight = fate, flight
        try:
            if not fate.is_met:
                self._meet(fate, iova, nbytes, access, tag)
            self._act_in_flight(fate, flight)
        except BaseException:
            self._door.end(flight)
            raise
        return flight

    def landed(self, flight: Flight, views: list[memoryview]) -> list[memoryview]:
        """As `functions.dma.Detour`."""
        fate = flight.fate
        if isinstance(fate, Fate) and fate.firing is not None and fate.firing.rule.do == "corrupt":
            return corrupted(fate.firing, views, flight.access)
        return views

    def hurry(self) -> None:
        """As `functions.dma.Detour`."""
        self.release(None, resume=False)

    def forget(self) -> None:
        """As `functions.dma.Detour`."""
        self.cancel()
        self._detours.tidy()

    def cancel(self) -> None:
        """Nothing is held any more, and nobody is told."""
        for fate in self._lates:
            if fate.late is not None:
                fate.late.due.cancel()
        self._lates.clear()
        self._refused.clear()

    def held(self) -> list[str]:
        """The rule of every access that is delayed."""
        return [fate.late.rule for fate in self._lates if fate.late is not None]

    def release(self, rule: str | None, *, resume: bool = True) -> int:
        """Let go of what is delayed by `rule`, or of all; how many accesses."""
        going = [fate for fate in self._lates if fate.late is not None and rule in (None, fate.late.rule)]
        for fate in going:
            self._let_go(fate)
        if going and resume:
            self._door.resumed()
        self._detours.tidy()
        return len(going)

    def _straight(self, fate: Fate, iova: int, nbytes: int, access: int, tag: Tag | None) -> list[memoryview]:
        self._detours.fate = fate
        try:
            return self._door.look_up(iova, nbytes, access, tag)
        finally:
            self._detours.fate = None

    def _meet(self, fate: Fate, iova: int, nbytes: int, access: int, tag: Tag | None) -> None:
        fate.is_met = True
        if self._detours.is_armed("dma"):
            fate.firing = self._detours.services.meet(self.place.occurrence("dma", iova, nbytes, access, tag))

    def _act(self, fate: Fate, views: list[memoryview], key: Key, tag: Tag | None) -> list[memoryview]:
        """What becomes of an access that is one call."""
        firing, (iova, nbytes, access, _) = fate.firing, key
        if firing is None:
            return views
        do = firing.rule.do
        if do == "corrupt":
            return corrupted(firing, views, access)
        if do == "delay":
            if self._delay(fate, firing):
                if len(self._refused) >= MAX_LATE:
                    self._drop(next(iter(self._refused)))
                self._refused[key] = fate
                raise DmaDelayed(iova)
            return views
        if do == "partial":
            moved = firing.rule.number("nbytes")
            if moved >= nbytes:
                return views
            fault = BrokenOff(iova + moved)
            if access == READ or not moved:
                raise fault
            return [*first_of(views, moved), cast(memoryview, Edge(self._door, fault, nbytes - moved, tag))]
        raise DmaError(do, iova)

    def _act_in_flight(self, fate: Fate, flight: Flight) -> None:
        """What becomes of an access whose bytes move later, and which has begun."""
        firing = fate.firing
        if firing is None or firing.rule.do == "corrupt":
            return
        do = firing.rule.do
        if do == "delay":
            if fate.late is None:
                self._delay(fate, firing)
            flight.late = fate.late is not None and not fate.late.over
        elif do == "partial":
            moved, nbytes = firing.rule.number("nbytes"), flight.stop - flight.start
            if not moved:
                raise TranslationFault(FAULT_R_MAPPING, "not-mapped", flight.start)
            if moved < nbytes:
                flight.stop, flight.cut = flight.start + moved, nbytes - moved
                flight.pieces = _first(flight.pieces, moved)
        else:
            raise DmaError(do, flight.start)

    def _delay(self, fate: Fate, firing: Firing) -> bool:
        """Whether it is held from now on; not if too much is."""
        due = self._detours.services.later(firing.rule.seconds() or 0.0, lambda: self._time_has_come(fate))
        if due is None:
            return False
        fate.late = Late(firing.rule.id, due)
        self._lates.append(fate)
        return True

    def _time_has_come(self, fate: Fate) -> None:
        self._detours.tidy()  # the endpoint may be gone: then nothing is late any more
        if fate in self._lates:
            self._let_go(fate)
            self._door.resumed()
            self._detours.tidy()

    def _let_go(self, fate: Fate) -> None:
        self._lates = [other for other in self._lates if other is not fate]
        if fate.late is not None:
            fate.late.due.cancel()
            fate.late.over = True
        if fate.flight is not None:
            fate.flight.late = False

    def _drop(self, key: Key) -> None:
        self._let_go(self._refused.pop(key))


class BrokenOff(TranslationFault, RingError):
    """An access that moved its first bytes. Whoever stores through views of it may know of rings only."""

    def __init__(self, iova: int) -> None:
        super().__init__(FAULT_R_MAPPING, "not-mapped", iova)


class Edge:
    """Where a view should be, at the end of those of a write: the first byte that is stored here is refused."""

    def __init__(self, door: DmaDoor, fault: BrokenOff, nbytes: int, tag: Tag | None) -> None:
        self._refuse = partial(door.refuse, fault, fault.iova, nbytes, WRITE, tag)
        self._fault = fault
        self._nbytes = nbytes

    def __len__(self) -> int:
        return self._nbytes

    def __setitem__(self, where: slice, data: bytes) -> None:
        self._refuse()
        raise self._fault


def corrupted(firing: Firing, views: list[memoryview], access: int) -> list[memoryview]:
    """The memory `views` for an access that moves wrong bytes. What is written gets them at once, and the right ones go
    nowhere; what is read is a copy."""
    total = sum(map(len, views))
    start = min(firing.rule.number("offset"), total)
    count = firing.rule.parameters.get("nbytes")
    stop = total if count is None else min(total, start + int(count))
    pattern = bytes([firing.rule.number("pattern")])
    if access == READ:
        copy = bytearray(b"".join(views))
        copy[start:stop] = pattern * (stop - start)
        return [memoryview(copy)]
    out: list[memoryview] = []
    at = 0
    for view in views:
        low, high = (min(max(edge - at, 0), len(view)) for edge in (start, stop))
        view[low:high] = pattern * (high - low)
        parts = (view[:low], memoryview(bytearray(high - low)), view[high:])
        out += [part for part in parts if len(part)]
        at += len(view)
    return out


def _first(pieces: list[tuple[int, int]], nbytes: int) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for gpa, length in pieces:
        if nbytes <= 0:
            break
        out.append((gpa, min(length, nbytes)))
        nbytes -= length
    return out
