"""The bounded history of typed events: what the log, the control socket and failed tests show."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

log = logging.getLogger("vdev.event")

HISTORY_NEVENTS = 4096  # bounds the memory a busy guest can make us keep


class EventLog:
    """Keeps the newest events with a sequence number and a time in seconds; `emit` is what cores are given.

    Events are kept as they came and turned into plain data only when somebody asks: the request path pays
    one append.
    """

    def __init__(self, clock: Callable[[], float], quiet: frozenset[str] = frozenset({"RequestHandled"})) -> None:
        self._clock = clock
        self._quiet = quiet
        self._history: deque[tuple[int, float, object]] = deque(maxlen=HISTORY_NEVENTS)
        self._next = 0

    def emit(self, event: object) -> None:
        """Keep `event`; log it unless its kind is quiet."""
        self._history.append((self._next, self._clock(), event))
        self._next += 1
        kind = type(event).__name__
        if kind not in self._quiet:
            log.info("%s", describe(event))

    def since(self, first: int, limit: int, kinds: frozenset[str]) -> list[dict[str, Any]]:
        """Kept events numbered `first` or later, the newest `limit` of them, oldest first."""
        found = [
            {"seq": seq, "time": time, **as_plain(event)}
            for seq, time, event in self._history
            if seq >= first and (not kinds or type(event).__name__ in kinds)
        ]
        return found[-limit:] if limit else []


def as_plain(event: object) -> dict[str, Any]:
    """An event dataclass as JSON-able data, its class name under "event"."""
    assert is_dataclass(event)
    return {"event": type(event).__name__, **{f.name: getattr(event, f.name) for f in fields(event)}}


def describe(event: object) -> str:
    """An event in one line for people; addresses in hex."""
    plain = as_plain(event)
    words = [f"{name}={_show(name, value)}" for name, value in plain.items() if name != "event"]
    return f"{plain['event']} {' '.join(words)}"


def _show(name: str, value: object) -> str:
    if isinstance(value, int) and name in ("iova", "gpa", "endpoint"):
        return f"{value:#06x}" if name == "endpoint" else f"{value:#x}"
    return str(value)
