"""Events to trace records: plain data in the documented schema (docs/trace.md). One function per kind of event.

A record is decoded when somebody looks, never on the request path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from vdev import events
from vdev.control.pasid_events import PasidLease, PasidsReclaimed, ranges_text
from vdev.control.run_state import RunStateChanged
from vdev.iommu.events import (
    BypassChanged,
    EndpointAdded,
    EndpointRemoved,
    EndpointStage,
    FaultRaised,
    FaultsDropped,
    PasidAllocated,
    PasidAttached,
    PasidDetached,
    PasidEnded,
    PasidFreed,
    PasidQuotaChanged,
    PasidQuotaExceeded,
    PasidRefused,
    ReplyHeld,
    RequestHandled,
    UnitReset,
)
from vdev.trace.fault_records import FAULT_DECODERS
from vdev.wire.viommu import ATTACH_F_BYPASS, MAP_F_MMIO, MAP_F_READ, MAP_F_WRITE, STATUS_NAMES
from vdev.wire.viommu_pasid import ATTACH_PASID_F_BYPASS, ATTACH_PASID_F_MIRROR_RID

FORMAT_VERSION = 1
ADDRESSES = frozenset({"virt_start", "virt_end", "phys_start"})
PASIDS = frozenset({"pasid", "first", "last"})
ACCESS_WORDS = {1: "read", 2: "write", 3: "read-write"}

Record = dict[str, Any]


@dataclass(slots=True)  # frozen ones take three times as long to make
class Entry:
    """One event as it came: what the request path pays for. Times in nanoseconds, `t_ns` since the trace's zero."""

    seq: int
    t_ns: int
    event: object
    duration_ns: int | None = None  # of a request
    endpoints: tuple[int, ...] = ()  # in the domain a request names, as it was then


@dataclass(frozen=True, slots=True)
class Note:
    """A line from outside, such as a test's, among the records."""

    text: str


@dataclass(frozen=True, slots=True)
class Lost:
    """So many records did not reach this reader or file."""

    count: int


@dataclass(frozen=True, slots=True)
class Recording:
    """Recording began or ended here."""

    on: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class UnitName:
    """A unit, and how many hex digits its addresses are shown with."""

    name: str
    bdf: int
    digits: int


@dataclass(frozen=True, slots=True)
class EndpointName:
    """An endpoint and the unit in front of it."""

    name: str
    bdf: int
    unit: str


def bdf_text(bdf: int) -> str:
    """0x100 as 01:00.0; a number that is no BDF in hex."""
    return f"{bdf >> 8:02x}:{bdf >> 3 & 0x1F:02x}.{bdf & 7}" if 0 <= bdf < 1 << 16 else f"{bdf:#x}"


class Decoder:
    """Knows the machine's names."""

    def __init__(self, vm: str, units: Sequence[UnitName], endpoints: Sequence[EndpointName]) -> None:
        self._vm = vm
        self._units = {unit.name: unit for unit in units}
        self._by_name = {endpoint.name: endpoint for endpoint in endpoints}
        self._by_bdf = {endpoint.bdf: endpoint for endpoint in endpoints}

    def header(self, version: str, started: str, pid: int) -> Record:
        """The first line of a file and of a stream. `started` is the wall clock at t 0, ISO 8601, UTC."""
        units = [{"name": unit.name, "bdf": bdf_text(unit.bdf)} for unit in self._units.values()]
        return {
            "vdev_trace": FORMAT_VERSION,
            "kind": "header",
            "vdev": version,
            "vm": self._vm,
            "pid": pid,
            "started": started,
            "units": units,
            "endpoints": self.endpoints(),
        }

    def endpoints(self) -> list[Record]:
        """The names of endpoints in a header."""
        return [
            {"name": name, "bdf": bdf_text(endpoint.bdf), "unit": endpoint.unit}
            for name, endpoint in self._by_name.items()
        ]

    def learn(self, endpoint: EndpointName) -> None:
        """A new endpoint. The name of one that left is kept until its address or name is given to another."""
        for known in (self._by_bdf.get(endpoint.bdf), self._by_name.get(endpoint.name)):
            if known is not None:
                self._by_bdf.pop(known.bdf, None)
                self._by_name.pop(known.name, None)
        self._by_bdf[endpoint.bdf] = self._by_name[endpoint.name] = endpoint

    def record(self, entry: Entry) -> Record:
        """The record of `entry`; keys that do not apply are left out."""
        decode = _DECODERS.get(type(entry.event), _any)
        record: Record = {"seq": entry.seq, "t": round(entry.t_ns / 1e9, 6), **decode(self, entry.event)}
        if entry.endpoints:
            record["endpoints"] = [bdf_text(bdf) for bdf in entry.endpoints]
        if entry.duration_ns is not None:
            record["duration_us"] = round(entry.duration_ns / 1e3, 1)
        return record

    def address(self, unit: str | None, value: int) -> str:
        """An address in hex, as wide as the unit's input range asks for."""
        known = self._units.get(unit or "")
        return f"0x{value:0{known.digits if known else 16}x}"

    def endpoint(self, bdf: int) -> Record:
        """The keys that name an endpoint."""
        known = self._by_bdf.get(bdf)
        return {"endpoint": bdf_text(bdf), **({"function": known.name} if known else {})}

    def function(self, name: str) -> Record:
        """The keys that name a function: a unit's own, or an endpoint's."""
        endpoint = self._by_name.get(name)
        if endpoint is not None:
            return {"unit": endpoint.unit, "function": name, "endpoint": bdf_text(endpoint.bdf)}
        return {"unit": name, "function": name} if name in self._units else {"function": name}

    def unit_of(self, bdf: int) -> str | None:
        """The unit in front of an endpoint."""
        known = self._by_bdf.get(bdf)
        return known.unit if known else None


def _request_fields(names: Decoder, event: RequestHandled | ReplyHeld) -> Record:
    shown: Record = {}
    for name, value in event.fields.items():
        if name in ADDRESSES:
            shown[name] = names.address(event.unit, value)
        elif name in PASIDS:
            shown[name] = f"{value:#x}"
        elif name != "endpoint":
            shown[name] = value
    if "flags" in shown:
        shown["flags"] = _request_flags(event.type_name, shown["flags"])
    return shown


def _request(names: Decoder, event: RequestHandled) -> Record:
    shown = _request_fields(names, event)
    if event.problem:
        shown["problem"] = event.problem
    status = "UNWRITTEN" if event.status is None else STATUS_NAMES[event.status]
    endpoint = names.endpoint(event.endpoint) if event.endpoint is not None else {}
    return {
        "kind": "request", "type": event.type_name, "unit": event.unit, **endpoint, "status": status, "fields": shown,
    }  # fmt: skip


def _held(names: Decoder, event: ReplyHeld) -> Record:
    endpoint = names.endpoint(event.fields["endpoint"]) if "endpoint" in event.fields else {}
    late = {"held_us": round(event.held_ns / 1e3, 1), "accesses": event.naccesses}
    shown = {**_request_fields(names, event), **late, **({"rule": event.rule} if event.rule else {})}
    return {"kind": "held", "type": event.type_name, "unit": event.unit, **endpoint, "fields": shown}


def _request_flags(type_name: str, flags: int) -> str:
    known: Mapping[int, str] = {ATTACH_F_BYPASS: "BYPASS"}
    if type_name == "MAP":
        known = {MAP_F_READ: "READ", MAP_F_WRITE: "WRITE", MAP_F_MMIO: "MMIO"}
    elif type_name == "ATTACH_PASID":
        known = {ATTACH_PASID_F_BYPASS: "BYPASS", ATTACH_PASID_F_MIRROR_RID: "MIRROR_RID"}
    words = [word for bit, word in known.items() if flags & bit]
    rest = flags & ~sum(known)
    return "|".join([*words, *([f"{rest:#x}"] if rest else [])])


def _fault(names: Decoder, event: FaultRaised) -> Record:
    access = ACCESS_WORDS.get(event.access, f"access {event.access}")
    return {
        "kind": "fault", "type": "FAULT", "unit": event.unit, **names.endpoint(event.endpoint), "status": event.reason,
        "fields": {"access": access, "iova": names.address(event.unit, event.iova), **_pasid(event.pasid)},
    }  # fmt: skip


def _pasid(pasid: int) -> Record:
    return {"pasid": f"{pasid:#x}"} if pasid else {}


def _dropped(names: Decoder, event: FaultsDropped) -> Record:
    return {"kind": "fault", "type": "DROPPED", "unit": event.unit, "fields": {"total": event.total}}


def _dma(names: Decoder, event: events.DmaDone) -> Record:
    unit = names.unit_of(event.endpoint)
    return {
        "kind": "dma", "type": "DMA", "unit": unit, **names.endpoint(event.endpoint), "status": event.reason or "OK",
        "fields": {
            "access": "write" if event.write else "read", "iova": names.address(unit, event.iova),
            "nbytes": event.nbytes, "pieces": event.npieces, **_pasid(event.pasid),
        },
    }  # fmt: skip


def _register(names: Decoder, event: events.RegisterWritten) -> Record:
    shown = {"register": event.register, "value": f"{event.value:#x}", "words": event.words}
    return {"kind": "register", "type": "REG", **names.function(event.function), "fields": shown}


def _function_reset(names: Decoder, event: events.FunctionReset) -> Record:
    return {"kind": "reset", "type": "RESET", **names.function(event.function), "fields": {"reset": event.kind}}


def _unit_reset(names: Decoder, event: UnitReset) -> Record:
    return {"kind": "reset", "type": "RESET", "unit": event.unit, "fields": {"reset": "unit", "cause": event.kind}}


def _bypass(names: Decoder, event: BypassChanged) -> Record:
    return {"kind": "bypass", "type": "BYPASS", "unit": event.unit, "fields": {"bypass": event.bypass}}


def _interrupt(names: Decoder, event: events.InterruptRaised) -> Record:
    shown: Record = {"queue": event.queue} if event.vector is None else {"vector": event.vector}
    return {"kind": "irq", "type": "IRQ", **names.function(event.function), "fields": shown}


def _rings(names: Decoder, event: events.RingsChanged) -> Record:
    shown = {"rings": event.state, "why": event.why}
    return {"kind": "rings", "type": "RINGS", **names.function(event.function), "fields": shown}


def _device_error(names: Decoder, event: events.DeviceError) -> Record:
    keys = names.function(event.function)
    shown = {"code": event.code, "iova": names.address(keys.get("unit"), event.iova)}
    return {"kind": "error", "type": "ERROR", **keys, "fields": shown}


def _connection(names: Decoder, event: events.ConnectionChanged) -> Record:
    word = "CONNECT" if event.connected else "HANGUP"
    return {"kind": "connection", "type": word, **names.function(event.function), "fields": {"pid": event.pid}}


def _run_state(names: Decoder, event: RunStateChanged) -> Record:
    return {"kind": "run-state", "type": "STOPPED" if event.frozen else "RUNNING", "fields": {"by": event.by}}


def _note(names: Decoder, event: Note) -> Record:
    return {"kind": "note", "type": "NOTE", "fields": {"text": event.text}}


def _lost(names: Decoder, event: Lost) -> Record:
    return {"kind": "lost", "type": "LOST", "fields": {"count": event.count}}


def _recording(names: Decoder, event: Recording) -> Record:
    return {"kind": "trace", "type": "START" if event.on else "STOP", "fields": {"detail": event.detail}}


def _endpoint(names: Decoder, event: EndpointAdded | EndpointRemoved | EndpointStage) -> Record:
    keys = {"unit": event.unit, "endpoint": bdf_text(event.id), "function": event.endpoint}
    if isinstance(event, EndpointStage):
        return {"kind": "endpoint", "type": "STAGE", **keys, "fields": {"stage": event.stage}}
    return {
        "kind": "endpoint",
        "type": "ADDED" if isinstance(event, EndpointAdded) else "REMOVED",
        **keys,
        "fields": {},
    }


def _pasid_event(what: str, names: Decoder, event: Any) -> Record:
    """A PASID of the VM, or several: `what` happened. "" for a unit is the host itself."""
    unit, shown = getattr(event, "unit", ""), {"what": what}
    for f in fields(event):
        value = getattr(event, f.name)
        if f.name in ("pasids", "pending"):
            shown[f.name] = ranges_text(value)
        elif f.name == "pasid":
            shown[f.name] = f"{value:#x}"
        elif f.name not in ("unit", "endpoint") and value not in (None, ""):
            shown[f.name] = value
    endpoint = names.endpoint(event.endpoint) if hasattr(event, "endpoint") else {}
    return {"kind": "pasid", "type": "PASID", **({"unit": unit} if unit else {}), **endpoint, "fields": shown}


def _any(names: Decoder, event: object) -> Record:
    """An event that nobody has given words to yet: what it holds, by name."""
    held = {f.name: getattr(event, f.name) for f in fields(event)} if is_dataclass(event) else {}
    endpoint, unit = held.pop("endpoint", None), held.pop("unit", None)
    keys = {"unit": unit} if isinstance(unit, str) else {}
    if isinstance(endpoint, int):
        keys |= names.endpoint(endpoint)
    plain = {name: value if isinstance(value, int | str | bool) else str(value) for name, value in held.items()}
    return {"kind": "event", "type": type(event).__name__, **keys, "fields": plain}


_DECODERS: dict[type, Callable[[Decoder, Any], Record]] = {
    RequestHandled: _request,
    ReplyHeld: _held,
    FaultRaised: _fault,
    FaultsDropped: _dropped,
    UnitReset: _unit_reset,
    BypassChanged: _bypass,
    EndpointAdded: _endpoint,
    EndpointRemoved: _endpoint,
    EndpointStage: _endpoint,
    events.DmaDone: _dma,
    events.RegisterWritten: _register,
    events.FunctionReset: _function_reset,
    events.InterruptRaised: _interrupt,
    events.DeviceError: _device_error,
    events.ConnectionChanged: _connection,
    events.RingsChanged: _rings,
    PasidAllocated: partial(_pasid_event, "allocated"),
    PasidRefused: partial(_pasid_event, "refused"),
    PasidFreed: partial(_pasid_event, "freed"),
    PasidEnded: partial(_pasid_event, "ended"),
    PasidAttached: partial(_pasid_event, "attached"),
    PasidDetached: partial(_pasid_event, "detached"),
    PasidQuotaChanged: partial(_pasid_event, "quota"),
    PasidQuotaExceeded: partial(_pasid_event, "quota-exceeded"),
    PasidLease: partial(_pasid_event, "lease"),
    PasidsReclaimed: partial(_pasid_event, "reclaimed"),
    **FAULT_DECODERS,
    RunStateChanged: _run_state,
    Note: _note,
    Lost: _lost,
    Recording: _recording,
}
