"""Free actions that somebody else carries out: the host's PASID authority, or the process itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vdev.faults.plan import Firing
from vdev.iommu.pasid_set import PasidSet


class Process(Protocol):
    """The process we are in. `order` has an administrator's order carried out some time later; `stall` and `die` are
    what they say."""

    @property
    def order(self) -> Callable[[str, Mapping[str, Any]], None]: ...

    @property
    def stall(self) -> Callable[[float], None]: ...

    @property
    def die(self) -> Callable[[], None]: ...


class Orders:
    """Does what the table at the end says; `clear` undoes what can be undone. `pasids` is the VM's set."""

    def __init__(self, process: Process, pasids: PasidSet | None) -> None:
        self._process = process
        self._pasids = pasids
        self._quota_before: int | None = None

    def do(self, firing: Firing) -> str:
        """Words about what came of it, empty where there is nothing to say. LookupError for what is not of here."""
        return ORDERS[firing.rule.do](self, firing)

    def clear(self) -> list[str]:
        """Order the quota of before."""
        before, self._quota_before = self._quota_before, None
        if before is None:
            return []
        self._process.order("pasid-quota", {"quota": before, "reason": "faults cleared"})
        return [f"a quota of {before} PASIDs is ordered"]

    def _reclaim(self, firing: Firing) -> str:
        given, reason = firing.rule.parameters, f"injected by rule {firing.rule.id}"
        pasid = None if given["all"] else given.get("pasid", self._lowest_pasid())
        if pasid is None and not given["all"]:
            return "not done: the guest has none"
        which = {"all": True} if pasid is None else {"pasid": pasid}
        self._process.order("pasid-reclaim", {**which, "force": True, "reason": reason})
        return "" if pasid is None else f"PASID {pasid:#x}"

    def _lowest_pasid(self) -> int | None:
        assert self._pasids is not None
        known = self._pasids.list_pasids()
        return next((one["pasid"] for one in known if one["owner"] == "guest"), None)

    def _quota_order(self, firing: Firing) -> str:
        assert self._pasids is not None
        if self._quota_before is None:
            self._quota_before = self._pasids.quota
        reason = f"injected by rule {firing.rule.id}"
        self._process.order("pasid-quota", {"quota": firing.rule.number("quota"), "reason": reason})
        return ""

    def _stall(self, firing: Firing) -> str:
        self._process.stall(firing.rule.seconds() or 0.0)
        return ""

    def _die(self, firing: Firing) -> str:
        self._process.die()
        return "not done: the process lives"


ORDERS: dict[str, Callable[[Orders, Firing], str]] = {
    "reclaim": Orders._reclaim,
    "quota-order": Orders._quota_order,
    "stall": Orders._stall,
    "die": Orders._die,
}
