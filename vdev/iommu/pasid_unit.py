"""A unit's part of the PASID extension (docs/virtio-iommu-pasid.md): its requests, pairs, configuration and resets.

Nothing of it is reached before a driver has accepted PASID. Choices the document leaves open:

    situation                                            answer
    ---------------------------------------------------  --------------------------------------------------------------
    BYPASS, or a living bypass domain                    UNSUPP (P20) before INVAL for another BYPASS flag (P19)
    unmanaged: the PASID is free-pending (it was freed
      by the reset of another unit)                      NOENT, as if it were managed
    unmanaged: a PASID that another unit has allocated   attached; how it was allocated decides what frees it
    ATTACH_PASID that allocates, while the same PASID is
      asked for already                                  waits for the same grant
    ATTACH_PASID that allocated, refused for its domain  the PASID is given back
    what is asked of the allocator                       counts to the quota when the next is asked for, and shows as
                                                         used when it is granted
    answers to what was asked before a reset             DEVERR, where anybody still reads them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vdev.errors import RequestError
from vdev.iommu.domains import DomainTable, Endpoint, Pair
from vdev.iommu.events import PasidAttached, PasidDetached, RequestHandled
from vdev.iommu.in_flight import InFlight, Late, Wait, wait_of_free
from vdev.iommu.kinds import OK_TAIL
from vdev.iommu.pairs import all_pairs, choose_domain, put_pair, take_pair
from vdev.iommu.pasid_held import Held
from vdev.iommu.pasid_set import PasidSet, Refusal
from vdev.iommu.pasid_snapshot import PasidsLoaded
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire
from vdev.wire.record import Record

if TYPE_CHECKING:
    from vdev.iommu.engine import Engine

_Allocates = pasid_wire.AttachPasid | pasid_wire.PasidAlloc

_STATUS = {
    Refusal.QUOTA: wire.S_NOMEM,
    Refusal.SUPPLY: wire.S_NOMEM,
    Refusal.RANGE: wire.S_NOMEM,
    Refusal.UNREACHABLE: wire.S_DEVERR,
}


class UnitPasids:
    """The PASIDs of one unit of a VM. `engine` is its engine, whose tables and flights are looked up when needed."""

    def __init__(self, engine: Engine, pasids: PasidSet) -> None:
        self.name = engine.settings.name
        self.set = pasids
        self._engine = engine
        self._accepted = 0  # of the two bits
        self._attach_flags = 0
        engine.in_flight.tag_ended = pasids.flight_ended
        pasids.join(self)

    # Member

    @property
    def in_flight(self) -> InFlight:
        """Accesses of the unit's endpoints under way."""
        return self._engine.in_flight

    def quota_changed(self) -> None:
        """P5: told to a driver that knows of quotas."""
        if self._accepted:
            self._engine.config_changed()

    def used_changed(self) -> None:
        """The driver may be reading the configuration."""
        if self._accepted:
            self._engine.config_moved()

    def revoke(self, pasids: frozenset[int]) -> None:
        """The host has taken these away."""
        for pair in [pair for pair in all_pairs(self._engine.table) if pair.pasid in pasids]:
            self._detach(pair)
        for flight in self.in_flight.with_pasids(pasids):
            self.in_flight.end(flight)

    # negotiation and configuration

    def usable(self, features: int) -> int:
        """`features` without what may not be accepted of the extension's (P2, P3)."""
        needs_no_other = wire.F_MAP_UNMAP | wire.F_PROBE
        alone_in_system_space = self.set.terms.space == "system" and not features & pasid_wire.F_PASID_ALLOC
        if features & needs_no_other != needs_no_other or alone_in_system_space:
            features &= ~pasid_wire.F_PASID
        if not features & pasid_wire.F_PASID:
            features &= ~pasid_wire.F_PASID_ALLOC
        return features

    def accept(self, features: int) -> int:
        """The driver accepted these; the `usable` ones of them."""
        accepted = self.usable(features)
        self._accepted = accepted & pasid_wire.FEATURES
        bypass = pasid_wire.ATTACH_PASID_F_BYPASS if accepted & wire.F_BYPASS_CONFIG else 0
        self._attach_flags = pasid_wire.ATTACH_PASID_F_MIRROR_RID | bypass
        return accepted

    @property
    def is_accepted(self) -> bool:
        """Whether the driver knows of PASIDs."""
        return bool(self._accepted)

    @property
    def is_managed(self) -> bool:
        """Whether it allocates them with PASID_ALLOC."""
        return bool(self._accepted & pasid_wire.F_PASID_ALLOC)

    def config_fields(self) -> bytes:
        """The extension's part of the configuration; zeros until the driver accepted it (P4)."""
        if not self._accepted:
            return bytes(pasid_wire.CONFIG_NBYTES)
        terms = self.set.terms
        space = pasid_wire.SPACE_SYSTEM if terms.space == "system" else pasid_wire.SPACE_PER_GUEST
        return pasid_wire.PasidConfig(terms.quota, self.set.used, terms.first, terms.stop - 1, space).pack()

    # requests

    def attach(self, request: pasid_wire.AttachPasid) -> bytes | None:
        """ATTACH_PASID, in the order of checks of section 4.1; None: answered when the PASID is allocated."""
        # P14: reserved bytes, flags, and `domain` where it has no meaning
        if request.reserved != bytes(8):
            raise RequestError(wire.S_INVAL, "reserved bytes are not zero")
        mirrors = bool(request.flags & pasid_wire.ATTACH_PASID_F_MIRROR_RID)
        if request.flags & ~self._attach_flags or (mirrors and request.flags != pasid_wire.ATTACH_PASID_F_MIRROR_RID):
            raise RequestError(wire.S_INVAL, f"flags {request.flags:#x} are not all known, or exclude each other")
        if mirrors and request.domain:
            raise RequestError(wire.S_INVAL, f"domain {request.domain} of a pair that mirrors")
        _check_pasid(request.pasid)
        endpoint = self._endpoint(request.endpoint, request.pasid)
        held = self._held_or_none(request.pasid)
        if held is None:
            return self._allocate_by_attach(request)
        self._attach(request, endpoint, held)
        if self.in_flight.by_endpoint:
            self._engine.wait = self.in_flight.wait_of_pair(request)
        return b""

    def _endpoint(self, number: int, pasid: int) -> Endpoint:
        """P15, P16: an endpoint that can have `pasid` attached."""
        endpoint = self._engine.table.endpoint(number)
        if endpoint.pasid is None:
            raise RequestError(wire.S_UNSUPP, f"endpoint {number:#x} has no PASIDs")
        if not endpoint.pasid.takes(pasid):
            raise RequestError(wire.S_RANGE, f"endpoint {number:#x} cannot have PASID {pasid:#x}")
        return endpoint

    def _held_or_none(self, pasid: int) -> Held | None:
        """The set's, for an attach; None where the attach is to allocate it."""
        held = self.set.of_guest(pasid)
        if held is not None and not held.freed:
            return held
        # P17, P55: neither what is freed nor what is the host's is told from what there is not
        if self.is_managed or held is not None or self.set.of_host(pasid) is not None:
            raise RequestError(wire.S_NOENT, f"PASID {pasid:#x} is not in the set")
        # P18: by number, unmanaged
        terms = self.set.terms
        if not terms.first <= pasid < terms.stop:
            raise RequestError(wire.S_RANGE, f"PASID {pasid:#x} is outside {terms.first:#x}..{terms.stop - 1:#x}")
        return None

    def _allocate_by_attach(self, request: pasid_wire.AttachPasid) -> bytes | None:
        first, stop = request.pasid, request.pasid + 1
        if not self.set.is_asked(request.pasid):
            self._check_refusal(first, stop)
        reply = self._answer_later(request)

        def granted(outcome: Held | Refusal) -> None:
            """Attach, as far as the endpoint and the domain are what they were when it was asked for."""

            def attach() -> bytes:
                held = _granted(outcome)
                self._attach(request, self._endpoint(request.endpoint, request.pasid), held)
                return b""

            reply(attach)

        self.set.ask(self.name, first, stop, granted, by_attach=True)
        return None

    def _attach(self, request: pasid_wire.AttachPasid, endpoint: Endpoint, held: Held) -> None:
        engine = self._engine
        mirrors = request.flags & pasid_wire.ATTACH_PASID_F_MIRROR_RID
        wanted = None if mirrors else (request.domain, bool(request.flags & pasid_wire.ATTACH_PASID_F_BYPASS))
        domain = choose_domain(engine.table, engine.settings, endpoint, request.pasid, wanted)
        before = endpoint.pairs.get(request.pasid)
        put_pair(engine.table, endpoint, held, domain)
        after = endpoint.pairs[request.pasid]
        if before is None:
            self.set.pair_attached(held)
        elif before is not after:
            engine.tell(PasidDetached, endpoint.id, before.pasid, before.domain_id)
        if before is not after:
            engine.tell(PasidAttached, endpoint.id, after.pasid, after.domain_id)

    def detach(self, request: pasid_wire.DetachPasid) -> bytes:
        """DETACH_PASID."""
        # P27: reserved is ignored
        _check_pasid(request.pasid)
        endpoint = self._engine.table.endpoint(request.endpoint)
        pair = endpoint.pairs.get(request.pasid)
        # P28: not attached, or elsewhere; P55: the host's pair is not the driver's
        if pair is None or pair.held.is_host or (pair.domain_id or 0) != request.domain:
            where = f"domain {request.domain}"
            raise RequestError(wire.S_INVAL, f"PASID {request.pasid:#x} of {endpoint.id:#x} is not attached to {where}")
        if self.in_flight.by_endpoint:
            self._engine.wait = self.in_flight.wait_of_pair(request)
        self._detach(pair)
        return b""

    def alloc(self, request: pasid_wire.PasidAlloc) -> bytes | None:
        """PASID_ALLOC: answered when the allocator has, or refused at once."""
        _check_range(request)
        first, stop = request.first, request.last + 1
        self._check_refusal(first, stop)
        reply = self._answer_later(request)

        def granted(outcome: Held | Refusal) -> None:
            reply(lambda: pasid_wire.PasidGranted(_granted(outcome).pasid, self.set.remaining).pack())

        self.set.ask(self.name, first, stop, granted)
        return None

    def free(self, request: pasid_wire.PasidFree) -> bytes:
        """PASID_FREE; the answer waits for accesses under way, of whichever unit (P38)."""
        _check_range(request)
        span = range(request.first, request.last + 1)
        flights = [flight for unit in self.set.members for flight in unit.in_flight.with_pasids(span)]
        self._engine.wait = wait_of_free(request, [f for f in flights if self.set.of_host(f.pasid) is None])
        return pasid_wire.PasidFreed(self.set.free(span.start, span.stop)).pack()

    def _answer_later(self, request: _Allocates) -> Callable[[Callable[[], bytes]], None]:
        """The request's answer waits: what this returns is called once, with what makes it or raises RequestError."""
        engine, late = self._engine, Late()
        kind = engine.kinds[request.type]
        engine.wait = Wait(kind.name, request, [], late)

        def reply(make: Callable[[], bytes]) -> None:
            try:
                body = make()
            except RequestError as error:
                late.answer = engine.refuse(kind, request, error)
                return
            engine.tell(RequestHandled, kind.name, wire.S_OK, request)
            late.answer = body + OK_TAIL

        return reply

    def _check_refusal(self, first: int, stop: int) -> None:
        why = self.set.refusal(self.name, first, stop)
        if why is not None:
            raise RequestError(_STATUS[why], f"no PASID: {why.value}")

    # ends

    def _detach(self, pair: Pair) -> None:
        take_pair(self._engine.table, pair)
        self._engine.tell(PasidDetached, pair.endpoint.id, pair.pasid, pair.domain_id)
        self.set.pairs_gone([pair.held])

    def endpoint_leaves(self, endpoint: Endpoint) -> None:
        """P54: its pairs go with it, and the host's own PASID, which was for it."""
        for pair in list(endpoint.pairs.values()):
            self.in_flight.cancel_pair(endpoint.id, pair.pasid)
            self._detach(pair)
            if pair.held.is_host and not pair.held.npairs:
                self.set.free_host(pair.held)

    def reset(self) -> None:
        """P51: no pair but the host's is left, and what was allocated here is freed. Nothing is in flight."""
        self.set.cancel(self.name)
        table = self._engine.table
        pairs = [pair for pair in all_pairs(table) if not pair.held.is_host]
        for pair in pairs:
            take_pair(table, pair)
        self.set.pairs_gone(pair.held for pair in pairs)
        self.set.free_all_of(self.name)

    def held(self) -> list[Held]:
        """What was allocated through the unit, by number."""
        return self.set.allocated_through(self.name)

    def restore(self, table: DomainTable, saved: PasidsLoaded) -> None:
        """The unit's pairs become those of `table`, which takes the place of the present one. Nothing is in flight."""
        self.set.cancel(self.name)
        unwanted = [held for held in self.held() if held.pasid not in saved.kept or saved.kept[held.pasid][1]]
        self.set.adopt(saved.adopted.values())
        for pair in list(all_pairs(table)):
            if self.set.of_guest(pair.pasid) is pair.held:
                self.set.pair_attached(pair.held)
            else:
                take_pair(table, pair)  # what was in flight was the last that used it
        present = list(all_pairs(self._engine.table))
        for pair in present:
            if pair.held.is_host:
                put_pair(table, table.endpoints[pair.endpoint.id], pair.held, None)
        self.set.pairs_gone(pair.held for pair in present if not pair.held.is_host)
        unpaired = [held for held in saved.adopted.values() if held.by_attach and not held.npairs]
        self.set.settle([*unwanted, *unpaired])

    # the host's own

    def host_attach_mirror(self, endpoint_id: int, pasid: int) -> None:
        """The kernel PASID of an endpoint (section 9). KeyError for an unknown endpoint, ValueError where `pasid` is
        not the host's (`PasidSet.ask_for_host`) or does not fit the endpoint."""
        endpoint, held = self._engine.table.endpoints[endpoint_id], self.set.of_host(pasid)
        if held is None or endpoint.pasid is None or not endpoint.pasid.takes(pasid):
            raise ValueError(f"PASID {pasid:#x} is not the host's, or nothing that {endpoint.name} can have")
        if pasid not in endpoint.pairs:
            put_pair(self._engine.table, endpoint, held, None)
            self.set.pair_attached(held)
            self._engine.tell(PasidAttached, endpoint_id, pasid, None)

    # for queries

    def describe(self) -> dict[str, Any]:
        """Plain data of bounded size."""
        return {
            "mode": "managed" if self.is_managed else "unmanaged" if self.is_accepted else "not-negotiated",
            "pairs": self._engine.table.npairs,
            "allocated": len(self.held()),
        }

    def list_pairs(self) -> list[dict[str, Any]]:
        """Every pair, by endpoint and PASID: as many as `Limits.max_pairs`."""
        return [describe_pair(pair) for pair in all_pairs(self._engine.table)]


def describe_pair(pair: Pair) -> dict[str, Any]:
    """One pair for queries; `domain` None where it mirrors."""
    return {
        "endpoint": pair.endpoint.id,
        "pasid": pair.pasid,
        "domain": pair.domain_id,
        "mirrors": pair.domain is None,
        "state": pair.held.state,
        "owner": "host" if pair.held.is_host else "guest",
    }


def _check_pasid(pasid: int) -> None:
    """P8, P9."""
    if not pasid:
        raise RequestError(wire.S_INVAL, "PASID 0 is none")
    if pasid > pasid_wire.PASID_LAST:
        raise RequestError(wire.S_RANGE, f"PASID {pasid:#x} has more than 20 bits")


def _check_range(request: pasid_wire.PasidAlloc | pasid_wire.PasidFree) -> None:
    """P31, P8, P9."""
    if request.reserved != bytes(8):
        raise RequestError(wire.S_INVAL, "reserved bytes are not zero")
    if not request.first or not request.last:
        raise RequestError(wire.S_INVAL, "PASID 0 is none")
    if request.first > request.last or request.last > pasid_wire.PASID_LAST:
        raise RequestError(wire.S_RANGE, f"{request.first:#x}..{request.last:#x} is no range of PASIDs")


def _granted(outcome: Held | Refusal) -> Held:
    """The PASID, or the answer to who asked for it."""
    if isinstance(outcome, Refusal):
        raise RequestError(_STATUS[outcome], f"no PASID: {outcome.value}")
    return outcome


# type: its record, the feature that must be accepted, what serves it
PASID_REQUESTS: dict[int, tuple[type[Record], int, Callable[[Engine, Any], bytes | None]]] = {
    pasid_wire.T_ATTACH_PASID: (pasid_wire.AttachPasid, pasid_wire.F_PASID, lambda unit, it: unit.pasids.attach(it)),
    pasid_wire.T_DETACH_PASID: (pasid_wire.DetachPasid, pasid_wire.F_PASID, lambda unit, it: unit.pasids.detach(it)),
    pasid_wire.T_PASID_ALLOC: (pasid_wire.PasidAlloc, pasid_wire.F_PASID_ALLOC, lambda unit, it: unit.pasids.alloc(it)),
    pasid_wire.T_PASID_FREE: (pasid_wire.PasidFree, pasid_wire.F_PASID_ALLOC, lambda unit, it: unit.pasids.free(it)),
}
# bytes before the tail in the device-writable part
PASID_ANSWER_NBYTES = {
    pasid_wire.T_PASID_ALLOC: pasid_wire.ANSWER_NBYTES,
    pasid_wire.T_PASID_FREE: pasid_wire.ANSWER_NBYTES,
}
