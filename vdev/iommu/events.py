"""What a unit tells the world: one typed event per thing that happened, built only when somebody listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vdev.wire.record import Record

Fields = dict[str, int]
ResetKind = Literal["device", "system", "host"]


def request_fields(request: Record) -> Fields:
    """What a request says, by name; its type and reserved bytes are left out."""
    names = [name for name in request.__slots__ if name != "type" and "reserved" not in name]
    return {name: getattr(request, name) for name in names}


@dataclass(slots=True)
class RequestHandled:
    """One request was answered. `status` is the tail's, or None when the chain went back unwritten (used length 0).

    There is one for every request, so it holds the request as it was parsed and is taken apart only when looked at.
    """

    unit: str
    type_name: str
    status: int | None
    request: Record | None = None  # None when it could not be parsed
    problem: str = ""  # why it was refused, for people
    nbytes: tuple[int, int] | None = None  # readable and writable bytes of one that could not be parsed

    @property
    def endpoint(self) -> int | None:
        """The endpoint it names, if its type does."""
        return getattr(self.request, "endpoint", None)

    @property
    def domain(self) -> int | None:
        """The domain it names, if its type does."""
        return getattr(self.request, "domain", None)

    @property
    def fields(self) -> Fields:
        """What it said, reserved bytes left out; its sizes when it could not be parsed."""
        if self.request is None:
            return dict(zip(("readable_nbytes", "writable_nbytes"), self.nbytes or (), strict=False))
        return request_fields(self.request)


@dataclass(slots=True)
class ReplyHeld:
    """The answer to a request that was handled before is given now: it waited for accesses in flight."""

    unit: str
    type_name: str
    fields: Fields  # what the request said
    held_ns: int
    naccesses: int
    rule: str = ""  # it waited because of this rule of a fault plan


@dataclass(slots=True)
class FaultRaised:
    """An access was refused. `reason` is the error's stable word, `access` READ=1 | WRITE=2, `pasid` 0 for none."""

    unit: str
    endpoint: int
    reason: str
    access: int
    iova: int
    pasid: int = 0


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
    """All endpoints are unattached again; `kind` system and host (by a command) also restored the boot bypass."""

    unit: str
    kind: ResetKind


@dataclass(slots=True)
class BypassChanged:
    """Whether unattached endpoints bypass has changed: by the driver, a command or a reset."""

    unit: str
    bypass: bool


@dataclass(slots=True)
class EndpointAdded:
    """There is a new endpoint. QEMU does not have it yet."""

    unit: str
    id: int
    endpoint: str


@dataclass(slots=True)
class EndpointRemoved:
    """An endpoint is gone, and what it was attached to is left."""

    unit: str
    id: int
    endpoint: str


@dataclass(slots=True)
class EndpointStage:
    """The guest has got further with an endpoint than ever before since the endpoint came."""

    unit: str
    id: int
    endpoint: str
    stage: str


@dataclass(slots=True)
class PasidAllocated:
    """The VM has one more PASID. `unit` is the one it was allocated through, "" for the host itself."""

    unit: str
    pasid: int


@dataclass(slots=True)
class PasidRefused:
    """The VM got no PASID. `why` is quota, supply, range or unreachable; the guest is not told which of the first."""

    unit: str
    why: str


@dataclass(slots=True)
class PasidFreed:
    """PASIDs allocated through `unit` were freed; `pending` are those of them still in use."""

    unit: str
    pasids: tuple[int, ...]
    pending: tuple[int, ...]


@dataclass(slots=True)
class PasidEnded:
    """Nothing uses these any more: the host may grant them again."""

    pasids: tuple[int, ...]


@dataclass(slots=True)
class PasidAttached:
    """A pair joined a domain, or follows its RID (None); a move sends PasidDetached first."""

    unit: str
    endpoint: int
    pasid: int
    domain: int | None


@dataclass(slots=True)
class PasidDetached:
    """A pair left a domain, or follows its RID no longer (None). Not sent on resets, as EndpointDetached."""

    unit: str
    endpoint: int
    pasid: int
    domain: int | None


@dataclass(slots=True)
class PasidQuotaChanged:
    """The VM may have more or fewer PASIDs from now on; it keeps those it has."""

    before: int
    after: int


@dataclass(slots=True)
class PasidQuotaExceeded:
    """The quota is why a PASID was refused. Sent again only after one was granted, or the quota changed."""

    quota: int
    used: int


PasidEvent = (
    PasidAllocated
    | PasidRefused
    | PasidFreed
    | PasidEnded
    | PasidAttached
    | PasidDetached
    | PasidQuotaChanged
    | PasidQuotaExceeded
)

Event = (
    RequestHandled
    | ReplyHeld
    | FaultRaised
    | FaultsDropped
    | EndpointAttached
    | EndpointDetached
    | UnitReset
    | BypassChanged
    | EndpointAdded
    | EndpointRemoved
    | EndpointStage
    | PasidEvent
)
