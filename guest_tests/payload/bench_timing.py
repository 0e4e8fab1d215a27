"""How the guest times: equal batches, a warm-up that does not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Count(NamedTuple):
    """`samples` batches are timed, each does its thing `times` times."""

    samples: int
    times: int


def sampled_us(count: Count, run: Callable[[int], None]) -> list[float]:
    """Microseconds for one time, of each batch; `run(n)` does it n times. One more batch before them is the warm-up."""
    samples = []
    run(count.times)
    for _ in range(count.samples):
        start = time.monotonic_ns()
        run(count.times)
        samples.append((time.monotonic_ns() - start) / 1e3 / count.times)
    return samples


def median(values: list[float]) -> float:
    """The middle one, or the mean of the middle two. The library's own takes long to import in a guest."""
    rising = sorted(values)
    middle = len(rising) // 2
    return rising[middle] if len(rising) % 2 else (rising[middle - 1] + rising[middle]) / 2
