"""The host's side of PASIDs in tests: a plain allocator with a quota. Answers wait until `answer` lets them go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from vdev.iommu.pasid_set import Refusal, Terms

TERMS = Terms("per-vm", quota=8, first=1, stop=1 << 20)
Question = tuple[int, int, Callable[[int | Refusal], None]]


class PlainAllocator:
    """Grants the lowest PASID it has not given; `told` is what it was told, in order."""

    def __init__(self, terms: Terms = TERMS) -> None:
        self.terms = terms
        self.terms_changed: Callable[[], None] = lambda: None
        self.granted: set[int] = set()
        self.waiting: list[Question] = []
        self.told: list[tuple[str, tuple[int, ...]]] = []
        self.refuse: Refusal | None = None  # every question from now on

    def allocate(self, first: int, stop: int, answer: Callable[[int | Refusal], None]) -> None:
        self.waiting.append((first, stop, answer))

    def free_pending(self, pasids: Sequence[int]) -> None:
        self.told.append(("free-pending", tuple(sorted(pasids))))

    def release(self, pasids: Sequence[int]) -> None:
        self.told.append(("release", tuple(sorted(pasids))))
        self.granted -= set(pasids)

    def attached(self, pasid: int, is_attached: bool) -> None:
        self.told.append(("attached" if is_attached else "detached", (pasid,)))

    # for tests

    def answer(self) -> None:
        """Answer all that was asked, in order; what is asked meanwhile as well."""
        while self.waiting:
            first, stop, answer = self.waiting.pop(0)
            answer(self._choose(first, stop))

    def change(
        self, *, quota: int | None = None, space: Literal["system", "per-vm"] | None = None, stop: int | None = None
    ) -> None:
        """Other terms."""
        now = self.terms
        self.terms = replace(now, quota=now.quota if quota is None else quota, space=space or now.space)
        if stop is not None:
            self.terms = replace(self.terms, stop=stop)
        self.terms_changed()

    def released(self) -> list[int]:
        """All that ever came back, in order."""
        return [pasid for what, pasids in self.told if what == "release" for pasid in pasids]

    def _choose(self, first: int, stop: int) -> int | Refusal:
        if self.refuse is not None:
            return self.refuse
        if len(self.granted) >= self.terms.quota:
            return Refusal.QUOTA
        span = range(max(first, self.terms.first), min(stop, self.terms.stop))
        found = next((pasid for pasid in span if pasid not in self.granted), None)
        if found is None:
            return Refusal.SUPPLY
        self.granted.add(found)
        return found
