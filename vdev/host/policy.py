"""The authority's decisions: one PASID space per host, a set per guest. Pure; see the package.

Two modes: in a `system` space a guest's PASID is the host's; in a `per-vm` space each guest numbers its own, and every
one is backed by a PASID of the host, so that the host's supply is the same in both.

A wish is decided against the state as it is and comes back as changes; `apply` makes them true. Nothing is changed by a
decision, so a change that cannot be written down has not happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from vdev.errors import ConfigError, VdevError
from vdev.host.changes import (
    NEXT,
    CeilingChanged,
    Change,
    Granted,
    Owner,
    PasidChanged,
    PasidState,
    QuotaChanged,
    Released,
    SetChanged,
    SetEnded,
    SetOpened,
    SetState,
)
from vdev.host.ranges import FreeMap, FreeRanges

FIRST_PASID = 1  # 0 is no PASID
STOP_PASID = 1 << 20
DEFAULT_QUOTA = 1000
MAX_SETS = 4096

Why = Literal["quota", "supply", "range", "fenced"]


class PolicyError(VdevError):
    """A wish that is no allocation is refused; the text names the thing, the rule and the value."""


class AllocationRefused(VdevError):
    """No PASID. quota: the set's. supply: the host's. range: none is left of what was asked for. fenced: the set is."""

    def __init__(self, why: Why, problem: str) -> None:
        self.why: Why = why
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class HostSettings:
    """The administrator's rules. `reserved`: half-open ranges of host PASIDs that no guest gets."""

    space: Literal["system", "per-vm"] = "per-vm"
    reserved: tuple[tuple[int, int], ...] = ()
    ceiling: int = STOP_PASID - FIRST_PASID  # of all guests together; it may be changed later
    overcommit: Literal["share", "reserve"] = "share"
    quota: int = DEFAULT_QUOTA  # of a guest nobody gave another
    max_quota: int = STOP_PASID - FIRST_PASID

    def __post_init__(self) -> None:
        """Raise ConfigError for values that make no sense, by their key."""
        most = STOP_PASID - FIRST_PASID
        for start, stop in self.reserved:
            if not FIRST_PASID <= start < stop <= STOP_PASID:
                raise ConfigError("reserved", f"{start:#x}..{stop - 1:#x} is empty or not within 0x1..0xfffff")
        for key, value, low in (
            ("ceiling", self.ceiling, 0),
            ("max_quota", self.max_quota, 0),
            ("quota", self.quota, 0),
        ):
            if not low <= value <= most:
                raise ConfigError(key, f"{value} is not within {low}..{most}")
        if self.quota > self.max_quota:
            raise ConfigError("quota", f"{self.quota} is above max_quota, {self.max_quota}")


@dataclass(slots=True)
class Pasid:
    """One PASID of a set."""

    host: int
    state: PasidState = "allocated"


@dataclass(slots=True)
class GuestSet:
    """What one guest has."""

    id: int
    name: str
    owner: Owner
    quota: int
    state: SetState = "held"
    pasids: dict[int, Pasid] = field(default_factory=dict)  # by the guest's number
    last: int = 0  # the number granted last, where the next search goes on
    numbers: FreeRanges | None = None  # the guest's own, in a per-vm space

    @property
    def used(self) -> int:
        """How many count against the quota: all of them, whatever their state."""
        return len(self.pasids)

    @property
    def promised(self) -> int:
        """How much of the supply it takes up where quotas are reserved."""
        return max(self.quota, self.used)

    def describe(self) -> dict[str, Any]:
        """State for queries."""
        states = [pasid.state for pasid in self.pasids.values()]
        return {
            "set": self.id,
            "vm": self.name,
            "pid": self.owner.pid,
            "state": self.state,
            "quota": self.quota,
            "used": self.used,
            "states": {state: states.count(state) for state in NEXT},
        }


class Policy:
    """The state of the host's PASIDs, and the rules."""

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.ceiling = settings.ceiling
        self.sets: dict[int, GuestSet] = {}
        self.next_set_id = 1
        self.used = 0  # of all sets
        self._supply = FreeMap(FIRST_PASID, STOP_PASID)
        self._last_host = 0
        for start, stop in settings.reserved:
            self._supply.take_range(start, stop)

    # decisions

    def open(self, name: str, owner: Owner, quota: int | None) -> list[Change]:
        """A set for a guest that has none. `quota` None: the default one. PolicyError where it cannot be had."""
        asked = self.settings.quota if quota is None else quota
        if self.find(owner) is not None:
            raise PolicyError(f"VM {name}: pid {owner.pid} has a set already")
        if len(self.sets) >= MAX_SETS:
            raise PolicyError(f"VM {name}: there are {MAX_SETS} sets, no more are possible")
        self._check_quota(f"VM {name}", asked, before=0)
        return [SetOpened(self.next_set_id, name, owner, asked)]

    def claim(self, set_id: int) -> list[Change]:
        """A backend of the set's own QEMU takes it (again). A fenced one it may only drain."""
        return [SetChanged(set_id, "held")] if self.sets[set_id].state == "quarantined" else []

    def quarantine(self, set_id: int) -> list[Change]:
        """The backend is gone, and nothing is known of its QEMU."""
        return [SetChanged(set_id, "quarantined")] if self.sets[set_id].state == "held" else []

    def end(self, set_id: int, why: str) -> list[Change]:
        """The set's QEMU is proven dead: everything is free."""
        return [SetEnded(set_id, why)]

    def allocate(self, set_id: int, first: int, stop: int) -> list[Change]:
        """One PASID whose guest number is in [first, stop). AllocationRefused says why there is none."""
        known = self.sets[set_id]
        if known.state != "held":
            raise AllocationRefused("fenced", f"VM {known.name}: its set is {known.state}")
        if known.used >= known.quota:
            raise AllocationRefused("quota", f"VM {known.name}: {known.used} of {known.quota} PASIDs are used")
        if self.used >= self.ceiling:
            raise AllocationRefused(
                "supply", f"all guests together have {self.used} PASIDs, the ceiling is {self.ceiling}"
            )
        host = self._supply.find(FIRST_PASID, STOP_PASID, self._last_host)
        if host is None:
            raise AllocationRefused("supply", "this host has no free PASID")
        guest = (known.numbers or self._supply).find(max(first, FIRST_PASID), min(stop, STOP_PASID), known.last)
        if guest is None:
            raise AllocationRefused("range", f"VM {known.name}: no PASID of {first:#x}..{stop - 1:#x} is free")
        return [Granted(set_id, guest, guest if known.numbers is None else host)]

    def attached(self, set_id: int, guest: int, is_attached: bool) -> list[Change]:
        """The first pair of a PASID was attached, or the last one detached. No change where that was told late."""
        return self._move(set_id, (guest,), "attached" if is_attached else "allocated")

    def free_pending(self, set_id: int, guests: Iterable[int]) -> list[Change]:
        """The guest freed these, and something still uses them."""
        return self._move(set_id, guests, "free-pending")

    def release(self, set_id: int, guests: Iterable[int]) -> list[Change]:
        """The backend says that nothing uses these any more; those the set does not have are passed over (repeats)."""
        known = self.sets[set_id]
        return [Released(set_id, guest) for guest in dict.fromkeys(guests) if guest in known.pasids]

    def reclaim(self, set_id: int, guests: Iterable[int], *, force: bool) -> list[Change]:
        """An administrator wants these back: they are quarantined until the backend has drained them.

        `force` frees them at once, whatever still uses them: for a backend that is gone or does not answer. PolicyError
        for a PASID the set does not have.
        """
        known = self.sets[set_id]
        wanted = list(dict.fromkeys(guests))
        for guest in wanted:
            if guest not in known.pasids:
                raise PolicyError(f"VM {known.name} has no PASID {guest:#x}")
        if force:
            return [Released(set_id, guest) for guest in wanted]
        return self._move(set_id, wanted, "quarantined")

    def fence(self, set_id: int, *, force: bool) -> list[Change]:
        """An administrator takes the whole set away: its backend drains it, and nothing is granted any more.

        `force` frees all of it at once. PolicyError without it where the backend is gone: its QEMU may be alive. The
        set stays, fenced, until its QEMU has ended: else the same guest would get another.
        """
        known = self.sets[set_id]
        if known.state == "quarantined" and not force:
            raise PolicyError(
                f"VM {known.name}: its backend is gone and pid {known.owner.pid} is not known to be dead; use force"
            )
        fenced: list[Change] = [SetChanged(set_id, "fenced")] if known.state != "fenced" else []
        return fenced + self.reclaim(set_id, known.pasids, force=force)

    def set_quota(self, set_id: int, quota: int) -> list[Change]:
        """Another quota from now on; below what is used it takes nothing away. PolicyError where it cannot be had."""
        known = self.sets[set_id]
        self._check_quota(f"VM {known.name}", quota, before=known.promised)
        return [QuotaChanged(set_id, quota)] if quota != known.quota else []

    def set_ceiling(self, ceiling: int) -> list[Change]:
        """Another ceiling over all guests; below what is used it takes nothing away."""
        most = STOP_PASID - FIRST_PASID
        if not 0 <= ceiling <= most:
            raise PolicyError(f"ceiling {ceiling} is not within 0..{most}")
        return [CeilingChanged(ceiling)] if ceiling != self.ceiling else []

    def _check_quota(self, whose: str, quota: int, *, before: int) -> None:
        """`before`: what of the supply is promised to it now."""
        if not 0 <= quota <= self.settings.max_quota:
            raise PolicyError(f"{whose}: quota {quota} is not within 0..{self.settings.max_quota}")
        if self.settings.overcommit == "reserve" and quota > before:
            left = self.supply - self.promised + before
            if quota > left:
                raise PolicyError(f"{whose}: quota {quota} is more than what is not reserved, {max(0, left)}")

    def _move(self, set_id: int, guests: Iterable[int], state: PasidState) -> list[Change]:
        pasids = self.sets[set_id].pasids
        return [
            PasidChanged(set_id, guest, state)
            for guest in dict.fromkeys(guests)
            if guest in pasids and state in NEXT[pasids[guest].state]
        ]

    # queries

    @property
    def supply(self) -> int:
        """How many PASIDs all guests together may have."""
        return min(self.ceiling, self._supply.nfree + self.used)

    @property
    def promised(self) -> int:
        """How much of the supply is taken up where quotas are reserved."""
        return sum(known.promised for known in self.sets.values())

    def find(self, owner: Owner) -> GuestSet | None:
        """The set of a process."""
        return next((known for known in self.sets.values() if known.owner == owner), None)

    def named(self, vm: str) -> GuestSet:
        """The set of the one VM of this name, or of this number. PolicyError where it is none, or not one alone."""
        found = [known for known in self.sets.values() if vm in (known.name, str(known.id))]
        if len(found) == 1:
            return found[0]
        if not found:
            raise PolicyError(f"there is no VM {vm!r}")
        raise PolicyError(f"VM {vm!r} is one of sets {', '.join(str(known.id) for known in found)}: say which")

    def describe(self) -> dict[str, Any]:
        """The host's state for queries."""
        given = self.settings
        return {
            "space": given.space,
            "overcommit": given.overcommit,
            "reserved": [f"{start:#x}..{stop - 1:#x}" for start, stop in given.reserved],
            "ceiling": self.ceiling,
            "supply": self.supply,
            "promised": self.promised if given.overcommit == "reserve" else None,
            "used": self.used,
            "sets": len(self.sets),
            "quota": given.quota,
            "max-quota": given.max_quota,
        }

    # state

    def apply(self, change: Change) -> None:
        """Make a change true. What a decision returned is applied in order, at once, or not at all."""
        _APPLY[type(change)](self, change)

    def _opened(self, change: SetOpened) -> None:
        numbers = FreeRanges(FIRST_PASID, STOP_PASID) if self.settings.space == "per-vm" else None
        self.sets[change.set_id] = GuestSet(change.set_id, change.name, change.owner, change.quota, numbers=numbers)
        self.next_set_id = max(self.next_set_id, change.set_id + 1)

    def _set_changed(self, change: SetChanged) -> None:
        self.sets[change.set_id].state = change.state

    def _ended(self, change: SetEnded) -> None:
        known = self.sets.pop(change.set_id)
        for pasid in known.pasids.values():
            self._supply.give(pasid.host)
        self.used -= known.used

    def _quota_changed(self, change: QuotaChanged) -> None:
        self.sets[change.set_id].quota = change.quota

    def _ceiling_changed(self, change: CeilingChanged) -> None:
        self.ceiling = change.ceiling

    def _granted(self, change: Granted) -> None:
        known = self.sets[change.set_id]
        self._supply.take(change.host)
        if known.numbers is not None:
            known.numbers.take(change.guest)
        known.pasids[change.guest] = Pasid(change.host)
        known.last, self._last_host = change.guest, change.host
        self.used += 1

    def _pasid_changed(self, change: PasidChanged) -> None:
        self.sets[change.set_id].pasids[change.guest].state = change.state

    def _released(self, change: Released) -> None:
        known = self.sets[change.set_id]
        self._supply.give(known.pasids.pop(change.guest).host)
        if known.numbers is not None:
            known.numbers.give(change.guest)
        self.used -= 1

    def dump(self) -> Iterator[Change]:
        """The changes that lead from an empty policy to this state: for restarts, and for tests of them."""
        if self.ceiling != self.settings.ceiling:
            yield CeilingChanged(self.ceiling)
        for known in self.sets.values():
            yield SetOpened(known.id, known.name, known.owner, known.quota)
            for guest, pasid in known.pasids.items():
                yield Granted(known.id, guest, pasid.host)
                if pasid.state != "allocated":
                    yield PasidChanged(known.id, guest, pasid.state)
            if known.state != "held":
                yield SetChanged(known.id, known.state)


_APPLY: dict[type, Callable[[Policy, Any], None]] = {
    SetOpened: Policy._opened,
    SetChanged: Policy._set_changed,
    SetEnded: Policy._ended,
    QuotaChanged: Policy._quota_changed,
    CeilingChanged: Policy._ceiling_changed,
    Granted: Policy._granted,
    PasidChanged: Policy._pasid_changed,
    Released: Policy._released,
}
