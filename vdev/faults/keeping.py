"""What points have in common about what they hold: nothing, or a list in each unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from vdev.faults.point import Due


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


class Held(Protocol):
    """Something that is held because of `rule`, until it is due if that is a matter of time."""

    @property
    def rule(self) -> str: ...

    @property
    def due(self) -> Due | None: ...


H = TypeVar("H", bound=Held)


class Keeper(Generic[H]):
    """One unit's part of a point. A subclass says when something is void (`is_void`), and what comes of it when it is
    let go (`gone`)."""

    def __init__(self) -> None:
        self.holds: list[H] = []  # in the order they came; some may be void

    def hold(self, one: H) -> None:
        """From now on. What is void waits for its time no longer, or it would take the room of others."""
        for other in [other for other in self.holds if self.is_void(other)]:
            self.let_go(other)
        self.holds.append(one)

    def let_go(self, one: H) -> None:
        """It is held no longer. Again is no change."""
        rest = [other for other in self.holds if other is not one]
        if len(rest) == len(self.holds):
            return
        self.holds = rest
        if one.due is not None:
            one.due.cancel()
        self.gone(one)

    def kept(self) -> list[H]:
        """What is held and not void."""
        return [one for one in self.holds if not self.is_void(one)]

    def is_void(self, one: H) -> bool:
        """Whether a reset has ended it."""
        raise NotImplementedError

    def gone(self, one: H) -> None:
        """It was let go."""
        raise NotImplementedError


K = TypeVar("K", bound=Keeper[Any])


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
            for one in list(unit.holds):
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
