"""admin.sock: what an administrator asks and orders, in the protocol of the control socket. Orders are audited."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vdev.authority.desk import Desk
from vdev.authority.follow import Following
from vdev.authority.lease_server import LeaseServer
from vdev.control.server import Caller, Command
from vdev.errors import ArgumentError
from vdev.host.audit import Audit
from vdev.qapi.model import Builtin, Member
from vdev.qapi.model import Command as Described

MAX_TEXT = 256  # characters of a reason, and of who asked
MAX_AUDIT = 1000  # records of one answer
DEFAULT_AUDIT = 50

_STR, _BOOL, _UINT32 = Builtin("str"), Builtin("bool"), Builtin("uint32")


def _command(name: str, doc: str, **arguments: Builtin) -> Described:
    """Arguments whose names end in `_` may be left out."""
    members = tuple(
        Member(name.rstrip("_").replace("_", "-"), kind, name.endswith("_"), "") for name, kind in arguments.items()
    )
    return Described(name, doc, members, None, (), "PASIDs")


DESCRIBED: Mapping[str, Described] = {
    described.name: described
    for described in (
        _command("query-pasid-host", "The host's space, its supply, and what connections there are."),
        _command("events-follow", "Every change from now on, a line each, until either side ends."),
        _command("query-pasid-vms", "Every set."),
        _command("query-pasids", "One set, PASID by PASID.", vm=_STR),
        _command("query-pasid-audit", "The last orders, the latest first.", vm_=_STR, limit_=_UINT32),
        _command("pasid-quota", "Give a VM another quota.", vm=_STR, quota=_UINT32, reason_=_STR, on_behalf_=_STR),
        _command("pasid-capacity", "Bound all VMs together.", capacity=_UINT32, reason_=_STR, on_behalf_=_STR),
        _command(
            "pasid-reclaim",
            "Take one PASID back, or all and every one to come.",
            vm=_STR,
            pasid_=_UINT32,
            all_=_BOOL,
            force_=_BOOL,
            reason_=_STR,
            on_behalf_=_STR,
        ),
    )
}


def admin_commands(desk: Desk, leases: LeaseServer, following: Following) -> dict[str, Command]:
    """The table of admin.sock; `DESCRIBED` has their arguments."""
    admin = _Admin(desk, leases)
    return {
        "query-pasid-host": Command(admin.host),
        "events-follow": Command(lambda: {}, following.follow),
        "query-pasid-vms": Command(admin.vms),
        "query-pasids": Command(admin.pasids),
        "query-pasid-audit": Command(admin.audit),
        "pasid-quota": Command(admin.quota, knows_caller=True),
        "pasid-capacity": Command(admin.capacity, knows_caller=True),
        "pasid-reclaim": Command(admin.reclaim, knows_caller=True),
    }


class _Admin:
    def __init__(self, desk: Desk, leases: LeaseServer) -> None:
        self._desk = desk
        self._leases = leases

    def host(self) -> dict[str, Any]:
        return {
            **self._desk.policy.describe(),
            "pid": os.getpid(),
            "leases": sorted(self._leases.describe(), key=lambda one: (one["vm"], one["backend-pid"])),
        }

    def vms(self) -> list[dict[str, Any]]:
        return [known.describe() for known in self._desk.policy.sets.values()]

    def pasids(self, vm: str) -> dict[str, Any]:
        known = self._desk.policy.named(vm)
        return {
            **known.describe(),
            "pasids": [
                {"pasid": guest, "host": pasid.host, "state": pasid.state}
                for guest, pasid in sorted(known.pasids.items())
            ],
        }

    def audit(self, vm: str | None = None, limit: int = DEFAULT_AUDIT) -> list[dict[str, Any]]:
        """Of one VM: by its name or the number of its set, of those that have ended as well."""
        records = self._desk.audit(MAX_AUDIT if vm is not None else min(limit, MAX_AUDIT))
        found = [record for record in records if vm is None or vm in (record["vm"], str(record["set_id"]))]
        return [{key.replace("_", "-"): value for key, value in record.items()} for record in found[:limit]]

    def quota(self, vm: str, quota: int, caller: Caller, reason: str = "", on_behalf: str = "") -> dict[str, Any]:
        known = self._desk.set_quota(vm, quota, _who("pasid-quota", caller, reason, on_behalf))
        self._leases.terms_changed(known)
        return known.describe()

    def capacity(self, capacity: int, caller: Caller, reason: str = "", on_behalf: str = "") -> dict[str, Any]:
        self._desk.set_ceiling(capacity, _who("pasid-capacity", caller, reason, on_behalf))
        return self._desk.policy.describe()

    def reclaim(
        self, vm: str, caller: Caller, pasid: int | None = None, all: bool = False, force: bool = False,
        reason: str = "", on_behalf: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        if (pasid is None) == (not all):
            raise ArgumentError("Parameter 'pasid' or 'all' is missing, or both are given")
        known, taken = self._desk.reclaim(vm, pasid, force, _who("pasid-reclaim", caller, reason, on_behalf))
        self._leases.revoke(known, taken, is_forced=force, reason=reason or "reclaimed by an administrator")
        return {**known.describe(), "taken": len(taken)}


def _who(command: str, caller: Caller, reason: str, on_behalf: str) -> Audit:
    for name, text in (("reason", reason), ("on-behalf", on_behalf)):
        if len(text) > MAX_TEXT:
            raise ArgumentError(f"Parameter '{name}' has {len(text)} characters, at most {MAX_TEXT} are kept")
    return Audit(caller.uid, caller.pid, on_behalf, command, None, "", "", "", reason)
