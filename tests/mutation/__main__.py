"""`python -m tests.mutation`: runs mutations and says which test noticed each.

Exit 0: all were killed, each clause by a test named for it (asked only of a run of all). Exit 1: not so, and why.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from tests.mutation import report
from tests.mutation.runner import Runner, Verdict
from tests.mutation.table import Mutation, mutations


def chosen(rows: Sequence[Mutation], count: int, seed: str) -> list[Mutation]:
    """`count` of the rows, the same for the same seed."""
    return random.Random(seed).sample(sorted(rows, key=lambda row: row.id), min(count, len(rows)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Run mutations of the device.")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these rows")
    parser.add_argument("--clause", nargs="+", metavar="D16", help="the rows of these clauses")
    parser.add_argument("--file", nargs="+", metavar="PATH", help="the rows of these source files")
    parser.add_argument("--sample", type=int, metavar="N", help="N rows, chosen by --seed")
    parser.add_argument("--seed", default="", metavar="TEXT", help="such as the commit's hash")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    parser.add_argument("--quick", action="store_true", help="a first look: survivors may be none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there as well")
    parser.add_argument("--record", action="store_true", help="write docs/mutations.md, if all is well")
    return parser.parse_args(arguments)


def _selected(options: argparse.Namespace) -> list[Mutation]:
    rows = mutations()
    if options.only:
        unknown = set(options.only) - {row.id for row in rows}
        if unknown:
            sys.exit(f"there is no mutation {', '.join(sorted(unknown))}")
        rows = [row for row in rows if row.id in options.only]
    if options.clause:
        rows = [row for row in rows if set(row.clauses) & set(options.clause)]
    if options.file:
        rows = [row for row in rows if row.file in options.file]
    return rows if options.sample is None else chosen(rows, options.sample, options.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    rows = _selected(options)
    is_whole = not (options.only or options.clause or options.file or options.sample is not None)
    began = time.monotonic()
    verdicts: list[Verdict] = []
    with closing(Runner(options.jobs, is_quick=options.quick)) as runner:
        if is_whole:
            unchanged = runner.check_unchanged()
            report.show_unchanged(unchanged)
            if unchanged.kind != "survived":
                return 1
        for verdict in runner.run(rows):
            verdicts.append(verdict)
            report.show(verdict, len(verdicts), len(rows))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode(verdicts))
    fine = report.summary(verdicts, time.monotonic() - began, is_whole=is_whole)
    if options.record and is_whole and fine:
        report.record(verdicts)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
