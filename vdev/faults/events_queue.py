"""The point event: a fault record is about to be queued for the guest, and is not, or comes twice, later, or changed.

The access was refused and counted before: only what the guest is told is another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vdev.faults.keeping import HoldsByUnit, Keeper
from vdev.faults.plan import Firing
from vdev.faults.point import NO_ROOM, Due, Services, UnitParts
from vdev.faults.rule import Occurrence
from vdev.wire import viommu as wire
from vdev.wire.viommu_pasid import FAULT_PASID_NBYTES, FaultPasid


@dataclass(slots=True, eq=False)
class _Late:
    """A record that comes later."""

    rule: str
    record: bytes
    resets: int  # of the unit, when it was put off
    due: Due | None = None


class _Unit(Keeper[_Late]):
    """The fault records of one unit."""

    def __init__(self, services: Services, parts: UnitParts) -> None:
        super().__init__()
        self._services = services
        self._parts = parts

    def filter(self, record: bytes) -> Sequence[bytes]:
        """As `FaultQueue.filter`."""
        firing = self._services.meet(_occurrence(self._parts.engine.settings.name, record), self._words)
        return (record,) if firing is None else _BECOMES[firing.rule.do](self, record, firing)

    def _words(self, firing: Firing) -> str:
        return NO_ROOM if firing.rule.do == "delay" and not self._services.has_room else ""

    def _drop(self, record: bytes, firing: Firing) -> Sequence[bytes]:
        return ()

    def _duplicate(self, record: bytes, firing: Firing) -> Sequence[bytes]:
        return (record, record)

    def _delay(self, record: bytes, firing: Firing) -> Sequence[bytes]:
        """Where too much waits for its time already it comes now."""
        late = _Late(firing.rule.id, record, self._parts.engine.resets)
        late.due = self._services.later(firing.rule.seconds() or 0.0, partial(self.let_go, late))
        if late.due is None:
            return (record,)
        self.hold(late)
        return ()

    def _with_reason(self, record: bytes, firing: Firing) -> Sequence[bytes]:
        return (bytes([firing.rule.number("reason")]) + record[1:],)

    def is_void(self, one: _Late) -> bool:
        """A reset drops records that wait."""
        return one.resets != self._parts.engine.resets

    def gone(self, one: _Late) -> None:
        """It is queued now."""
        if not self.is_void(one):
            self._parts.engine.faults.tell((one.record,))
            self._parts.device.faults_pending()


_BECOMES: Mapping[str, Callable[[_Unit, bytes, Firing], Sequence[bytes]]] = {
    "drop": _Unit._drop,
    "duplicate": _Unit._duplicate,
    "delay": _Unit._delay,
    "unknown-reason": _Unit._with_reason,
}


class EventPoint(HoldsByUnit[_Unit]):
    """In front of the queue of fault records of every unit."""

    def __init__(self, services: Services) -> None:
        super().__init__({name: _Unit(services, parts) for name, parts in services.units.items()})
        self._services = services

    def arm(self) -> None:
        """As `point.Hooks`."""
        for name, unit in self._units.items():
            self._services.units[name].engine.faults.filter = unit.filter

    def disarm(self) -> None:
        """As `point.Hooks`."""
        for name in self._units:
            self._services.units[name].engine.faults.filter = None

    def undone(self, unit: str, kept: Sequence[_Late]) -> str:
        """As `HoldsByUnit`."""
        return f"fault records of {unit} come now: {len(kept)}"


def _occurrence(unit: str, record: bytes) -> Occurrence:
    """What a record says, in either format."""
    is_tagged = len(record) >= FAULT_PASID_NBYTES
    fault: FaultPasid | wire.Fault = FaultPasid.parse(record) if is_tagged else wire.Fault.parse(record)
    pasid = fault.pasid if isinstance(fault, FaultPasid) else None
    access = "write" if fault.flags & wire.FAULT_F_WRITE else "read"
    met = Occurrence("event", unit, endpoint=fault.endpoint, pasid=pasid, access=access)
    met.start, met.stop = fault.address, fault.address + 1
    return met
