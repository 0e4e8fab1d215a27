"""How parts tell the person what they are doing: one plain line at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable

Say = Callable[[str], None]

PERCENT_STEP = 20  # a line per step: a 40 MB download says five lines, not two hundred


def to_stderr(line: str) -> None:
    """Write `line` to stderr at once, so that a pipe or a CI log shows it while it is true."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def quiet(line: str) -> None:
    """Say nothing."""


class Percent:
    """Turns a stream of percentages into a line per step, never backwards."""

    def __init__(self, what: str, say: Say) -> None:
        self._what = what
        self._say = say
        self._next = PERCENT_STEP

    def update(self, percent: float) -> None:
        """Say `percent` (0..100) if a new step is reached."""
        if percent < self._next:
            return
        self._say(f"{self._what}: {int(percent)} %")
        while self._next <= percent:
            self._next += PERCENT_STEP
