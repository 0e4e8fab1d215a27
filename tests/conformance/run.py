"""The conformance suite in process: a pytest session of its own, because its modules are those of a guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.table import ROOT, SUITE, clauses_of

INI = Path(__file__).with_name("in_process.ini")
PLUGINS = (
    "guest_tests.payload.host", "guest_tests.payload.fixtures", "guest_tests.payload.stock_fixtures",
    "pytest_timeout", "tests.conformance.in_process",
)  # fmt: skip
TEST_S = 30  # one test; an endless loop in the device ends there
SESSION_S = 300.0
NO_TESTS = 5  # pytest's exit status


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case of a test; `test` is its node id in the suite without parameters: test_map.py::test_x."""

    test: str
    case: str
    outcome: str  # passed, failed, skipped
    text: str

    @property
    def clauses(self) -> tuple[str, ...]:
        return clauses_of(self.test.rpartition("::")[2])


@dataclass(frozen=True, slots=True)
class Session:
    """A whole session; `problem` is empty unless it could not run as it should."""

    outcomes: tuple[Outcome, ...]
    problem: str
    output: str


def command(
    mode: str,
    *,
    clauses: Sequence[str] = (),
    words: Sequence[str] = (),
    suite: Path = SUITE,
    outcomes: Path | None = None,
) -> list[str]:
    """The command line of a session, to be run in ROOT with `environment()`; `words` are more options for pytest."""
    plugins = [word for name in PLUGINS for word in ("-p", name)]
    options = [f"--conformance-mode={mode}", f"--conformance-clauses={','.join(clauses)}", f"--timeout={TEST_S}"]
    if outcomes is not None:
        options.append(f"--conformance-outcomes={outcomes}")
    where = ["-c", str(INI), f"--rootdir={suite}", f"--confcutdir={suite}", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *where, *plugins, *options, *words, str(suite)]


def environment() -> dict[str, str]:
    """No plugin but ours."""
    return {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(mode: str, *, clauses: Sequence[str] = (), words: Sequence[str] = (), suite: Path = SUITE) -> Session:
    """Run the suite, or the tests named for one of `clauses`, in process and quietly."""
    with tempfile.TemporaryDirectory(prefix="vdev-") as directory:
        outcomes = Path(directory) / "outcomes.json"
        argv = command(mode, clauses=clauses, words=["-q", *words], suite=suite, outcomes=outcomes)
        try:
            done = subprocess.run(
                argv, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=SESSION_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            return Session((), f"not done within {SESSION_S:.0f} s", str(error.stdout))
        output = done.stdout + done.stderr
        if not outcomes.exists():
            return Session((), f"pytest ended with {done.returncode}:\n{output}", output)
        found = json.loads(outcomes.read_text())
    rows = tuple(
        Outcome(row["test"].partition("[")[0], row["test"], row["outcome"], row["text"]) for row in found["tests"]
    )
    problem = "\n".join(found["problems"])
    if not problem and done.returncode not in (0, 1, NO_TESTS):
        problem = f"pytest ended with {done.returncode}:\n{output}"
    return Session(rows, problem, output)
