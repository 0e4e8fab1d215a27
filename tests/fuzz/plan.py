"""Who fuzzes what for how long: shares of a time over cores, in slices that take turns."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_SLICE_SECONDS = 120  # whoever stops us early has then fuzzed every target about as long
SHORTEST_SLICE_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Slice:
    """One process of one target for so many seconds."""

    target: str
    seconds: int


def plan(names: list[str], seconds: int, jobs: int) -> list[list[Slice]]:
    """For each of `jobs` cores the slices it does, one after the other: together `seconds` on every core.

    Every target gets the same time, in as many rounds as it takes to keep slices short. A round is cut into equal
    strips of time, one strip for each core (so two processes may share a target).
    """
    share = seconds * jobs / len(names)
    rounds = max(1, round(share / LONGEST_SLICE_SECONDS))
    cores: list[list[Slice]] = [[] for _ in range(jobs)]
    for _ in range(rounds):
        for core, slices in enumerate(_strips(names, seconds / rounds, jobs)):
            cores[core] += slices
    return cores


def _strips(names: list[str], seconds: float, jobs: int) -> list[list[Slice]]:
    """One round."""
    share = seconds * jobs / len(names)
    strips: list[list[Slice]] = [[] for _ in range(jobs)]
    core, left = 0, seconds
    for name in names:
        wanted = share
        while wanted > 0 and core < jobs:
            taken = min(wanted, left)
            if round(taken) >= SHORTEST_SLICE_SECONDS:
                strips[core].append(Slice(name, round(taken)))
            wanted, left = wanted - taken, left - taken
            if left < 0.5:
                core, left = core + 1, seconds
    return strips
