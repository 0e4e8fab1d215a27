"""The typed events as the schema's: `EVENTS` says what each is called, what it holds and how often it is told."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from vdev.control.event_log import describe
from vdev.control.pasid_events import PasidLease, PasidsReclaimed, ranges_of
from vdev.faults.events import FaultInjected, FaultWantsQemu
from vdev.iommu.events import (
    BypassChanged,
    EndpointAdded,
    EndpointAttached,
    EndpointDetached,
    EndpointRemoved,
    EndpointStage,
    FaultRaised,
    FaultsDropped,
    PasidQuotaChanged,
    PasidQuotaExceeded,
    RequestHandled,
    UnitReset,
)
from vdev.wire.viommu import FAULT_F_WRITE, S_OK, STATUS_NAMES

EVENTS_LOST = "EVENTS_LOST"
MAX_RANGES = 64  # of PASIDs in one event

Data = dict[str, Any]
Names = Callable[[str, int], str | None]  # unit and endpoint ID -> the endpoint's name, if it is there


@dataclass(frozen=True, slots=True)
class Told:
    """How one type of event is told.

    `key`: at most `event_limits.PER_SECOND` a second of those with the same one; None: as many as there are.
    `counted`: the data say how many were not told. Where they do not, the newest says all there is to know.
    """

    name: str
    data: Callable[[Any, Names], Data]
    key: Callable[[Any], Hashable] | None = None
    counted: bool = True


def is_told(event: object) -> bool:
    """Whether the schema has an event for it."""
    return type(event) in EVENTS and not (type(event) is RequestHandled and event.status == S_OK)


def _endpoint(names: Names, unit: str, number: int) -> Data:
    name = names(unit, number)
    return {"unit": unit, "id": number, **({"endpoint": name} if name is not None else {})}


def _fault(event: FaultRaised, names: Names) -> Data:
    access = "write" if event.access & FAULT_F_WRITE else "read"
    return {
        **_endpoint(names, event.unit, event.endpoint),
        "reason": event.reason,
        "access": access,
        "iova": event.iova & ((1 << 64) - 1),
        **({"pasid": event.pasid} if event.pasid else {}),
    }


def _refused(event: RequestHandled, names: Names) -> Data:
    optional = {
        "status": None if event.status is None else STATUS_NAMES[event.status],
        "id": event.endpoint,
        "domain": event.domain,
    }
    named = {name: value for name, value in optional.items() if value is not None}
    return {"unit": event.unit, "type": event.type_name, **named, "problem": event.problem}


def _attached(event: EndpointAttached, names: Names) -> Data:
    return {**_endpoint(names, event.unit, event.endpoint), "domain": event.domain, "bypass": event.bypass}


def _detached(event: EndpointDetached, names: Names) -> Data:
    return {**_endpoint(names, event.unit, event.endpoint), "domain": event.domain}


def _came_or_went(event: EndpointAdded | EndpointRemoved, names: Names) -> Data:
    return {"unit": event.unit, "id": event.id, "endpoint": event.endpoint}


def _lease(event: PasidLease, names: Names) -> Data:
    return {"state": event.state, **({"problem": event.problem} if event.problem else {})}


def _reclaimed(event: PasidsReclaimed, names: Names) -> Data:
    pieces = ranges_of(event.pasids)[:MAX_RANGES]
    ranges = [{"first": first, "last": last} for first, last in pieces]
    return {"count": len(event.pasids), "pasids": ranges, "reason": event.reason}


def _injected(event: FaultInjected, names: Names) -> Data:
    met = {name.replace("_", "-"): value for name, value in event.fields.items()}
    if isinstance(number := met.pop("endpoint", None), int):
        met |= _endpoint(names, str(met.get("unit", "")), number)
    note = {"note": event.note} if event.note else {}
    text = describe(event)
    return {"rule": event.rule, "n": event.n, "at": event.at, "do": event.do, "text": text, **met, **note}


def _wants_qemu(event: FaultWantsQemu, names: Names) -> Data:
    return {"rule": event.rule, "n": event.n, "command-line": event.command_line}


# A guest chooses what the first eight hold, and how often; keys are of few values each (see event_limits.MAX_KEYS).
EVENTS: dict[type, Told] = {
    FaultRaised: Told("FAULT", _fault, lambda event: (event.unit, event.reason, event.endpoint)),
    FaultsDropped: Told(
        "FAULTS_DROPPED", lambda event, names: {"unit": event.unit, "total": event.total},
        lambda event: event.unit, counted=False,
    ),
    RequestHandled: Told("REQUEST_REFUSED", _refused, lambda event: (event.unit, event.type_name, event.status)),
    EndpointAttached: Told("ENDPOINT_ATTACHED", _attached, lambda event: (event.unit, event.endpoint)),
    EndpointDetached: Told("ENDPOINT_DETACHED", _detached, lambda event: (event.unit, event.endpoint)),
    UnitReset: Told(
        "UNIT_RESET", lambda event, names: {"unit": event.unit, "kind": event.kind},
        lambda event: (event.unit, event.kind),
    ),
    BypassChanged: Told(
        "BYPASS_CHANGED", lambda event, names: {"unit": event.unit, "bypass": event.bypass},
        lambda event: event.unit, counted=False,
    ),
    PasidQuotaExceeded: Told(
        "PASID_QUOTA_EXCEEDED", lambda event, names: {"quota": event.quota, "used": event.used}, lambda event: None,
    ),
    PasidQuotaChanged: Told(
        "PASID_QUOTA_CHANGED", lambda event, names: {"before": event.before, "after": event.after},
        lambda event: None, counted=False,
    ),
    PasidLease: Told("PASID_LEASE", _lease, lambda event: None, counted=False),
    PasidsReclaimed: Told("PASID_RECLAIMED", _reclaimed),
    FaultInjected: Told("FAULT_INJECTED", _injected, lambda event: event.rule),
    FaultWantsQemu: Told("FAULT_WANTS_QEMU", _wants_qemu),
    EndpointAdded: Told("ENDPOINT_ADDED", _came_or_went),
    EndpointRemoved: Told("ENDPOINT_REMOVED", _came_or_went),
    EndpointStage: Told(
        "ENDPOINT_STAGE", lambda event, names: {**_came_or_went(event, names), "stage": event.stage},
    ),
}  # fmt: skip
