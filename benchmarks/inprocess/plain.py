"""Plain operations of Python and of this machine: what the rows of the paths are compared with."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.inprocess.dma import COPY_NBYTES
from vdev.transports.fence import make_ordering


def memcpy() -> Callable[[int], None]:
    """Copy 1 MiB."""
    source, target = memoryview(bytearray(COPY_NBYTES)), memoryview(bytearray(COPY_NBYTES))

    def run(count: int) -> None:
        for _ in range(count):
            target[:] = source

    return run


def dict_update() -> Callable[[int], None]:
    """Set one entry and delete it."""
    table: dict[int, int] = {}

    def run(count: int) -> None:
        for _ in range(count):
            table[1] = 2
            del table[1]

    return run


def fence() -> Callable[[int], None]:
    """The full fence of the rings."""
    full = make_ordering().full

    def run(count: int) -> None:
        for _ in range(count):
            full()

    return run
