"""What happens between a VM and its host's PASID authority, beside what the set itself tells (`vdev.iommu.events`)."""

from __future__ import annotations

from collections.abc import Iterable
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


def ranges_of(pasids: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges, inclusive and rising."""
    found: list[tuple[int, int]] = []
    for pasid in sorted(set(pasids)):
        if found and found[-1][1] == pasid - 1:
            found[-1] = (found[-1][0], pasid)
        else:
            found.append((pasid, pasid))
    return found


def ranges_text(pasids: Iterable[int], limit: int = 8) -> str:
    """The same in words; so many ranges, and how many more there are."""
    ranges = ranges_of(pasids)
    shown = [f"{first:#x}" if first == last else f"{first:#x}..{last:#x}" for first, last in ranges[:limit]]
    return ", ".join(shown) + (f" and {len(ranges) - limit} more" if len(ranges) > limit else "")
