"""One PASID that a VM has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Held:
    """One PASID of the set. `unit` is the one it was allocated through; "" is the host itself."""

    pasid: int
    unit: str
    by_attach: bool = False  # unmanaged: an attach allocated it, and the last detach frees it
    freed: bool = False
    npairs: int = 0

    @property
    def is_host(self) -> bool:
        """Not the driver's: as if it were not in the set (P55)."""
        return not self.unit

    @property
    def state(self) -> str:
        """A word for queries."""
        return "free-pending" if self.freed else "attached" if self.npairs else "allocated"
