"""All that can happen to the host's PASIDs, as data: decided by the policy, kept by the ledger, told to subscribers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Of a set. held: a backend has it. quarantined: its backend is gone, its QEMU is not known to be: all is kept for the
# next backend of that QEMU. fenced: an administrator has taken it away; its backend may only drain it.
SetState = Literal["held", "quarantined", "fenced"]

# Of a PASID. allocated: the guest has it. attached: a pair of it is attached. free-pending: freed and still in use.
# quarantined: reclaimed by order, its backend has not yet said that nothing uses it. Free ones have no state.
PasidState = Literal["allocated", "attached", "free-pending", "quarantined"]

# Every state is listed with those it can go to. Where a PASID can end (be free again) see `policy.Policy.release`.
NEXT: dict[PasidState, tuple[PasidState, ...]] = {
    "allocated": ("attached", "free-pending", "quarantined"),
    "attached": ("allocated", "free-pending", "quarantined"),
    "free-pending": ("quarantined",),
    "quarantined": (),
}


@dataclass(frozen=True, slots=True)
class Owner:
    """The process a set lives as long as: a QEMU. A number alone would be taken for its next bearer."""

    pid: int
    start_time: int  # clock ticks since boot, as /proc tells
    boot_id: str  # of the host


@dataclass(frozen=True, slots=True)
class SetOpened:
    """A guest has a set, empty."""

    set_id: int
    name: str  # of the VM; need not be unique
    owner: Owner
    quota: int


@dataclass(frozen=True, slots=True)
class SetChanged:
    """A set is in another state."""

    set_id: int
    state: SetState


@dataclass(frozen=True, slots=True)
class SetEnded:
    """A set is no more, and everything in it is free."""

    set_id: int
    why: str


@dataclass(frozen=True, slots=True)
class QuotaChanged:
    """A set has another quota."""

    set_id: int
    quota: int


@dataclass(frozen=True, slots=True)
class CeilingChanged:
    """All sets together may have so many."""

    ceiling: int


@dataclass(frozen=True, slots=True)
class Granted:
    """A guest has a PASID more: `guest` is the number it knows, `host` the one that is unique on this host."""

    set_id: int
    guest: int
    host: int


@dataclass(frozen=True, slots=True)
class PasidChanged:
    """A PASID is in another state."""

    set_id: int
    guest: int
    state: PasidState


@dataclass(frozen=True, slots=True)
class Released:
    """A PASID is free."""

    set_id: int
    guest: int


Change = SetOpened | SetChanged | SetEnded | QuotaChanged | CeilingChanged | Granted | PasidChanged | Released
