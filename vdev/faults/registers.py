"""The point register: a guest reads a register in BAR 0, and sees another value than it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from vdev.faults.keeping import HoldsNothing
from vdev.faults.point import Services, functions
from vdev.faults.rule import Occurrence
from vdev.functions.vhost import VhostCarrier


class RegisterPoint(HoldsNothing):
    """Behind the registers of every function of ours; of a unit over vhost-user they are QEMU's. The read is done all
    the same, with what it sets off. Nothing is ever held, so there is nothing to undo."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def arm(self) -> None:
        """As `point.Hooks`."""
        for function, met in self._functions():
            function.registers = self._shown(met)

    def disarm(self) -> None:
        """As `point.Hooks`."""
        for function, _ in self._functions():
            function.registers = None

    def _functions(self) -> Iterator[tuple[Any, Occurrence]]:
        known = functions(self._services, "register")
        return ((function, met) for function, met in known if not isinstance(function, VhostCarrier))

    def _shown(self, met: Occurrence) -> Callable[[int, bytes], bytes]:
        """As `PciFunction.registers`."""

        def show(offset: int, value: bytes) -> bytes:
            firing = self._services.meet(replace(met, register=offset))
            if firing is None:
                return value
            stuck = firing.rule.number("value") & ((1 << 8 * len(value)) - 1)
            return stuck.to_bytes(len(value), "little")

        return show
