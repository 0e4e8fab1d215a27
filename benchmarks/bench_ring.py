"""Microseconds per request of the device's side of a split ring: pop, push and publish one at a time.

Run as `python -m benchmarks.bench_ring`. Best of several passes over a full ring; measures, asserts nothing.
"""

from __future__ import annotations

import time

from tests.support.driver import DriverRing
from vdev.transports.fence import make_ordering
from vdev.virtio.ordering import NoOrdering, Ordering

PASSES = 30
SIZE = 256


def one_pass(ordering: Ordering, *, event_idx: bool, indirect: bool) -> float:
    """Microseconds per request over one ring filled with 2-descriptor chains."""
    driver = DriverRing(memoryview(bytearray(1 << 20)), SIZE, event_idx=event_idx)
    queue = driver.device_queue(ordering)
    count = SIZE // 2
    for _ in range(count):
        driver.add([bytes(36)], [4], indirect=indirect)
    driver.publish()
    started = time.perf_counter_ns()
    while (chain := queue.pop()) is not None:
        queue.push(chain, 4)
        queue.publish()
    return (time.perf_counter_ns() - started) / count / 1000


def main() -> None:
    """One line per style, with and without real barriers."""
    orderings: dict[str, Ordering] = {"no barriers": NoOrdering(), "futex barriers": make_ordering()}
    for name, ordering in orderings.items():
        for event_idx in (False, True):
            for indirect in (False, True):
                best = min(one_pass(ordering, event_idx=event_idx, indirect=indirect) for _ in range(PASSES))
                print(f"{name:15} {event_idx=!s:5} {indirect=!s:5} {best:5.2f} us/request")


if __name__ == "__main__":
    main()
