"""The control socket's commands about PASIDs: what this VM has, and orders about it that its host's authority carries
out. Texts and members: vdev/qapi/vdev.qapi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdev.config import Config
from vdev.control.iommu_units import DEFAULT_LIMIT, MAX_LIMIT, Units, check_number
from vdev.control.server import Caller, Command
from vdev.errors import ConfigError
from vdev.vm_pasids import VmPasids

MAX_AUDIT = 1000
DEFAULT_AUDIT = 50

Reply = dict[str, Any]


def pasid_commands(units: Units, config: Config, pasids: VmPasids | None) -> dict[str, Command]:
    """The table; `units` may change later. Without `pasids` most of it refuses."""
    handlers = _Handlers(units, config, pasids)
    return {
        "query-pasid-set": Command(handlers.set),
        "query-pasids": Command(handlers.pasids),
        "query-pasid-audit": Command(handlers.audit),
        "pasid-quota": Command(handlers.quota, knows_caller=True),
        "pasid-reclaim": Command(handlers.reclaim, knows_caller=True),
    }


class _Handlers:
    """Parameters and returned members are the schema's."""

    def __init__(self, units: Units, config: Config, pasids: VmPasids | None) -> None:
        self._units = units
        self._config = config
        self._pasids = pasids

    @property
    def _known(self) -> VmPasids:
        if self._pasids is None:
            raise ConfigError("vm.pasids", "the configuration has none", "set it, such as pasids: {}")
        return self._pasids

    def set(self) -> Reply:
        """query-pasid-set."""
        known = self._known
        state = known.set.describe()
        return {
            "vm": self._config.vm.name,
            "space": state["space"],
            "quota": state["quota"],
            "used": state["used"],
            "first": state["first"],
            "last": state["stop"] - 1,
            "states": state["states"],
            "asked": state["asked"],
            "identity": self._config.vm.isolation == "off",
            "lease": known.describe_lease(),
            "units": [
                {"unit": name, **unit.engine.pasids.describe()}
                for name, unit in self._units.items()
                if unit.engine.settings.pasids
            ],
            "kernel": known.kernel.describe(),
        }

    def pasids(self, from_: int = 0, limit: int = DEFAULT_LIMIT) -> Reply:
        """query-pasids."""
        check_number("limit", limit, 1, MAX_LIMIT)
        if self._pasids is None:
            return {"pasids": [], "total": 0}
        found = self._pasids.set.list_pasids(from_, limit + 1)
        page = [self._pasid(one) for one in found[:limit]]
        following = {"next": found[limit]["pasid"]} if len(found) > limit else {}
        return {"pasids": page, "total": self._pasids.set.used, **following}

    def _pasid(self, known: Mapping[str, Any]) -> Reply:
        unit = {"unit": known["unit"]} if known["unit"] else {}
        pairs = self._pairs(known["pasid"]) if known["pairs"] else []
        return {"pasid": known["pasid"], "state": known["state"], "owner": known["owner"], **unit, "pairs": pairs}

    def _pairs(self, pasid: int) -> list[Reply]:
        found = []
        for name, unit in self._units.items():
            for _, endpoint in sorted(unit.engine.table.endpoints.items()):
                pair = endpoint.pairs.get(pasid)
                if pair is not None:
                    domain = {} if pair.domain_id is None else {"domain": pair.domain_id}
                    found.append({"unit": name, "endpoint": endpoint.name, **domain, "follows": not domain})
        return found

    async def quota(self, quota: int, caller: Caller, reason: str = "") -> Reply:
        """pasid-quota."""
        now = await self._order("pasid-quota", {"quota": quota, "reason": reason}, caller)
        return {"quota": now["quota"], "used": now["used"]}

    async def reclaim(
        self, caller: Caller, pasid: int | None = None, all: bool = False, force: bool = False, reason: str = ""
    ) -> Reply:
        """pasid-reclaim."""
        one = {} if pasid is None else {"pasid": pasid}
        given = {**one, "all": all, "force": force, "reason": reason}
        return {"taken": (await self._order("pasid-reclaim", given, caller))["taken"]}

    async def audit(self, limit: int = DEFAULT_AUDIT) -> list[Reply]:
        """query-pasid-audit."""
        check_number("limit", limit, 1, MAX_AUDIT)
        records = await self._known.lease.admin("query-pasid-audit", {"limit": limit})
        return [
            {"time": record["time-us"] / 1e6, **{name: record[name] for name in _ORDER_MEMBERS}} for record in records
        ]

    async def _order(self, command: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        who = f"control socket of {self._config.vm.name}, uid {caller.uid}, pid {caller.pid}"
        return await self._known.lease.admin(command, arguments, who)


_ORDER_MEMBERS = ("command", "uid", "pid", "on-behalf", "before", "after", "reason")
