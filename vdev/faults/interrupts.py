"""The point interrupt: a vector (over vhost-user the call of a queue) is about to be signalled. It is lost, or comes
later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vdev.faults.plan import Firing
from vdev.faults.point import Due, Services, functions
from vdev.faults.rule import Occurrence


class InterruptPoint:
    """In front of the interrupts of every function. What is delayed is held; the injector bounds how much."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._taps: dict[int, Tap] = {}  # by the function's id()
        self._is_armed = False

    def arm(self) -> None:
        """As `point.Hooks`."""
        self._is_armed = True
        self._tidy()
        for function, met in functions(self._services, "interrupt"):
            if id(function) not in self._taps:
                self._taps[id(function)] = function.interrupts = Tap(self._services, function, met)

    def disarm(self) -> None:
        """As `point.Hooks`."""
        self._is_armed = False
        self._tidy()

    def release(self, rule: str | None) -> int:
        """As `point.Hooks`."""
        count = sum(tap.release(rule) for tap in list(self._taps.values()))
        self._tidy()
        return count

    def held(self) -> Mapping[str, int]:
        """As `point.Hooks`."""
        found: dict[str, int] = {}
        for tap in self._taps.values():
            for held in tap.held:
                found[held.rule] = found.get(held.rule, 0) + 1
        return found

    def clear(self) -> list[str]:
        """As `point.Hooks`."""
        released = [(tap.met.function, tap.release(None)) for tap in list(self._taps.values())]
        self._tidy()
        return [f"{count} delayed interrupts of {name} are signalled" for name, count in released if count]

    def _tidy(self) -> None:
        """Take away what is needed no longer: a tap that holds something stays until it comes or is forgotten."""
        there = {id(function) for function, _ in functions(self._services, "interrupt")}
        for key, tap in list(self._taps.items()):
            if key not in there:
                tap.forget()
                del self._taps[key]
            elif not self._is_armed and not tap.held:
                tap.function.interrupts = None
                del self._taps[key]


class Tap:
    """One function's. Implements `pci.function.Interrupts`."""

    def __init__(self, services: Services, function: Any, met: Occurrence) -> None:
        """`function`: a PciFunction or a VhostCarrier. `met`: any interrupt of it."""
        self.function = function
        self.met = met
        self.held: list[Held] = []
        self._services = services

    def take(self, vector: int) -> bool:
        """As `pci.function.Interrupts`."""
        firing = self._services.meet(replace(self.met, vector=vector))
        return firing is not None and (firing.rule.do == "lose" or self._hold(firing, vector))

    def forget(self) -> None:
        """As `pci.function.Interrupts`."""
        for held in self.held:
            if held.due is not None:
                held.due.cancel()
        self.held.clear()

    def release(self, rule: str | None) -> int:
        """Signal what is held because of `rule`, or all, in order; how many."""
        going = [held for held in self.held if rule in (None, held.rule)]
        for held in going:
            self._let_go(held)
        return len(going)

    def _hold(self, firing: Firing, vector: int) -> bool:
        """Whether it comes later; not if too much waits already."""
        held = Held(firing.rule.id, vector)
        held.due = self._services.later(firing.rule.seconds() or 0.0, lambda: self._let_go(held))
        if held.due is None:
            return False
        self.held.append(held)
        return True

    def _let_go(self, held: Held) -> None:
        if held in self.held:
            self.held.remove(held)
            if held.due is not None:
                held.due.cancel()
            self.function.deliver(held.vector)


@dataclass(slots=True, eq=False)
class Held:
    """An interrupt that comes later."""

    rule: str
    vector: int
    due: Due | None = None
