"""Log lines that a stranger can cause: a handful of each kind in a minute, and then a count."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

LINES = 8  # of one key in one interval
INTERVAL_S = 60.0


@dataclass(slots=True)
class _Window:
    began: float
    seen: int = 0
    level: int = logging.INFO


class LimitedLog:
    """At most `lines` lines per key in `interval_s`; what was kept back is told in one line when the next one comes.

    Keys are chosen by the caller from a fixed set (a function's name and a kind of trouble), never by a peer.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, lines: int = LINES, interval_s: float = INTERVAL_S
    ) -> None:
        self._clock = clock
        self._lines = lines
        self._interval_s = interval_s
        self._windows: dict[tuple[str, str], _Window] = {}

    def log(self, logger: logging.Logger, level: int, key: tuple[str, str], text: str) -> None:
        """Write `text` to `logger`, unless enough of its kind was written; `key` is (whose, what kind)."""
        now = self._clock()
        window = self._windows.get(key)
        if window is None or now - window.began >= self._interval_s:
            self._tell(logger, key, window)
            window = self._windows[key] = _Window(now)
        window.seen += 1
        window.level = max(window.level, level)
        if window.seen < self._lines:
            logger.log(level, "%s", text)
        elif window.seen == self._lines:
            logger.log(level, "%s (more like it are only counted for up to %.0f s)", text, self._interval_s)

    def flush(self, logger: logging.Logger) -> None:
        """Tell what was kept back, and begin anew."""
        for key, window in self._windows.items():
            self._tell(logger, key, window)
        self._windows.clear()

    def _tell(self, logger: logging.Logger, key: tuple[str, str], window: _Window | None) -> None:
        if window is not None and window.seen > self._lines:
            whose, kind = key
            logger.log(window.level, "%s: %d more lines like it: %s", whose, window.seen - self._lines, kind)
