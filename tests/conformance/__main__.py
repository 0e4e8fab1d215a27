"""python -m tests.conformance run --mode strict [--clauses D16,G3] [words for pytest]: the suite in this process."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.conformance import run
from tests.conformance.table import MODES, ROOT, SUITE


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    in_process = commands.add_parser("run", help="run the suite in process, as an ordinary pytest")
    in_process.add_argument("--mode", choices=MODES, action="append", help="one mode; by default both, one by one")
    in_process.add_argument("--clauses", default="", metavar="D16,G3", help="only tests named for one of these")
    in_process.add_argument("--suite", type=Path, default=SUITE, help=argparse.SUPPRESS)
    in_process.add_argument(
        "--outcomes", type=Path, metavar="FILE", help="write outcomes there, as JSON (of the last mode)"
    )
    options, words = parser.parse_known_args()
    return _run(options, words)


def _run(options: argparse.Namespace, words: list[str]) -> int:
    status = 0
    for mode in options.mode or MODES:
        argv = run.command(
            mode,
            clauses=options.clauses.split(","),
            words=words,
            suite=options.suite.resolve(),
            outcomes=options.outcomes and options.outcomes.resolve(),
        )
        status |= subprocess.run(argv, cwd=ROOT, env=run.environment(), check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
