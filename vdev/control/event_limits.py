"""How often an event is told: pure, with the time as an argument.

Of each key at most PER_SECOND are let through in any second. What comes beyond is held, the newest of it, and counted;
it is told with the next one of its key, or a second after the first of those that filled the second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

PER_SECOND = 10
INTERVAL_S = 1.0
MAX_KEYS = 256  # busy at a time; events of more than these share one key of their kind

T = TypeVar("T")


@dataclass(slots=True)
class _Key(Generic[T]):
    told_at: deque[float] = field(default_factory=lambda: deque(maxlen=PER_SECOND))
    held: T | None = None
    nheld: int = 0

    def may_tell(self, now: float) -> bool:
        return len(self.told_at) < PER_SECOND or now - self.told_at[0] >= INTERVAL_S


class EventLimiter(Generic[T]):
    """Decides what is told now; items are opaque, and None is none."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, _Key[T]] = {}
        self._holding: dict[Hashable, _Key[T]] = {}
        self._looked_at = -INTERVAL_S

    def offer(self, kind: str, key: Hashable, item: T, now: float) -> int | None:
        """How many like `item` were not told since the last one, if it is to be told now; None: it is held."""
        name, state = self._find(kind, key, now)
        if not state.may_tell(now):
            state.held = item
            state.nheld += 1
            self._holding[name] = state
            return None
        suppressed = state.nheld
        self._told(name, state, now)
        return suppressed

    def due(self, now: float) -> list[tuple[T, int]]:
        """Held items whose time has come, oldest key first, each with how many others were not told."""
        found = []
        for name, state in list(self._holding.items()):
            if state.held is not None and state.may_tell(now):
                found.append((state.held, state.nheld - 1))
                self._told(name, state, now)
        return found

    def next_due(self) -> float | None:
        """When `due` will have something; None while nothing is held."""
        return min((state.told_at[0] + INTERVAL_S for state in self._holding.values()), default=None)

    def _told(self, name: Hashable, state: _Key[T], now: float) -> None:
        state.held, state.nheld = None, 0
        self._holding.pop(name, None)
        state.told_at.append(now)

    def _find(self, kind: str, key: Hashable, now: float) -> tuple[Hashable, _Key[T]]:
        """The key's state; when there are too many, that of all others of its kind together."""
        name: Hashable = (kind, key)
        state = self._keys.get(name)
        if state is None and len(self._keys) >= MAX_KEYS:
            self._forget_idle(now)
        if state is None and len(self._keys) >= MAX_KEYS:
            name = (kind, self)  # equal to no key of an event
            state = self._keys.get(name)
        if state is None:
            state = self._keys[name] = _Key()
        return name, state

    def _forget_idle(self, now: float) -> None:
        """A key that told nothing for a second and holds nothing is as good as a new one. A look is not for nothing."""
        if now - self._looked_at < INTERVAL_S / 10:
            return
        self._looked_at = now
        idle = [
            name for name, state in self._keys.items() if state.held is None and now - state.told_at[-1] >= INTERVAL_S
        ]
        for name in idle:
            del self._keys[name]
