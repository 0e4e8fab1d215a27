"""The order in which our accesses to shared memory become visible to the guest's CPUs.

The queue is pure and cannot emit a barrier, so it is handed one. `vdev.transports.fence` has the real one and the
reasons why it is one; `NoOrdering` serves tests in which driver and device take turns on one thread.
"""

from __future__ import annotations

from typing import Protocol


class Ordering(Protocol):
    """Memory barriers between this thread and whoever else maps the ring."""

    def acquire(self) -> None:
        """Loads after this see at least what was visible to the load before it."""

    def release(self) -> None:
        """Stores before this are visible before the stores after it."""

    def full(self) -> None:
        """Everything before this is visible before anything after it: also a store before a later load (StoreLoad)."""


class NoOrdering:
    """No barriers at all: only right where both sides of the ring run on one thread."""

    def acquire(self) -> None:
        """Nothing to order."""

    def release(self) -> None:
        """Nothing to order."""

    def full(self) -> None:
        """Nothing to order."""
