"""The conformance suite in process, and the record and the page that are made of all tests for clauses."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.conformance import run
from tests.conformance.collected import NotCollected
from tests.conformance.record import record, write_page
from tests.conformance.results import ResultsError
from tests.conformance.table import MODES, ROOT, SUITE, TableError
from vdev.errors import VdevError
from vdev.parts.progress import to_stderr


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    all_of_them = commands.add_parser("record", help="make conformance: run all, write the record and the page")
    all_of_them.add_argument("--new", action="store_true", help="in guests only what the record has not, or not passed")
    commands.add_parser("page", help="make the page again, of the table and the record as they are")
    in_process = commands.add_parser(
        "run", allow_abbrev=False, help="run the suite in process; other words are pytest's"
    )
    in_process.add_argument("--mode", choices=MODES, action="append", help="one mode; by default both, one by one")
    in_process.add_argument("--clauses", default="", metavar="D16,G3", help="only tests named for one of these")
    in_process.add_argument("--suite", type=Path, default=SUITE, help=argparse.SUPPRESS)
    in_process.add_argument("--outcomes", type=Path, metavar="FILE", help="write outcomes there (of the last mode)")
    options, words = parser.parse_known_args()
    if words and options.command != "run":
        parser.error(f"unknown: {' '.join(words)}")
    try:
        return _done(options, words)
    except (ResultsError, TableError, NotCollected, VdevError) as error:
        to_stderr(str(error))
        return 2


def _done(options: argparse.Namespace, words: list[str]) -> int:
    if options.command == "record":
        return record(options.new)
    if options.command == "page":
        write_page()
        return 0
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
