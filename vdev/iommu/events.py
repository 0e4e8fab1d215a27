"""What a unit tells the world: one typed event per thing that happened, built only when somebody listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Fields = dict[str, int | str]


@dataclass(slots=True)
class RequestHandled:
    """One request was answered. `status` is the tail's, or None when the chain went back unwritten (used length 0)."""

    unit: str
    type_name: str
    endpoint: int | None
    domain: int | None
    status: int | None
    fields: Fields = field(default_factory=dict)
    problem: str = ""  # why it was refused, for people


@dataclass(slots=True)
class FaultRaised:
    """An access was refused. `reason` is the error's stable word, `access` READ=1 | WRITE=2."""

    unit: str
    endpoint: int
    reason: str
    access: int
    iova: int


@dataclass(slots=True)
class FaultsDropped:
    """The queue of fault records is full; sent once per overflow. `total` counts all drops so far."""

    unit: str
    total: int


@dataclass(slots=True)
class EndpointAttached:
    """An endpoint joined a domain (a move sends EndpointDetached first)."""

    unit: str
    endpoint: int
    domain: int
    bypass: bool


@dataclass(slots=True)
class EndpointDetached:
    """An endpoint left a domain. Not sent on resets: UnitReset stands for all of them."""

    unit: str
    endpoint: int
    domain: int


@dataclass(slots=True)
class UnitReset:
    """All endpoints are unattached again; `kind` system also restored the boot bypass."""

    unit: str
    kind: Literal["device", "system"]


Event = RequestHandled | FaultRaised | FaultsDropped | EndpointAttached | EndpointDetached | UnitReset
