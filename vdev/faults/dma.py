"""The point dma: an access that the IOMMU let through, and what becomes of its bytes. `detours` does it."""

from __future__ import annotations

from collections.abc import Mapping

from vdev.faults.detours import Detours


class DmaPoint:
    """In front of guest memory, for every endpoint. Accesses may be delayed: they are what is held."""

    def __init__(self, detours: Detours) -> None:
        self._detours = detours

    def arm(self) -> None:
        """As `point.Hooks`."""
        self._detours.arm("dma")

    def disarm(self) -> None:
        """As `point.Hooks`."""
        self._detours.disarm("dma")

    def release(self, rule: str | None) -> int:
        """As `point.Hooks`."""
        return sum(detour.release(rule) for detour in self._detours.all())

    def held(self) -> Mapping[str, int]:
        """As `point.Hooks`."""
        found: dict[str, int] = {}
        for detour in self._detours.all():
            for rule in detour.held():
                found[rule] = found.get(rule, 0) + 1
        return found

    def clear(self) -> list[str]:
        """As `point.Hooks`."""
        released = [(detour.place.name, detour.release(None)) for detour in self._detours.all()]
        return [f"{count} delayed accesses of {name} go on" for name, count in released if count]
