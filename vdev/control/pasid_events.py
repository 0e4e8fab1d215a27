"""What happens between a VM and its host's PASID authority, beside what the set itself tells (`vdev.iommu.events`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PasidLease:
    """The lease has another state: unbound (no QEMU yet, or no set for it), held, lost (the authority is away)."""

    state: str
    problem: str = ""  # why it is not held, where there is more to say


@dataclass(slots=True)
class PasidsReclaimed:
    """An administrator took these back; nothing uses them any more."""

    pasids: tuple[int, ...]
    reason: str
