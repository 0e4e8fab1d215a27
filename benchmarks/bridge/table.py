"""The monitor's part as text and as plain data: latencies, and what the bridge adds. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.bridge.loads import LOADS, ROWS, Load
from benchmarks.results import MonitorSample
from benchmarks.summary import Spread
from benchmarks.text import aligned, with_spread

PERCENTILES = ("p50", "p99")
TARGET = "asked for (issue 5): with 20 clients, added p50 <= 2 ms and p99 <= 20 ms"


def lines(samples: Sequence[MonitorSample], qemu: str) -> Iterator[str]:
    """A table of each load, then what failed."""
    yield ""
    yield f"Monitor (QEMU {qemu}, no guest): ms from a command to its reply, median [lowest..highest] of the rounds"
    yield "direct: each client has a monitor of its own; bridge: all share one, and a vdev follows stop and cont"
    yield "added: bridge less direct in the same round; over one alone: less the p50 or p99 of a direct client alone"
    yield TARGET
    for load in LOADS:
        rows = _rows(samples, load)
        if len(rows) > 1:
            yield ""
            yield from aligned(rows)
            yield from _facts(samples, load)
    for sample in samples:
        if sample.problem:
            yield f"FAILED, round {sample.round}, {sample.load_name}, {sample.way}: {sample.problem}"


def _rows(samples: Sequence[MonitorSample], load: Load) -> list[list[str]]:
    found = [[load.title, "direct", "bridge", "added", "over one alone"]]
    for row in ROWS:
        for percentile in PERCENTILES:
            name = f"{row.name}-{percentile}"
            direct, bridge = (values(samples, load.name, way, name) for way in ("direct", "bridge"))
            if direct or bridge:
                alone = values(samples, "alone", "direct", name)
                over = added(alone, bridge) if load.name != "alone" else None
                cells = [Spread.of(direct.values()), Spread.of(bridge.values()), added(direct, bridge), over]
                found.append([f"{row.title}, {percentile}", *map(with_spread, cells)])
    return found


def _facts(samples: Sequence[MonitorSample], load: Load) -> Iterator[str]:
    """What else there was: how much each side had to do for these latencies."""
    for fact, what in (("commands_per_second", "commands/s"), ("malformed_per_second", "malformed inputs answered/s")):
        sides = []
        for way in ("direct", "bridge"):
            counts = [one.facts.get(fact, 0) for one in samples if (one.load_name, one.way) == (load.name, way)]
            sides += [f"{way} {with_spread(Spread.of(counts))}"] if any(counts) else []
        if sides:
            yield f"{what}: {', '.join(sides)}"


def values(samples: Sequence[MonitorSample], load: str, way: str, name: str) -> dict[int, float]:
    """By round; rounds that failed are left out."""
    chosen = [sample for sample in samples if (sample.load_name, sample.way) == (load, way)]
    return {sample.round: sample.values[name] for sample in chosen if name in sample.values}


def added(direct: dict[int, float], bridge: dict[int, float]) -> Spread | None:
    """Of each round that has both, bridge less direct."""
    return Spread.of(bridge[number] - direct[number] for number in bridge if number in direct)


def summary(samples: Sequence[MonitorSample]) -> list[dict[str, Any]]:
    """Plain data for the file."""
    found = []
    for load in LOADS:
        for name in (f"{row.name}-{percentile}" for row in ROWS for percentile in PERCENTILES):
            direct, bridge = (values(samples, load.name, way, name) for way in ("direct", "bridge"))
            spreads = {"direct": Spread.of(direct.values()), "bridge": Spread.of(bridge.values())}
            spreads |= {"added": added(direct, bridge)}
            if direct or bridge:
                sides = {side: asdict(spread) for side, spread in spreads.items() if spread}
                found.append({"monitor": load.name, "row": name, "unit": "ms", **sides})
    return found
