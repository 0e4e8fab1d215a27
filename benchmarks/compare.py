"""Two results side by side, and what of them cannot be compared, with the reason. Pure.

A ratio paired by round carries over to another machine better than a time does, but neither survives another QEMU or
guest kernel: those change both sides of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bridge import table as monitor
from benchmarks.bridge.loads import LOADS, WAYS
from benchmarks.bridge.loads import ROWS as MONITOR_ROWS
from benchmarks.results import Results
from benchmarks.rows import ROWS
from benchmarks.summary import Spread, contenders_in, cpus_in, in_process_ratio, paired_ratio, spread
from benchmarks.table import OURS, REFERENCES, TITLES, vcpus
from benchmarks.text import aligned, number, with_spread

BUSY = 0.2  # CPUs busy with others during a VM, beyond which its numbers are theirs, too


@dataclass(frozen=True)
class Difference:
    """Something the two runs do not have in common, and what it rules out."""

    what: str
    old: str
    new: str
    times: bool = True  # absolute times mean nothing side by side
    ratios: bool = False  # nor do vdev's ratios to QEMU


def differences(old: Results, new: Results) -> list[Difference]:
    """All that matter, the machine's first."""
    found = [
        Difference("CPU", old.machine.cpu, new.machine.cpu),
        Difference("cores", str(old.machine.cores), str(new.machine.cores)),
        Difference("host kernel", old.machine.kernel, new.machine.kernel),
        Difference("host Python", old.machine.python, new.machine.python, ratios=True),
    ]
    if old.setup is not None and new.setup is not None:
        for what, name in (
            ("QEMU", "qemu"), ("accelerator", "accel"), ("guest kernel", "guest_kernel"),
            ("kernel command line", "append"), ("guest RAM", "memory"),
        ):  # fmt: skip
            found.append(Difference(what, getattr(old.setup, name), getattr(new.setup, name), ratios=True))
    return [one for one in found if one.old != one.new]


def lines(old: Results, new: Results) -> Iterator[str]:
    """The comparison as text."""
    for name, results in (("old", old), ("new", new)):
        yield f"{name}: {results.date}, commit {results.commit or 'unknown'}, {results.scale}"
    found = differences(old, new)
    no_times = [one for one in found if one.times]
    no_ratios = [one for one in found if one.ratios]
    for what, reasons in (("absolute times", no_times), ("ratios to QEMU or to plain operations", no_ratios)):
        if reasons:
            yield f"cannot be compared: {what}. They differ in"
            yield from (f"  {one.what}: {one.old or 'unknown'} / {one.new or 'unknown'}" for one in reasons)
    yield from _remarks(old, new)
    yield from _in_process(old, new, times=not no_times, ratios=not no_ratios)
    if not no_times and old.monitor_qemu == new.monitor_qemu:
        yield from _monitor(old, new)
    for cpus in sorted(set(cpus_in(old)) & set(cpus_in(new))):
        if not no_times:
            yield from _guest_times(old, new, cpus)
        if not no_ratios:
            yield from _guest_ratios(old, new, cpus)


def _remarks(old: Results, new: Results) -> Iterator[str]:
    for name, results in (("old", old), ("new", new)):
        if results.others > BUSY:
            yield f"take care: in the {name} run others kept up to {results.others:.2f} CPUs busy during a VM"
        if failed := sum(bool(sample.problem) for sample in results.samples):
            yield f"take care: {failed} VM(s) of the {name} run failed and are left out"
    if old.setup and new.setup and old.setup.counts != new.setup.counts:
        yield f"take care: batches differ ({old.scale} / {new.scale}), medians of small ones are less steady"
    for name, results, other in (("old", old, new), ("new", new, old)):
        if results.setup is not None and other.setup is None:
            yield f"only the {name} run has a guest part"
        if results.monitor and not other.monitor:
            yield f"only the {name} run has the monitor's part"


def _in_process(old: Results, new: Results, *, times: bool, ratios: bool) -> Iterator[str]:
    before = {row.name: row for row in old.in_process}
    rows = [["in process", "old", "new", "old/new"]]
    for row in new.in_process:
        if (was := before.get(row.name)) is None:
            continue
        pair = (in_process_ratio(old.in_process, was), in_process_ratio(new.in_process, row))
        if ratios and was.baseline == row.baseline and None not in pair:
            rows.append([f"{row.name}, x {row.baseline}", *_change(*(value or 0.0 for value in pair))])
        if times:
            rows.append([f"{row.name}, us", *_change(statistics.median(was.us), statistics.median(row.us))])
    yield from _block(rows)


def _monitor(old: Results, new: Results) -> Iterator[str]:
    """What the bridge adds to the latency of a command: times, as a difference has no ratio."""
    rows = [["monitor: added by the bridge, ms", "old", "new", "old/new", ""]]
    for load in LOADS:
        for title, name in (
            (f"{row.title}, {p}", f"{row.name}-{p}") for row in MONITOR_ROWS for p in monitor.PERCENTILES
        ):
            sides = [[monitor.values(one.monitor, load.name, way, name) for way in WAYS] for one in (old, new)]
            rows += _pair(f"{title}, {load.title}", [monitor.added(*side) for side in sides], better_above=False)
    yield from _block(rows)


def _guest_times(old: Results, new: Results, cpus: int) -> Iterator[str]:
    rows = [[f"{vcpus(cpus)}", "old", "new", "old/new", ""]]
    for row in ROWS:
        for contender in contenders_in(new):
            pair = [spread(results, row.name, contender, cpus) for results in (old, new)]
            title = f"{row.title}, {TITLES.get(contender, contender)}, {row.unit}"
            rows += _pair(title, pair, better_above=row.higher_is_better)
    yield from _block(rows)


def _guest_ratios(old: Results, new: Results, cpus: int) -> Iterator[str]:
    rows = [[f"{vcpus(cpus)}: vdev / QEMU", "old", "new", "old/new", ""]]
    for row in (row for row in ROWS if row.compared):
        for theirs in REFERENCES:
            for ours in OURS:
                pair = [paired_ratio(results, row.name, cpus, ours, theirs) for results in (old, new)]
                title = f"{row.title}, {TITLES[ours].removeprefix('vdev, ')} / {TITLES[theirs].removeprefix('QEMU ')}"
                rows += _pair(title, pair, better_above=row.higher_is_better)
    yield from _block(rows)


def _pair(title: str, pair: list[Spread | None], *, better_above: bool) -> list[list[str]]:
    old, new = pair
    if old is None or new is None:
        return []
    change = number(old.median / new.median) if new.median else "-"
    return [[title, with_spread(old), with_spread(new), change, verdict(old, new, better_above=better_above)]]


def verdict(old: Spread, new: Spread, *, better_above: bool) -> str:
    """A word only where not one round of the one run is within the other's spread."""
    if min(old.count, new.count) < 2 or (new.low <= old.high and old.low <= new.high):
        return ""
    return "better" if (new.low > old.high) == better_above else "worse"


def _change(old: float, new: float) -> list[str]:
    return [number(old), number(new), number(old / new) if new else "-"]


def _block(rows: list[list[str]]) -> Iterator[str]:
    if len(rows) > 1:
        yield ""
        yield from aligned(rows)
