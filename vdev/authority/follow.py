"""What happens to the host's PASIDs, told line by line to administrators who follow: as events of QMP look."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any
from weakref import WeakSet

from vdev.control.event_stream import Follower, event_line
from vdev.host.changes import (
    CeilingChanged,
    Change,
    Granted,
    PasidChanged,
    QuotaChanged,
    Released,
    SetChanged,
    SetEnded,
    SetOpened,
)
from vdev.host.policy import GuestSet

_TOLD: dict[type, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    SetOpened: lambda it: ("PASID_SET_OPENED", {"pid": it.owner.pid, "quota": it.quota}),
    SetChanged: lambda it: ("PASID_SET_CHANGED", {"state": it.state}),
    SetEnded: lambda it: ("PASID_SET_ENDED", {"why": it.why}),
    QuotaChanged: lambda it: ("PASID_QUOTA_CHANGED", {"quota": it.quota}),
    CeilingChanged: lambda it: ("PASID_CAPACITY_CHANGED", {"capacity": it.ceiling}),
    Granted: lambda it: ("PASID_GRANTED", {"pasid": it.guest, "host": it.host}),
    PasidChanged: lambda it: ("PASID_CHANGED", {"pasid": it.guest, "state": it.state}),
    Released: lambda it: ("PASID_RELEASED", {"pasid": it.guest}),
}


class Following:
    """Everybody who follows. Each is told everything from then on; what it does not read in time is counted."""

    def __init__(self, sets: Mapping[int, GuestSet], wall_us: Callable[[], int]) -> None:
        """`sets` are those there are, for their names."""
        self._sets = sets
        self._wall_us = wall_us
        # Weak: a stream that was never begun, because its client is gone, has no end that anybody could see.
        self._followers: WeakSet[Follower] = WeakSet()

    def follow(self) -> AsyncGenerator[bytes, None]:
        """Lines from now on."""
        follower = Follower(self._wall_us)
        self._followers.add(follower)
        return follower.lines(self._followers.discard)

    def tell(self, change: Change) -> None:
        """`change` is in the ledger, and about to be true."""
        if not self._followers:
            return
        name, data = _TOLD[type(change)](change)
        if not isinstance(change, CeilingChanged):
            known = self._sets.get(change.set_id)
            vm = change.name if isinstance(change, SetOpened) else known.name if known is not None else ""
            data = {"vm": vm, "set": change.set_id, **data}
        line = event_line(name, data, self._wall_us())
        for follower in self._followers:
            follower.put(line)
