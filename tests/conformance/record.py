"""`make conformance`: run every test that is named for a clause, write down what became of it, and make the page."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conformance import checks, run
from tests.conformance.collected import all_tests, host_files
from tests.conformance.page import PAGE, load_answers, page
from tests.conformance.results import RESULTS, Results, Tally, count, facts_now, load_results, merged, text_of
from tests.conformance.table import MODES, ROOT, SUITE, Axis, all_clauses, load_table
from vdev.parts.progress import to_stderr as say


def record() -> int:
    """Run all, write the record and the page; 1 if anything is wrong with either."""
    sections = load_table()
    facts = facts_now()
    tally = merged(*(_in_process(mode) for mode in MODES), _in_guests_and_on_the_host())
    results = Results(facts, tally)
    RESULTS.write_text(text_of(results), encoding="utf-8")
    write_page()
    clauses, collected = all_clauses(sections), all_tests()
    problems = [
        *checks.unknown(clauses, collected),
        *checks.untested(clauses, collected),
        *checks.unrecorded(collected, tally),
        *checks.failing(tally),
    ]
    for problem in problems:
        say(problem)
    say(f"docs/{RESULTS.name} and docs/{PAGE.name} are written; {len(problems)} problem(s)")
    return 1 if problems else 0


def write_page() -> None:
    """The page of the table and the record as they are. Raises ResultsError."""
    PAGE.write_text(page(load_table(), load_results(), load_answers()), encoding="utf-8")


def _in_process(mode: str) -> Tally:
    say(f"conformance: {mode}, in process")
    with tempfile.TemporaryDirectory(prefix="vdev-") as directory:
        path = Path(directory) / "outcomes.json"
        argv = run.command(mode, words=["-q", "--tb=short"], outcomes=path)
        subprocess.run(argv, cwd=ROOT, env=run.environment(), check=False)
        found = json.loads(path.read_text())["tests"] if path.exists() else []
    where, axis = SUITE.relative_to(ROOT).as_posix(), Axis("in-process", mode)
    rows = ((f"{where}/{row['test'].partition('[')[0]}", axis.id, row["outcome"]) for row in found)
    return count(row for row in rows if checks.clauses_named(row[0]))


def _in_guests_and_on_the_host() -> Tally:
    say("conformance: in guests, and what runs on the host")
    with tempfile.TemporaryDirectory(prefix="vdev-") as directory:
        path = Path(directory) / "tally.json"
        what = [SUITE, *host_files()]
        argv = [sys.executable, "-m", "pytest", f"--conformance-record={path}", *map(str, what)]
        subprocess.run(argv, cwd=ROOT, check=False)
        tally: Tally = json.loads(path.read_text()) if path.exists() else {}
        return tally
