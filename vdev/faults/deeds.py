"""Free actions that are done to a unit or an endpoint: one function each; the table is at the end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

from vdev.faults.plan import Firing
from vdev.faults.point import NO_ROOM, Due, Services, UnitParts
from vdev.functions.vhost import VhostCarrier
from vdev.iommu.fault_queue import fault_record
from vdev.pci.aer import ERRORS, Error, clear_error, set_error
from vdev.pci.base import PciFunction
from vdev.wire.viommu import FAULT_F_WRITE, FAULT_R_MAPPING

MAX_FLOODS = 256  # of one unit that are remembered, to be undone


class Deeds:
    """Does what the table says; `clear` undoes what can be undone.

    What takes a function's rings or DMA away happens between two slices, so nothing of the function is under way then:
    the request or access that set it off is finished first.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._flooded: dict[str, list[bytes]] = {}  # by unit: one object for all records of a flood
        self._due: list[Due] = []  # what is to happen between slices
        self._removed: dict[str, PciFunction] = {}
        self._errors: dict[str, tuple[PciFunction, set[str]]] = {}  # in AER capabilities, by function

    def do(self, firing: Firing) -> str:
        """Words about what came of it, empty where there is nothing to say. LookupError for what is not of here."""
        return DEEDS[firing.rule.do](self, firing)

    def clear(self) -> list[str]:
        """Undo all that is left, a line of words for each thing."""
        undone = []
        for name, records in self._flooded.items():
            queue = self._services.units[name].engine.faults
            gone = sum(queue.withdraw(record) for record in records)
            if gone:
                undone.append(f"fault records of {name} that were not delivered are dropped: {gone}")
        self._flooded.clear()
        for name, function in self._removed.items():
            if self._named(name) is function:
                function.bring_back()
                undone.append(f"{name} is back as after power-on")
        for name, (function, errors) in self._errors.items():
            left = [error for error in sorted(errors) if clear_error(function.config, ERRORS[error])]
            if left:
                undone.append(f"{name} has these errors no longer: {', '.join(left)}")
        for due in self._due:
            due.cancel()
        self._due.clear()
        self._removed.clear()
        self._errors.clear()
        return undone

    def _needs_reset(self, firing: Firing) -> str:
        unit = self._unit(firing)
        if unit is None:
            return "not done: it is about no unit"
        function, device = unit.function, unit.device
        if isinstance(function, VhostCarrier):
            return _OF_QEMU

        def break_down() -> None:
            device.suspend()  # as a ring that broke: until the reset nothing is served
            function.needs_reset(f"injected by rule {firing.rule.id}")

        return self._between_slices(break_down)

    def _config_change(self, firing: Firing) -> str:
        unit = self._unit(firing)
        if unit is None:
            return "not done: it is about no unit"
        unit.function.config_changed()
        return ""

    def _spurious(self, firing: Firing) -> str:
        name, function = self._function(firing)
        vector = firing.rule.number("vector")
        if function is None:
            return _NOT_THERE
        count = len(function.rings) if isinstance(function, VhostCarrier) else function.msix_vectors
        if vector >= count:
            return f"not done: {name} has {count} of them"
        if isinstance(function, VhostCarrier):
            function.interrupt_queue(vector)
        else:
            function.signal(vector)
        return ""

    def _remove(self, firing: Firing) -> str:
        name, function = self._pci_function(firing)
        if function is None:
            return name
        removed = self._removed

        def remove() -> None:
            function.remove()
            removed[name] = function

        return "not done: it is removed already" if function.removed else self._between_slices(remove)

    def _flr(self, firing: Firing) -> str:
        name, function = self._pci_function(firing)
        if function is None:
            return name
        return "not done: it is removed" if function.removed else self._between_slices(function.function_level_reset)

    def _aer(self, firing: Firing) -> str:
        name, function = self._pci_function(firing)
        if function is None:
            return name
        word = str(firing.rule.parameters["error"])
        error = ERRORS[word]
        if function.removed or not set_error(function.config, error):
            return "not done: it is removed, or has no AER capability"
        self._errors.setdefault(name, (function, set()))[1].add(word)
        return self._at_root_port(firing, name, error) if firing.rule.parameters["root"] else ""

    def _at_root_port(self, firing: Firing, name: str, error: Error) -> str:
        """QEMU, asked by the endpoint's own id, answers OK and tells no port: it knows no AER capability of it."""
        port = self._services.port_of(name)
        if port is None:
            return "no root port is told: it is on bus 00"
        kind = "-c " if error.is_correctable else ""
        self._services.ask_qemu(firing, f"pcie_aer_inject_error {kind}{port} {1 << error.bit:#x}")
        return ""

    def _between_slices(self, deed: Callable[[], None]) -> str:
        def do() -> None:
            self._due = [other for other in self._due if other is not due]
            deed()

        due = self._services.later(0, do)
        if due is None:
            return NO_ROOM
        self._due.append(due)
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

    def _pci_function(self, firing: Firing) -> tuple[str, PciFunction | None]:
        """A function of ours and its name; or why there is none, and None."""
        name, function = self._function(firing)
        if function is None:
            return _NOT_THERE, None
        return (_OF_QEMU, None) if isinstance(function, VhostCarrier) else (name, function)

    def _function(self, firing: Firing) -> tuple[str, Any]:
        """The function the rule names; else the one that the occurrence is about. None if it is not there."""
        met = firing.met
        name = str(firing.rule.parameters.get("function") or met.function)
        unit = self._services.units.get(met.unit)
        if not name and unit is not None:
            doors = unit.doors.items()
            name = next((one for one, door in doors if door.endpoint_id == met.endpoint), met.unit)
        return name, self._named(name)

    def _named(self, name: str) -> Any:
        units = self._services.units
        if name in units:
            return units[name].function
        return next((unit.endpoints[name] for unit in units.values() if name in unit.endpoints), None)


_NOT_THERE = "not done: the function is not there"
_OF_QEMU = "not done: over vhost-user that is QEMU's"
DEEDS: dict[str, Callable[[Deeds, Firing], str]] = {
    "needs-reset": Deeds._needs_reset,
    "config-change": Deeds._config_change,
    "spurious": Deeds._spurious,
    "flood": Deeds._flood,
    "remove": Deeds._remove,
    "flr": Deeds._flr,
    "aer": Deeds._aer,
}
