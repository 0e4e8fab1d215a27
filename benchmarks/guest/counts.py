"""How often the guest does what: batches and their size, in full and for a quick look. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

Counts = dict[str, tuple[int, int]]  # phase -> batches, times in a batch

FULL: Counts = {
    "floor": (20, 200),
    "page": (40, 50),
    "scattered": (40, 5),
    "large": (20, 1),
    "rng": (20, 50),
    "turns": (1, 3),
    "counted": (1, 100),
    "pasid": (20, 50),
}
QUICK: Counts = {
    "floor": (10, 200),
    "page": (20, 50),
    "scattered": (20, 3),
    "large": (8, 1),
    "rng": (10, 40),
    "turns": (1, 2),
    "counted": (1, 50),
    "pasid": (10, 30),
}
SMALLEST: Counts = dict.fromkeys(FULL, (2, 2)) | {"turns": (1, 1), "counted": (1, 10)}  # for tests


@dataclass(frozen=True)
class Scale:
    """One way to run the whole thing."""

    name: str
    rounds: int
    counts: Counts
    cpus: tuple[int, ...] = (1, 2)  # more than one: all others are kept busy
    contenders: tuple[str, ...] = field(default=())  # by name; none named: all
    limit_s: float | None = None  # a round that would end later, judged by those before it, is left out


SCALES = {"full": Scale("full", 5, FULL), "quick": Scale("quick", 2, QUICK, limit_s=200)}
