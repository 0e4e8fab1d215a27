"""Waiting for memory to change: spin shortly, then sleep between looks, and always come to an end."""

from __future__ import annotations

import time
from collections.abc import Callable

SPIN_NS = 2_000_000  # most answers come within this
NAP_S = 0.0002  # later the device's process may need our CPU


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `condition` became true within `timeout_s`; it is looked at once more at the end."""
    started = time.monotonic_ns()
    while not condition():
        waited = time.monotonic_ns() - started
        if waited > timeout_s * 1e9:
            return condition()
        if waited > SPIN_NS:
            time.sleep(NAP_S)
    return True
