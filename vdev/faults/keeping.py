"""What points have in common about what they hold: nothing, or a list in each unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar


class HoldsNothing:
    """The part of `point.Hooks` of a point whose actions are over when they are done."""

    def release(self, rule: str | None) -> int:
        """As `point.Hooks`."""
        return 0

    def held(self) -> Mapping[str, int]:
        """As `point.Hooks`."""
        return {}

    def clear(self) -> list[str]:
        """As `point.Hooks`."""
        return []


class Keeper(Protocol):
    """One unit's part of a point. What it holds has an attribute `rule`, the id of the rule."""

    def kept(self) -> Sequence[Any]:
        """All that is held."""

    def let_go(self, one: Any) -> None:
        """It is held no longer."""


K = TypeVar("K", bound=Keeper)


class HoldsByUnit(Generic[K]):
    """The same of a point that holds things in each unit. A subclass says what became of them (`undone`)."""

    def __init__(self, units: Mapping[str, K]) -> None:
        """`units` by name."""
        self._units = units

    def release(self, rule: str | None) -> int:
        """As `point.Hooks`."""
        gone = [
            (unit, one)
            for unit in self._units.values()
            for one in unit.kept()
            if self.can_release(one) and rule in (None, one.rule)
        ]
        for unit, one in gone:
            unit.let_go(one)
        return len(gone)

    def held(self) -> Mapping[str, int]:
        """As `point.Hooks`."""
        return Counter(one.rule for unit in self._units.values() for one in unit.kept())

    def clear(self) -> list[str]:
        """As `point.Hooks`."""
        lines = []
        for name, unit in self._units.items():
            kept = unit.kept()
            for one in kept:
                unit.let_go(one)
            if kept:
                lines.append(self.undone(name, kept))
        return lines

    def can_release(self, one: Any) -> bool:
        """Whether it may be let go before all is cleared."""
        return True

    def undone(self, unit: str, kept: Sequence[Any]) -> str:
        """A line about these, which `clear` has let go."""
        raise NotImplementedError
