"""`make conformance`: run every test that is named for a clause, write down what became of it, and make the page."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conformance import checks, run
from tests.conformance.collected import all_tests
from tests.conformance.page import PAGE, load_answers, page
from tests.conformance.results import RESULTS, Results, Tally, count, facts_now, load_results, merged, text_of
from tests.conformance.table import MODES, ROOT, SUITE, Axis, all_clauses, load_table
from vdev.parts.progress import to_stderr as say


def record(only_new: bool = False) -> int:
    """Run all, write the record and the page; 1 if anything is wrong with either.

    `only_new`: in guests and on the host only what is not in the record as it is now, or has not passed. The rest keeps
    its outcomes. Raises PartsError, NotCollected, and with `only_new` ResultsError.
    """
    clauses, collected = all_clauses(load_table()), all_tests()
    kept = load_results() if only_new else Results(facts_now(), {})
    tests = {test: axes for test, axes in kept.tests.items() if test in collected}
    stale = checks.stale_tests(collected, tests)
    tests = merged({test: axes for test, axes in tests.items() if test not in stale}, _in_guests_and_on_the_host(stale))
    tests = merged(tests, *(_in_process(mode) for mode in MODES))
    RESULTS.write_text(text_of(Results(kept.facts, tests)), encoding="utf-8")
    write_page()
    problems = [
        *checks.unknown(clauses, collected),
        *checks.untested(clauses, collected),
        *checks.unrecorded(collected, tests),
        *checks.failing(tests),
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


def _in_guests_and_on_the_host(tests: set[str]) -> Tally:
    say(f"conformance: {len(tests)} tests in guests and on the host")
    if not tests:
        return {}
    with tempfile.TemporaryDirectory(prefix="vdev-") as directory:
        answer, wanted = Path(directory) / "tally.json", Path(directory) / "tests.json"
        wanted.write_text(json.dumps(sorted(tests)))
        options = [f"--conformance-record={answer}", f"--conformance-tests={wanted}"]
        files = sorted({str(ROOT / test.partition("::")[0]) for test in tests})
        subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False)
        tally: Tally = json.loads(answer.read_text()) if answer.exists() else {}
        return tally
