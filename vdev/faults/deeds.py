"""Free actions that are done to a unit or an endpoint: one function each; the table is at the end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

from vdev.faults.plan import Firing
from vdev.faults.point import Services, UnitParts
from vdev.functions.vhost import VhostCarrier
from vdev.iommu.fault_queue import fault_record
from vdev.wire.viommu import FAULT_F_WRITE, FAULT_R_MAPPING

MAX_FLOODS = 256  # of one unit that are remembered, to be undone


class Deeds:
    """Does what the table says; `clear` undoes what can be undone."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._flooded: dict[str, list[bytes]] = {}  # by unit: one object for all records of a flood

    def do(self, firing: Firing) -> str:
        """Words about what came of it, empty where there is nothing to say. LookupError for what is not of here."""
        return DEEDS[firing.rule.do](self, firing)

    def clear(self) -> list[str]:
        """Undo all that is left, a line of words for each thing."""
        lines = []
        for name, records in self._flooded.items():
            queue = self._services.units[name].engine.faults
            gone = sum(queue.withdraw(record) for record in records)
            if gone:
                lines.append(f"fault records of {name} that were not delivered are dropped: {gone}")
        self._flooded.clear()
        return lines

    def _needs_reset(self, firing: Firing) -> str:
        unit = self._unit(firing)
        if unit is None:
            return "not done: it is about no unit"
        unit.device.suspend()  # as a ring that broke: until the reset nothing is served
        unit.function.needs_reset(f"injected by rule {firing.rule.id}")
        return ""

    def _config_change(self, firing: Firing) -> str:
        unit = self._unit(firing)
        if unit is None:
            return "not done: it is about no unit"
        unit.function.config_changed()
        return ""

    def _spurious(self, firing: Firing) -> str:
        function = self._function(firing)
        vector = firing.rule.number("vector")
        if function is None:
            return "not done: the function is not there"
        if isinstance(function, VhostCarrier):
            if vector >= len(function.rings):
                return f"not done: there is no queue {vector}"
            function.interrupt_queue(vector)
            return ""
        function.signal(vector)
        return ""

    def _flood(self, firing: Firing) -> str:
        name = str(firing.rule.parameters.get("unit") or firing.met.unit)
        unit = self._services.units.get(name)
        if unit is None:
            return "not done: it is about no unit"
        doors, wanted = unit.doors, firing.rule.parameters.get("endpoint")
        door = doors.get(str(wanted)) if wanted is not None else next(iter(doors.values()), None)
        if door is None:
            return "not done: the endpoint is not there"
        queue = unit.engine.faults
        count = int(firing.rule.parameters.get("records") or queue.room + 1)
        record = fault_record(FAULT_R_MAPPING, FAULT_F_WRITE, door.endpoint_id, firing.rule.number("iova"))
        flooded = self._flooded.setdefault(name, [])
        flooded.append(record)
        del flooded[:-MAX_FLOODS]
        queue.tell(repeat(record, count))
        unit.device.faults_pending()
        return f"records: {count}"

    def _unit(self, firing: Firing) -> UnitParts | None:
        name = firing.rule.parameters.get("function") or firing.met.unit
        return self._services.units.get(str(name))

    def _function(self, firing: Firing) -> Any:
        """The function the rule names; else the one that the occurrence is about. None if it is not there."""
        name = str(firing.rule.parameters.get("function") or firing.met.function)
        units = self._services.units
        if name in units:
            return units[name].function
        for unit in units.values():
            if name in unit.endpoints:
                return unit.endpoints[name]
            if not name and firing.met.unit == unit.engine.settings.name and firing.met.endpoint is not None:
                doors = unit.doors.items()
                found = next((one for one, door in doors if door.endpoint_id == firing.met.endpoint), None)
                return unit.endpoints.get(found) if found else None
        return None


DEEDS: dict[str, Callable[[Deeds, Firing], str]] = {
    "needs-reset": Deeds._needs_reset,
    "config-change": Deeds._config_change,
    "spurious": Deeds._spurious,
    "flood": Deeds._flood,
}
