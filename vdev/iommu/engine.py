"""The virtio-iommu unit: request bytes to reply bytes, translations, faults and events. Pure; `REQUESTS` is the map.

Modes. `compat` (default) answers every request with a whole tail, because stock Linux reads used length 0 as success.
`strict` follows the letter: used length 0 for unknown types (D11), PROBE not offered (D47), too short requests (D15).

Choices where the specification is silent or says MAY are listed in `__init__.py`, of PASIDs in pasid_unit.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

from vdev.errors import ConfigError, RequestError, TranslationFault
from vdev.iommu.domains import DomainTable, Piece
from vdev.iommu.events import (
    BypassChanged,
    EndpointAttached,
    EndpointDetached,
    Event,
    ReplyHeld,
    RequestHandled,
    ResetKind,
    UnitReset,
    request_fields,
)
from vdev.iommu.fault_queue import FaultQueue, fitted
from vdev.iommu.in_flight import NAMES, Flight, InFlight, Wait
from vdev.iommu.kinds import OK_TAIL, Kind, answer_unfit, status_name
from vdev.iommu.pairs import translate_pair
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.pasid_unit import PASID_ANSWER_NBYTES, PASID_REQUESTS, UnitPasids
from vdev.iommu.probe import endpoint_properties
from vdev.iommu.settings import EndpointSettings, UnitSettings, config_bytes
from vdev.iommu.snapshot import describe_table, dump_unit, load_unit
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire
from vdev.wire.record import Record

MAP_PERMISSIONS = wire.MAP_F_READ | wire.MAP_F_WRITE


class Engine:
    """One unit. Single-threaded, no I/O; `emit` None costs nothing."""

    def __init__(
        self,
        settings: UnitSettings,
        endpoints: Iterable[EndpointSettings],
        emit: Callable[[Event], None] | None = None,
        pasids: PasidSet | None = None,
    ) -> None:
        """Raise ConfigError when endpoint ids repeat or an endpoint's properties do not fit `probe_size`. `pasids` is
        the VM's set; a unit that offers PASIDs needs it."""
        self.settings = settings
        self.reached: Callable[[int, Literal["probed", "attached"]], None] = lambda *_: (
            None
        )  # how far a driver is with each
        self.in_flight = InFlight()
        self.wait: Wait | None = None  # set by a request whose answer must wait; whoever answers takes it
        self.config_changed: Callable[[], None] = lambda: None  # fields changed that a driver is to be told of
        self.config_moved: Callable[[], None] = lambda: None  # others did
        self.emit = emit
        given = tuple(endpoints)
        self._table = DomainTable(settings, given)
        self.resets = 0  # how many there were: what fault injection left of before one is void
        self.faults = FaultQueue(settings.limits.max_pending_faults, settings.name, emit)
        self._refused: dict[int | None, int] = {}  # by status
        self.offered_features = settings.offered_features
        self._accepted = 0
        self._map_flags = self._attach_flags = 0
        self._properties = {endpoint.id: endpoint_properties(settings, endpoint) for endpoint in given}
        before_tail = {wire.T_PROBE: settings.probe_size, **PASID_ANSWER_NBYTES}
        self.kinds = {
            number: Kind(NAMES[number], record, record.layout.size, before_tail.get(number, 0), handler, feature)
            for number, (record, feature, handler) in REQUESTS.items()
            if self.offered_features & feature
        }
        if settings.pasids and pasids is None:
            raise ConfigError(f"unit {settings.name}", "it offers PASIDs and there is no set to take them from")
        self._pasids = None if pasids is None else UnitPasids(self, pasids)
        self.set_features(0)
        self._table.bypass = self._boot_bypass

    @property
    def pending_faults(self) -> deque[bytes]:
        """The fault records, oldest left; whoever delivers one to the guest, as `told_fault`, takes it out."""
        return self.faults.pending

    @property
    def table(self) -> DomainTable:
        """Domains, endpoints and mappings, to look at. Another object after `restore`."""
        return self._table

    @property
    def granule(self) -> int:
        """Bytes of the smallest mapping."""
        return self.settings.granule

    @property
    def bypass(self) -> bool:
        """The `bypass` config byte: whether unattached endpoints bypass (always False when it is not offered)."""
        return self._table.bypass

    @property
    def has_driver(self) -> bool:
        """Whether a driver has accepted features."""
        return bool(self._accepted)

    def host_attach_mirror(self, endpoint: int, pasid: int) -> None:
        """The kernel PASID of an endpoint, see `UnitPasids`."""
        self.pasids.host_attach_mirror(endpoint, pasid)

    @property
    def pasids(self) -> UnitPasids:
        """The unit's part of the PASID extension; LookupError where it has none."""
        if self._pasids is None:
            raise LookupError(f"{self.settings.name} has no PASIDs")
        return self._pasids

    def tell(self, kind: Callable[..., Event], *what: Any) -> None:
        """Emit an event of this unit's."""
        if self.emit is not None:
            self.emit(kind(self.settings.name, *what))

    # requests

    def handle(self, readable: bytes | memoryview, writable_nbytes: int) -> bytes:
        """Serve one request; the bytes to store at offset 0 of the writable part (b"": used length 0), or `wait`'s."""
        kind = self.served.get(readable[0]) if len(readable) >= wire.HEAD_NBYTES else None
        if kind is None or len(readable) < kind.nbytes or writable_nbytes < kind.properties_nbytes + wire.TAIL_NBYTES:
            return self._answer_unfit(kind, readable, writable_nbytes)
        kind.handled += 1
        request = kind.record.parse(readable)
        try:
            body = kind.handler(self, request)
        except RequestError as error:
            return self.refuse(kind, request, error)
        if body is None:
            return b""
        if self.emit is not None:
            self.emit(RequestHandled(self.settings.name, kind.name, wire.S_OK, request))
        return body + OK_TAIL

    def refuse(self, kind: Kind, request: Record, error: RequestError) -> bytes:
        """The answer to a request that is refused."""
        self._refused[error.status] = self._refused.get(error.status, 0) + 1
        self.tell(RequestHandled, kind.name, error.status, request, str(error))
        return bytes(kind.properties_nbytes) + wire.TAILS[error.status]

    def _attach(self, request: wire.Attach) -> bytes:
        # D16: reserved not zero; D17: unknown flag bit
        if request.reserved != bytes(4):
            raise RequestError(wire.S_INVAL, "reserved bytes are not zero")
        if request.flags & ~self._attach_flags:
            raise RequestError(wire.S_INVAL, f"flags {request.flags:#x} are not all known")
        endpoint = self._table.endpoint(request.endpoint)
        before = endpoint.domain
        self._table.attach(request.domain, request.endpoint, bypass=bool(request.flags & wire.ATTACH_F_BYPASS))
        after = endpoint.domain
        if self.emit is not None and after is not None and after is not before:
            if before is not None:
                self.emit(EndpointDetached(self.settings.name, request.endpoint, before.id))
            self.emit(EndpointAttached(self.settings.name, request.endpoint, after.id, after.bypass))
        self.reached(request.endpoint, "attached")
        if self.in_flight.by_endpoint:
            self.wait = self.in_flight.wait_of_move(request)
        return b""

    def _detach(self, request: wire.Detach) -> bytes:
        # D25: reserved is ignored
        left = self._table.detach(request.domain, request.endpoint)
        self.tell(EndpointDetached, request.endpoint, left)
        if self.in_flight.by_endpoint:
            self.wait = self.in_flight.wait_of_move(request)
        return b""

    def _map(self, request: wire.Map) -> bytes:
        # D32: unknown flag bit
        if request.flags & ~self._map_flags:
            raise RequestError(wire.S_INVAL, f"flags {request.flags:#x} are not all known")
        self._table.map(request.domain, request.virt_start, request.virt_end + 1, request.phys_start, request.flags)
        return b""

    def _unmap(self, request: wire.Unmap) -> bytes:
        # D39: reserved not zero
        if request.reserved != bytes(4):
            raise RequestError(wire.S_INVAL, "reserved bytes are not zero")
        self._table.unmap(request.domain, request.virt_start, request.virt_end + 1)
        if self.in_flight.by_endpoint:
            self.wait = self.in_flight.wait_of_unmap(request)
        return b""

    def _probe(self, request: wire.Probe) -> bytes:
        # D45: reserved is ignored
        self._table.endpoint(request.endpoint)
        self.reached(request.endpoint, "probed")
        return self._probed(request.endpoint)

    def _probed(self, endpoint: int) -> bytes:
        properties = self._properties[endpoint]
        return properties.with_pasids if self._has_pasids else properties.plain

    def answered_late(self, wait: Wait, held_ns: int) -> None:
        """The answer of `wait` is in the ring, after it was held for so long."""
        self.tell(ReplyHeld, wait.type_name, request_fields(wait.request), held_ns, len(wait.flights), wait.rule)

    def _answer_unfit(self, kind: Kind | None, readable: bytes | memoryview, writable_nbytes: int) -> bytes:
        status, reply, problem = answer_unfit(kind, readable, writable_nbytes, self.settings.mode)
        self._refused[status] = self._refused.get(status, 0) + 1
        if self.emit is not None:
            name = kind.name if kind is not None else f"{readable[0]:#04x}" if len(readable) else "EMPTY"
            sizes = (len(readable), writable_nbytes)
            self.emit(RequestHandled(self.settings.name, name, status, None, problem, sizes))
        return reply

    # endpoints come and go

    def add_endpoint(self, endpoint: EndpointSettings) -> None:
        """From now on requests may name it. ConfigError, as from the constructor, and then nothing has changed."""
        properties = endpoint_properties(self.settings, endpoint)
        self._table.add(endpoint)
        self._properties[endpoint.id] = properties

    def remove_endpoint(self, endpoint: int) -> None:
        """Detach it and forget it: requests that name it get NOENT. Call `sweep` until nothing is left to free."""
        leaving = self._table.endpoints[endpoint]
        if self._pasids is not None:
            self._pasids.endpoint_leaves(leaving)
        domain = leaving.domain
        if domain is not None:
            left = self._table.detach(domain.id, endpoint)
            self.tell(EndpointDetached, endpoint, left)  # while it still has its name
        self._table.remove(endpoint)
        self.in_flight.cancel(endpoint)
        del self._properties[endpoint]

    def describe_endpoint(self, endpoint: int) -> dict[str, Any]:
        """One endpoint for a query: domain (None for none), mappings of it, reserved regions, bytes PROBE answers."""
        return {**self._table.endpoints[endpoint].describe(), "probe": self._probed(endpoint)}

    # translation and faults

    def translate(self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None) -> list[Piece]:
        """The (gpa, nbytes) pieces of one access in order (READ=1, WRITE=2); TranslationFault unless all is allowed.

        No side effects. The number of pieces is bounded by `nbytes` / granule: callers slice long accesses.
        """
        if tag is not None:
            return translate_pair(self._table, self.settings, endpoint, (iova, nbytes), access, tag)[0]
        return self._table.translate(endpoint, iova, nbytes, access)

    def begin(self, endpoint: int, iova: int, nbytes: int, access: int, tag: Tag | None = None) -> Flight:
        """As `translate`, of an access whose bytes move later: it is in flight until `in_flight.end`."""
        if tag is None:
            pieces = self._table.translate(endpoint, iova, nbytes, access)
            domain, pasid = self._table.endpoints[endpoint].domain_id, 0
        else:
            pieces, domain = translate_pair(self._table, self.settings, endpoint, (iova, nbytes), access, tag)
            pasid = tag.pasid
        flight = Flight(endpoint, domain, iova, iova + nbytes, access, pieces, False, pasid)
        self.in_flight.begin(flight)
        return flight

    def retranslate(self, flight: Flight, tag: Tag | None) -> list[Piece]:
        """As `translate`, for an access that is in flight already and whose `tag` was this."""
        return self.translate(flight.endpoint, flight.start, flight.stop - flight.start, flight.access, tag)

    def fault(self, endpoint: int, error: TranslationFault, access: int, tag: Tag | None = None) -> None:
        """Report a refused access: count, emit, queue the record for the guest."""
        self.faults.report(endpoint, error, access, tag)

    def told_fault(self, record: bytes, nbytes: int) -> bytes:
        """One of `pending_faults` in the driver's format, for a buffer of `nbytes`; longer where it does not fit."""
        return fitted(record, nbytes, has_pasids=self._has_pasids)

    # features, config, resets

    def set_features(self, accepted: int) -> None:
        """The driver accepted these bits; those we do not offer are none of our business."""
        self._accepted = accepted & self.offered_features
        if self._pasids is not None:
            self._accepted = self._pasids.accept(self._accepted)
        self._has_pasids = bool(self._accepted & pasid_wire.F_PASID)
        # P1, P12: of the extension's types a driver knows those it accepted
        unknown = pasid_wire.FEATURES & ~self._accepted
        self.served = {number: kind for number, kind in self.kinds.items() if not kind.feature & unknown}
        self._map_flags = MAP_PERMISSIONS | (wire.MAP_F_MMIO if self._accepted & wire.F_MMIO else 0)
        self._attach_flags = wire.ATTACH_F_BYPASS if self._accepted & wire.F_BYPASS_CONFIG else 0

    def takes_features(self, accepted: int) -> bool:
        """Whether a driver may accept these together (P2, P3); those we do not offer are none of our business."""
        wanted = accepted & self.offered_features
        return self._pasids is None or self._pasids.usable(wanted) == wanted

    def config_bytes(self) -> bytes:
        """The whole config space, `wire.CONFIG_NBYTES`; fields of features not offered are zero."""
        extension = bytes(pasid_wire.CONFIG_NBYTES) if self._pasids is None else self._pasids.config_fields()
        return config_bytes(self.settings, self._table.bypass, extension)

    def write_bypass(self, value: int) -> None:
        """The driver wrote the `bypass` byte. The caller checks that BYPASS_CONFIG was negotiated."""
        # D8: never show a value other than 0 and 1
        if self.settings.bypass_offered and value in (0, 1):
            self.set_bypass(bool(value))

    def set_bypass(self, bypass: bool) -> bool:
        """Whether unattached endpoints bypass from now on; whether that is a change. True only if it is offered."""
        changed, self._table.bypass = self._table.bypass != bypass, bypass
        if not bypass:
            self.in_flight.cancel_bypassing()
        if changed:
            self.tell(BypassChanged, bypass)
        return changed

    def device_reset(self) -> None:
        """D9: no endpoint is attached afterwards; D6: `bypass` survives. Waiting faults are dropped."""
        self._reset("device")

    def system_reset(self) -> None:
        """A device reset that also restores `bypass` to its boot value (D7)."""
        self.set_bypass(self._boot_bypass)
        self._reset("system")

    def host_reset(self) -> None:
        """As `system_reset`, for people: the driver is none the wiser, so the features it accepted stay accepted."""
        accepted = self._accepted
        self.set_bypass(self._boot_bypass)
        self._reset("host")
        self.set_features(accepted)

    def _reset(self, kind: ResetKind) -> None:
        self.resets += 1
        self.in_flight.cancel_all()
        if self._pasids is not None:
            self._pasids.reset()
        self._table.clear()
        self.faults.replace(())
        self.set_features(0)
        self.tell(UnitReset, kind)

    @property
    def _boot_bypass(self) -> bool:
        # D5: bypass may start as 1 where BYPASS_CONFIG is offered
        return self.settings.bypass_offered and self.settings.boot_bypass

    def sweep(self) -> bool:
        """Free a part of the mappings that were removed; True while there are more. Call it between requests."""
        return self._table.sweep()

    # state for people and restarts

    def describe(self) -> dict[str, Any]:
        """What a query shows: plain data, no mappings. Bounded by the number of endpoints, as domains are."""
        return {
            "unit": self.settings.name,
            "mode": self.settings.mode,
            "features": {"offered": self.offered_features, "accepted": self._accepted},
            **describe_table(self._table),
            "pending_faults": len(self.faults.pending),
            "counters": {
                "requests": {kind.name: kind.handled for kind in self.kinds.values()},
                "refused": {status_name(status): count for status, count in self._refused.items()},
                "faults": dict(self.faults.counts),
                "faults_dropped": self.faults.dropped,
            },
            **({} if self._pasids is None else {"pasids": self._pasids.describe()}),
        }

    def snapshot(self) -> dict[str, Any]:
        """All state a driver can tell apart, as versioned plain data. What is in flight is no state: see `restore`."""
        held = self._pasids.held() if self._pasids is not None else []
        return dump_unit(self._table, self._accepted, self.faults.pending, held)

    def restore(self, saved: dict[str, Any]) -> None:
        """Become what `saved` says; SnapshotError, with nothing changed, if it does not fit. No events.

        Nothing that was in flight lands any more.
        """
        pasids = self._pasids.set if self._pasids is not None else None
        state = load_unit(saved, self.settings, self._table.endpoint_settings(), pasids)
        self.in_flight.cancel_all()
        if self._pasids is not None:
            self._pasids.restore(state.table, state.pasids)
        self._table = state.table
        self.faults.replace(state.pending_faults)
        self.set_features(state.features)


# type: its record, the feature that must be offered, what serves it
REQUESTS: dict[int, tuple[type[Record], int, Callable[[Engine, Any], bytes | None]]] = {
    wire.T_ATTACH: (wire.Attach, wire.F_MAP_UNMAP, Engine._attach),
    wire.T_DETACH: (wire.Detach, wire.F_MAP_UNMAP, Engine._detach),
    wire.T_MAP: (wire.Map, wire.F_MAP_UNMAP, Engine._map),
    wire.T_UNMAP: (wire.Unmap, wire.F_MAP_UNMAP, Engine._unmap),
    wire.T_PROBE: (wire.Probe, wire.F_PROBE, Engine._probe),
    **PASID_REQUESTS,
}
