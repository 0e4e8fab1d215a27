"""What fault injection wants of QEMU, which only a bridge can do: an event asks, and a bridge says what became of it.

That nobody did it is said, too: a rule that was to do something and did not must not look like one that did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vdev.errors import ConfigError
from vdev.faults.events import FaultQemuDone, FaultWantsQemu

ANSWER_S = 10.0  # a bridge does it at once; QEMU's monitor may be busy
MAX_WISHES = 64  # at a time
MAX_ERROR = 500  # characters of a bridge's words that are kept


class Timer(Protocol):
    """Something that is to happen later."""

    def cancel(self) -> None:
        """It does not."""


class QemuWishes:
    """All of one VM. `schedule` calls something in so many seconds; `is_followed`: whether somebody hears events."""

    def __init__(
        self,
        emit: Callable[[object], None],
        is_followed: Callable[[], bool],
        schedule: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._emit = emit
        self._is_followed = is_followed
        self._schedule = schedule
        self._waiting: dict[tuple[str, int], Timer] = {}

    def emit(self, event: object) -> None:
        """Tell `event`; wait for an answer if it is a wish."""
        self._emit(event)
        if not isinstance(event, FaultWantsQemu):
            return
        if not self._is_followed():
            self._emit(FaultQemuDone(event.rule, event.n, "no bridge follows the events"))
        elif len(self._waiting) >= MAX_WISHES:
            self._emit(FaultQemuDone(event.rule, event.n, f"{MAX_WISHES} others wait for a bridge already"))
        else:
            wish = (event.rule, event.n)
            previous = self._waiting.pop(wish, None)  # of a rule of that name that is gone
            if previous is not None:
                previous.cancel()
            self._waiting[wish] = self._schedule(ANSWER_S, lambda: self._is_late(wish))

    def done(self, rule: str, n: int, error: str = "") -> None:
        """A bridge did it, or `error` says why not. ConfigError if nobody waits for that."""
        timer = self._waiting.pop((rule, n), None)
        if timer is None:
            raise ConfigError("rule", f"nothing is asked of QEMU for firing {n} of {rule!r}", "is it answered already?")
        timer.cancel()
        self._emit(FaultQemuDone(rule, n, error[:MAX_ERROR]))

    def _is_late(self, wish: tuple[str, int]) -> None:
        del self._waiting[wish]
        self._emit(FaultQemuDone(*wish, f"no bridge answered within {ANSWER_S:.0f} s"))
