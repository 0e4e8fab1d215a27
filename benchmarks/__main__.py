"""`make bench`: pieces in process, the monitor in a crowd, guests against QEMU's own IOMMUs. Never asserts anything.

Results go to build/bench/latest.json and .svg as they come; `show` prints a file again, `compare` two of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import compare, describe, document, plot, table
from benchmarks.guest import rounds
from benchmarks.guest.counts import SCALES, Scale
from benchmarks.inprocess.measure import measure
from benchmarks.monitor.measure import measure as measure_monitor
from benchmarks.results import Results, ResultsError, Sample, Setup, load, save
from benchmarks.summary import summary
from vdev.errors import VdevError

OUTPUT = Path("build/bench/latest.json")
BASELINE = describe.ROOT / "benchmarks" / "baseline.json"
PARTS = ("all", "inprocess", "monitor", "guest")


def command_line() -> argparse.ArgumentParser:
    """The options; the first word says what to do."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="{all,inprocess,monitor,guest,show,compare}")
    for name in PARTS:
        run = commands.add_parser(name, help="measure " + ("every part (the default)" if name == "all" else name))
        _add_run_options(run)
    show = commands.add_parser("show", help="print a result again")
    show.add_argument("file", type=Path, nargs="?", default=OUTPUT)
    both = commands.add_parser("compare", help="print two results side by side, measuring nothing")
    both.add_argument("old", type=Path)
    both.add_argument("new", type=Path, nargs="?", default=OUTPUT)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller batches: under four minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of 5, or 2 with --quick")
    parser.add_argument("--contender", action="append", default=[], choices=list(table.TITLES), help="only these")
    parser.add_argument("--kernel", metavar="NAME", help="of the guest, instead of Debian's cloud kernel")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="then compare with that result")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"instead of {OUTPUT}")
    parser.add_argument(
        "--baseline", action="store_true", help="write benchmarks/baseline.json and .svg, and docs/benchmarks.md"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says; 0, or 1 if a VM failed, 2 for input that cannot be used."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("--"):
        words.insert(0, "all")
    arguments = command_line().parse_args(words)
    try:
        if arguments.command == "show":
            return _print(table.lines(load(arguments.file)))
        if arguments.command == "compare":
            return _print(compare.lines(load(arguments.old), load(arguments.new)))
        return _run(arguments)
    except ResultsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except VdevError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:  # whoever read the table has seen enough; all files are written before it is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was measured is in the output file\n")
        return 130


def _run(arguments: argparse.Namespace) -> int:
    old = load(arguments.compare) if arguments.compare else None  # refused before minutes of measuring
    output = arguments.output or (BASELINE if arguments.baseline else OUTPUT)
    scale = _scale(arguments)
    commit, modified = describe.commit()
    results = Results(
        date=describe.now(), commit=commit, modified=modified, scale=scale.name, machine=describe.machine(),
        load_at_start=describe.load_average(),
    )  # fmt: skip
    screen, whole = _Progress(), True
    if arguments.command in ("all", "inprocess"):
        results.in_process = measure(screen.say)
        _keep(output, results)
    if arguments.command in ("all", "monitor"):
        results.monitor = measure_monitor(screen.say, quick=arguments.quick)
        _keep(output, results)

    def keep(setup: Setup, sample: Sample) -> None:
        results.setup = setup
        results.samples.append(sample)
        _keep(output, results)

    if arguments.command in ("all", "guest"):
        whole = rounds.run(scale, screen.say, keep, arguments.kernel)
    written = _finish(output, results, baseline=arguments.baseline)
    _print(table.lines(results))
    if old is not None:
        _print(["", *compare.lines(old, results)])
    _print(["", *(f"written: {path}" for path in written)])
    return 0 if whole else 1


def _scale(arguments: argparse.Namespace) -> Scale:
    scale = replace(SCALES["quick" if arguments.quick else "full"], contenders=tuple(arguments.contender))
    return replace(scale, rounds=max(arguments.rounds, 1)) if arguments.rounds is not None else scale


def _keep(output: Path, results: Results) -> None:
    save(output, results, summary(results, table.REFERENCES))


def _finish(output: Path, results: Results, *, baseline: bool) -> list[Path]:
    """Write what is made of the file; everything that was written."""
    written = [output]
    if results.samples:
        written.append(output.with_suffix(".svg"))
        written[-1].write_text(plot.svg(results), encoding="utf-8")
    if baseline:
        written.append(document.update(results))
    return written


class _Progress:
    """Lines to stderr with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - self._started:6.1f} s] {line}\n")
        sys.stderr.flush()


def _print(lines: Iterable[str]) -> int:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
