"""The point register: a guest reads a register in BAR 0, and sees another value than it holds."""

from __future__ import annotations

from collections.abc import Callable

from vdev.faults.keeping import HoldsNothing
from vdev.faults.point import Services
from vdev.faults.rule import Occurrence
from vdev.functions.vhost import VhostCarrier


class RegisterPoint(HoldsNothing):
    """Behind the registers of every function of ours; of a unit over vhost-user they are QEMU's. The read is done all
    the same, with what it sets off. Nothing is ever held, so there is nothing to undo."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def arm(self) -> None:
        """As `point.Hooks`."""
        for name, unit in self._services.units.items():
            if not isinstance(unit.function, VhostCarrier):
                unit.function.registers = self._shown(Occurrence("register", unit=name, function=name))
            for endpoint, function in unit.endpoints.items():
                number = unit.doors[endpoint].endpoint_id
                met = Occurrence("register", unit=name, endpoint=number, function=endpoint)
                function.registers = self._shown(met)

    def disarm(self) -> None:
        """As `point.Hooks`."""
        for unit in self._services.units.values():
            for function in (unit.function, *unit.endpoints.values()):
                if not isinstance(function, VhostCarrier):
                    function.registers = None

    def _shown(self, met: Occurrence) -> Callable[[int, bytes], bytes]:
        """As `PciFunction.registers`."""

        def show(offset: int, value: bytes) -> bytes:
            read = Occurrence(met.point, unit=met.unit, endpoint=met.endpoint, function=met.function, register=offset)
            firing = self._services.meet(read)
            if firing is None:
                return value
            stuck = firing.rule.number("value") & ((1 << 8 * len(value)) - 1)
            return stuck.to_bytes(len(value), "little")

        return show
