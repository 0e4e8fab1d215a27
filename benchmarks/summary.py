"""Statistics: median and spread of a row, and ratios of two contenders paired by round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.results import InProcessRow, Results
from benchmarks.rows import ROWS


@dataclass(frozen=True)
class Spread:
    """The median of `count` values, the lowest and the highest."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where there are no values."""
        kept = sorted(values)
        return cls(statistics.median(kept), kept[0], kept[-1], len(kept)) if kept else None


def values(results: Results, row: str, contender: str, cpus: int) -> list[float]:
    """One value a round, in the order of the rounds; rounds that failed are left out."""
    return list(_by_round(results, row, contender, cpus).values())


def spread(results: Results, row: str, contender: str, cpus: int) -> Spread | None:
    """Median, lowest and highest over the rounds."""
    return Spread.of(values(results, row, contender, cpus))


def paired_ratio(results: Results, row: str, cpus: int, ours: str, theirs: str) -> Spread | None:
    """Of each round, ours by theirs: what slows the machine down slows both. Rounds without a positive pair count not.

    A difference (`dma-pair`) may come out as nothing or less, and then there is no ratio to it.
    """
    mine, other = _by_round(results, row, ours, cpus), _by_round(results, row, theirs, cpus)
    return Spread.of(mine[number] / other[number] for number in mine if mine[number] > 0 and other.get(number, 0.0) > 0)


def _by_round(results: Results, row: str, contender: str, cpus: int) -> dict[int, float]:
    return {
        sample.round: sample.values[row]
        for sample in results.samples
        if (sample.contender, sample.cpus) == (contender, cpus) and row in sample.values
    }


def contenders_in(results: Results) -> list[str]:
    """The contenders there are samples of, in the order they first came."""
    return list(dict.fromkeys(sample.contender for sample in sorted(results.samples, key=lambda one: one.round)))


def cpus_in(results: Results) -> list[int]:
    """The numbers of vCPUs there are samples of."""
    return sorted({sample.cpus for sample in results.samples})


def in_process_ratio(rows: Sequence[InProcessRow], row: InProcessRow) -> float | None:
    """The row's median by its baseline's."""
    baselines = [other for other in rows if other.name == row.baseline]
    return statistics.median(row.us) / statistics.median(baselines[0].us) if baselines else None


def summary(results: Results, references: Sequence[str]) -> list[dict[str, Any]]:
    """Plain data for the file: each row of each contender, and its ratio to each of `references`."""
    found = []
    for cpus in cpus_in(results):
        for row in ROWS:
            for contender in contenders_in(results):
                entry = {"cpus": cpus, "row": row.name, "unit": row.unit, "contender": contender}
                if (whole := spread(results, row.name, contender, cpus)) is None:
                    continue
                others = [name for name in references if row.compared and contender not in references and name]
                ratios = {name: paired_ratio(results, row.name, cpus, contender, name) for name in others}
                found.append({**entry, **_plain(whole), "ratios": {n: _plain(r) for n, r in ratios.items() if r}})
    return found


def _plain(found: Spread) -> dict[str, float]:
    digits = {name: round(value, 4) for name, value in asdict(found).items()}
    return {**digits, "count": found.count}
