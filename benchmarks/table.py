"""Results as text for people: the machine, medians with their spread, ratios paired by round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.guest.machines import CONTENDERS
from benchmarks.results import InProcessRow, MonitorRow, Results
from benchmarks.rows import ROWS
from benchmarks.summary import Spread, contenders_in, cpus_in, in_process_ratio, paired_ratio, spread

TITLES = {contender.name: contender.title for contender in CONTENDERS}
OURS = [contender.name for contender in CONTENDERS if contender.ours]
REFERENCES = [contender.name for contender in CONTENDERS if not contender.ours]
WHAT_WIDTH = 42
NOTHING = "-"


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"


def with_spread(found: Spread | None) -> str:
    """Median, and lowest and highest where there was more than one."""
    if found is None:
        return NOTHING
    rest = f" [{number(found.low)}..{number(found.high)}]" if found.count > 1 else ""
    return number(found.median) + rest


def vcpus(cpus: int) -> str:
    """The words for a number of vCPUs."""
    return "one vCPU" if cpus == 1 else f"{cpus} vCPUs, both busy" if cpus == 2 else f"{cpus} vCPUs, all busy"


def lines(results: Results) -> Iterator[str]:
    """Everything."""
    yield from about(results)
    if results.in_process:
        yield ""
        yield from in_process(results.in_process)
    if results.monitor:
        yield ""
        yield from monitor(results.monitor)
    if results.setup is not None:
        yield from guest(results)


def about(results: Results) -> Iterator[str]:
    """Where the numbers come from."""
    host = results.machine
    dirty = " with changes" if results.modified else ""
    yield f"{results.date}, commit {results.commit or 'unknown'}{dirty}, {results.scale}"
    yield f"machine: {host.cpu}, {host.cores} cores, {host.memory_mib} MiB, Linux {host.kernel}, Python {host.python}"
    load = f"load average: {results.load_at_start:.2f} at the start"
    if results.samples:
        load += f", {results.load:.2f} at most before a VM; others kept up to {results.others:.2f} CPUs busy during one"
    yield load
    if (setup := results.setup) is not None:
        yield f"guests: QEMU {setup.qemu}, {setup.accel}, Linux {setup.guest_kernel}, {setup.memory}, {setup.append}"


def in_process(rows: Sequence[InProcessRow]) -> Iterator[str]:
    """The in-process part."""
    yield "In process: medians of interleaved rounds, and ratios to plain operations of the same rounds"
    yield ""
    yield f"{'what':{WHAT_WIDTH}} {'median us':>10} {'min':>9} {'max':>9}  ratio"
    for row in rows:
        ratio = in_process_ratio(rows, row)
        said = f"{ratio:8.1f} x {row.baseline}" if ratio is not None else ""
        times = f"{statistics.median(row.us):10.2f} {min(row.us):9.2f} {max(row.us):9.2f}"
        yield f"{row.name:{WHAT_WIDTH}} {times}  {said}".rstrip()


def monitor(rows: Sequence[MonitorRow]) -> Iterator[str]:
    """The monitor part: each way's quantiles, and below each pair what the bridge adds."""
    yield "Monitor: milliseconds from a command to its reply; in the crowd one client never reads, one sends no JSON"
    yield ""
    yield f"{'what':{WHAT_WIDTH}} {'commands':>10} {'p50':>9} {'p99':>9}"
    for direct, bridge in zip(rows[::2], rows[1::2], strict=True):
        for row in (direct, bridge):
            yield f"{row.name:{WHAT_WIDTH}} {row.count:10} {row.p50_ms:9.2f} {row.p99_ms:9.2f}"
        added = (bridge.p50_ms - direct.p50_ms, bridge.p99_ms - direct.p99_ms)
        yield f"{'  added by the bridge':{WHAT_WIDTH}} {'':10} {added[0]:9.2f} {added[1]:9.2f}"


def guest(results: Results) -> Iterator[str]:
    """The guest part: for each number of vCPUs one table of medians and one of ratios, then what failed."""
    contenders = contenders_in(results)
    for cpus in cpus_in(results):
        yield ""
        yield f"Guest with {vcpus(cpus)}: median [lowest..highest] of the rounds"
        yield ""
        yield from aligned(_medians(results, cpus, contenders))
        if doorbells := _doorbells(results, cpus):
            yield doorbells
        ratios = _ratios(results, cpus, contenders)
        if len(ratios[0]) > 1:
            yield ""
            yield f"Guest with {vcpus(cpus)}: vdev / QEMU, paired by round (below 1 vdev is faster, in 1/s above 1)"
            yield ""
            yield from aligned(ratios)
    for sample in results.samples:
        if sample.problem:
            yield ""
            who = f"{TITLES.get(sample.contender)}, {vcpus(sample.cpus)}"
            yield f"FAILED, round {sample.round}, {who}: {sample.problem}"


def _medians(results: Results, cpus: int, contenders: Sequence[str]) -> list[list[str]]:
    head = ["what", "unit", *(TITLES.get(name, name) for name in contenders)]
    rows = [
        [row.title, row.unit, *(with_spread(spread(results, row.name, name, cpus)) for name in contenders)]
        for row in ROWS
    ]
    return [head, *rows]


def _ratios(results: Results, cpus: int, contenders: Sequence[str]) -> list[list[str]]:
    pairs = [(ours, theirs) for theirs in REFERENCES for ours in OURS if {ours, theirs} <= set(contenders)]
    head = ["what", *(f"{_short(ours)} / {_short(theirs)}" for ours, theirs in pairs)]
    rows = [
        [row.title, *(with_spread(paired_ratio(results, row.name, cpus, *pair)) for pair in pairs)]
        for row in ROWS
        if row.compared
    ]
    return [head, *rows]


def _doorbells(results: Results, cpus: int) -> str:
    """How often the guest had to ring vdev's doorbell, in percent of its requests; nothing without vdev."""
    found = []
    for name in OURS:
        facts = [one.facts for one in results.samples if (one.contender, one.cpus) == (name, cpus) and one.facts]
        shares = Spread.of(100 * fact["doorbells"] / fact["requests"] for fact in facts if fact.get("requests"))
        found += [f"{_short(name)} {with_spread(shares)}"] if shares else []
    return f"requests the guest had to ring a doorbell for, in percent: {', '.join(found)}" if found else ""


def _short(contender: str) -> str:
    return TITLES[contender].removeprefix("vdev, ").removeprefix("QEMU ")


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
