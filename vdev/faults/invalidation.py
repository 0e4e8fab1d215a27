"""The point invalidation: an UNMAP, DETACH or DETACH_PASID was granted, and is not all that it says.

`stale`: the mappings it took from an endpoint, or from one of its PASIDs, go on translating for it, in front of what is
mapped there anew: an IOTLB that was not invalidated. They end after their time or their number of accesses, with a
reset of the unit, and when all is cleared. They are the endpoint's, not the domain's: it may be attached elsewhere.

`early`: the answer does not wait for the accesses in flight that it affects. They land all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vdev.faults.keeping import HoldsByUnit, Keeper
from vdev.faults.plan import Firing
from vdev.faults.point import NO_ROOM, Due, Serve, Services, UnitParts
from vdev.faults.request_words import INVALIDATION, occurrence, parse
from vdev.faults.translators import STALE, Asked, Found, put_stage, take_stage
from vdev.functions.dma import MAX_PIECES
from vdev.iommu.domains import Domain, Endpoint
from vdev.iommu.in_flight import Piece
from vdev.iommu.intervals import Interval, IntervalMap
from vdev.wire import viommu as wire
from vdev.wire.viommu_pasid import DetachPasid

MAX_STALE = 4096  # mappings, of all units together
MOST_IN_ONE_ACCESS = MAX_PIECES + 1  # mappings: of the smallest, and not aligned to them
Key = tuple[int, int]  # endpoint, PASID (0: without one)


@dataclass(frozen=True, slots=True)
class _Losing:
    """What a request is about to take from whom."""

    domain: int
    keys: Mapping[Key, Endpoint]
    mappings: list[Interval]  # as many as there is room for, and no more


@dataclass(slots=True, eq=False)
class _Stale:
    """Mappings that live on for `keys`, and for whoever is these endpoints. `left`: for so many accesses more."""

    rule: str
    resets: int  # of the unit, when it began
    domain: int
    keys: Mapping[Key, Endpoint]
    left: int | None
    mappings: IntervalMap = field(default_factory=IntervalMap)
    due: Due | None = None


class _Unit(Keeper[_Stale]):
    """One unit's invalidations, and what lives on after them."""

    def __init__(self, services: Services, parts: UnitParts, room: Callable[[], int]) -> None:
        super().__init__()
        self._services = services
        self._parts = parts
        self._room = room

    # when a request is taken

    def handle(self, inner: Serve, readable: bytes | memoryview, writable_nbytes: int) -> bytes:
        """As `Engine.handle`; `inner` is that, or what else stands before it."""
        engine = self._parts.engine
        found = parse(engine, readable, writable_nbytes)
        if found is None or found[0].name not in _LOSING:
            return inner(readable, writable_nbytes)
        kind, request = found
        losing, before = _LOSING[kind.name](self, request), engine.table.nmappings
        met = occurrence("invalidation", engine, kind, request)
        answer = inner(readable, writable_nbytes)
        if answer[-wire.TAIL_NBYTES :] != wire.TAILS[wire.S_OK]:
            return answer
        removed = before - engine.table.nmappings
        firing = self._services.meet(met, lambda firing: self._words(firing, losing, removed))
        if firing is None:
            return answer
        if firing.rule.do == "early":
            engine.wait = None
        elif losing is not None and losing.mappings:
            self._live_on(firing, losing)
        return answer

    def _words(self, firing: Firing, losing: _Losing | None, removed: int) -> str:
        if firing.rule.do == "early":
            wait = self._parts.engine.wait
            return "nothing was in flight" if wait is None else f"accesses that land later: {len(wait.flights)}"
        if losing is None or (not losing.mappings and not removed):
            return "nothing lives on: nothing was mapped"
        if not self._services.has_room:
            return NO_ROOM
        lost = max(removed - len(losing.mappings), 0)
        lack = f", and that do not for lack of room: {lost}" if lost else ""
        return f"mappings that live on: {len(losing.mappings)}{lack}"

    def _losing(
        self, domain: Domain | None, keys: Mapping[Key, Endpoint], start: int = 0, stop: int = 1 << 64
    ) -> _Losing | None:
        """None where there is nothing to translate by, as in a domain that bypasses."""
        if domain is None or domain.bypass:
            return None
        found = domain.mappings.items_from(start, self._room())
        return _Losing(domain.id, keys, [one for one in found if start <= one[0] and one[1] <= stop])

    def _losing_by_unmap(self, request: wire.Unmap) -> _Losing | None:
        domain = self._parts.engine.table.domains.get(request.domain)
        if domain is None:
            return None
        keys = {key: endpoint for endpoint in domain.endpoints.values() for key in _keys_of_rid(endpoint)}
        for number, pairs in domain.pairs.items():
            keys |= {(number, pasid): pair.endpoint for pasid, pair in pairs.items()}
        return self._losing(domain, keys, request.virt_start, request.virt_end + 1)

    def _losing_by_detach(self, request: wire.Detach) -> _Losing | None:
        endpoint = self._parts.engine.table.endpoints.get(request.endpoint)
        if endpoint is None:
            return None
        return self._losing(endpoint.domain, dict.fromkeys(_keys_of_rid(endpoint), endpoint))

    def _losing_by_detach_pasid(self, request: DetachPasid) -> _Losing | None:
        table = self._parts.engine.table
        endpoint = table.endpoints.get(request.endpoint)
        if endpoint is None or request.pasid not in endpoint.pairs:
            return None
        domain = table.domain_of(endpoint.id, request.pasid)
        return self._losing(domain, {(endpoint.id, request.pasid): endpoint})

    def _live_on(self, firing: Firing, losing: _Losing) -> None:
        """Where too much waits for its time already, nothing does."""
        rule, left = firing.rule, firing.rule.parameters.get("accesses")
        stale = _Stale(
            rule.id, self._parts.engine.resets, losing.domain, losing.keys, None if left is None else int(left)
        )
        for mapping in losing.mappings:
            stale.mappings.insert(mapping)
        stale.due = self._services.later(rule.seconds() or 0.0, partial(self.let_go, stale))
        if stale.due is not None:
            self.hold(stale)
            self.put_stage()

    # when an access asks

    def find(self, asked: Asked) -> Found | None:
        """A stage in front of the engine (`faults.translators`)."""
        key = (asked.endpoint, 0 if asked.tag is None else asked.tag.pasid)
        if asked.nbytes <= 0 or (asked.tag is not None and asked.tag.execute):
            return None  # MAP has no right for execution, so no mapping that lives on has
        endpoint = self._parts.engine.table.endpoints.get(asked.endpoint)
        # What is in flight was counted when it began. One that was plugged in anew has nothing of its forerunner's.
        known = [
            one
            for one in super().kept()
            if one.keys.get(key) is endpoint is not None and (one.left != 0 or asked.flight is not None)
        ]
        known = [one for one in known if one.mappings.overlaps(asked.iova, asked.iova + asked.nbytes)]
        pieces, used = self._walk(known, asked)
        if not used:
            return None
        if asked.flight is None:
            for one in used:
                one.left = None if one.left is None else one.left - 1
        domain = self._parts.engine.table.domain_of(*key)  # by which it would go otherwise: whose requests wait for it
        return Found(pieces, used[0].domain if domain is None else domain.id)

    def _walk(self, known: list[_Stale], asked: Asked) -> tuple[list[Piece], list[_Stale]]:
        """The pieces of an access, by the oldest mapping first and by the engine where none lives on; and by whom.
        Nothing, if by none. TranslationFault as the engine's."""
        pieces: list[Piece] = []
        used: list[_Stale] = []
        start, stop = asked.iova, asked.iova + asked.nbytes
        cursor = start  # of what nobody has translated yet
        cuts = sorted({start, *(edge for one in known for edge in _edges(one, start, stop))})
        for at, end in zip(cuts, [*cuts[1:], stop], strict=True):
            one = next((one for one in known if _hit(one, at, asked.access)), None)
            if one is None:
                continue
            hit = one.mappings.find(at)
            assert hit is not None
            pieces += [*self._rest(cursor, at, asked), (hit[2] + at - hit[0], end - at)]
            used += [one] if one not in used else []
            cursor = end
        return [*pieces, *self._rest(cursor, stop, asked)] if used else [], used

    def _rest(self, start: int, stop: int, asked: Asked) -> list[Piece]:
        if start == stop:
            return []
        return self._parts.engine.translate(asked.endpoint, start, stop - start, asked.access, asked.tag)

    # what lives on

    def kept(self) -> list[_Stale]:
        """What still translates anything that is not in flight already."""
        return [one for one in super().kept() if one.left != 0]

    def is_void(self, one: _Stale) -> bool:
        """A reset ends it."""
        return one.resets != self._parts.engine.resets

    def gone(self, one: _Stale) -> None:
        """It translates nothing any more."""
        if not self.holds:
            take_stage(self._parts, STALE)

    @property
    def nmappings(self) -> int:
        """How many translate something, if only what is in flight."""
        return sum(len(one.mappings) for one in super().kept())

    def put_stage(self) -> None:
        """In front of every endpoint, if anything lives on."""
        if self.holds:
            put_stage(self._parts, STALE, self.find)


class InvalidationPoint(HoldsByUnit[_Unit]):
    """Around `Engine.handle`, and in front of the translations, of every unit. Held is an invalidation of which
    something lives on."""

    def __init__(self, services: Services) -> None:
        super().__init__({name: _Unit(services, parts, self._room) for name, parts in services.units.items()})
        self._services = services

    def arm(self) -> None:
        """As `point.Hooks`."""
        for name, unit in self._units.items():
            self._services.answer_with(name, INVALIDATION, partial(partial, unit.handle))
            unit.put_stage()

    def disarm(self) -> None:
        """As `point.Hooks`; what lives on goes on translating."""
        for name in self._units:
            self._services.answer_with(name, INVALIDATION, None)

    def undone(self, unit: str, kept: Sequence[_Stale]) -> str:
        """As `HoldsByUnit`."""
        return f"stale translations of {unit} end: {sum(len(one.mappings) for one in kept)}"

    def _room(self) -> int:
        return max(MAX_STALE - sum(unit.nmappings for unit in self._units.values()), 0)


def _keys_of_rid(endpoint: Endpoint) -> set[Key]:
    """Of what the RID of an endpoint loses, also those of its PASIDs that mirror it lose."""
    return {(endpoint.id, 0)} | {(endpoint.id, pair.pasid) for pair in endpoint.pairs.values() if pair.domain is None}


def _hit(stale: _Stale, iova: int, access: int) -> bool:
    """Whether it has a mapping there that allows `access`."""
    hit = stale.mappings.find(iova)
    return hit is not None and not access & ~hit[3]


def _edges(stale: _Stale, start: int, stop: int) -> list[int]:
    """Where, inside [start, stop), its mappings begin and end."""
    found = stale.mappings.items_from(start, MOST_IN_ONE_ACCESS)
    return [edge for one in found for edge in one[:2] if start < edge < stop]


_LOSING: Mapping[str, Callable[[_Unit, Any], _Losing | None]] = {
    "UNMAP": _Unit._losing_by_unmap,
    "DETACH": _Unit._losing_by_detach,
    "DETACH_PASID": _Unit._losing_by_detach_pasid,
}
