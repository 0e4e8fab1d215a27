"""pytest plugin of every session of this project: which clauses its tests are for, and what became of them.

Loaded by the conftest.py at the root. By itself it does one thing: a full session (`make test`) fails at its end where
docs/conformance.json says that a test passes which was skipped now. `make conformance` has it write outcomes down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from guest_tests.runner.nodes import GuestItem
from tests.conformance.results import RESULTS, ResultsError, Tally, count, load_results
from tests.conformance.table import ATTACHMENTS, AXES_BY_ID, MODES, SUITE, Axis, clauses_of

RECORDER = pytest.StashKey["Recorder"]()
MARKER = "conformance"
ON_THE_HOST = {"attach": ("in-process",), "mode": MODES}  # what a host test shows unless its marker says otherwise


@dataclass(frozen=True, slots=True)
class Place:
    """A test without its parameters, and where one case of it runs."""

    test: str
    axes: tuple[Axis, ...]


@dataclass(slots=True, eq=False)  # a plugin is kept in sets
class Recorder:
    """What a session's tests for clauses are and what became of them, by node id."""

    places: dict[str, Place] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst of a test's phases."""
        if report.nodeid in self.places and self.outcomes.get(report.nodeid) != "failed":
            if report.outcome != "passed":
                self.outcomes[report.nodeid] = report.outcome
            elif report.when == "call":
                self.outcomes.setdefault(report.nodeid, "xpassed" if hasattr(report, "wasxfail") else "passed")

    def tally(self) -> Tally:
        """The outcomes of what ran."""
        ran = ((place, self.outcomes[nodeid]) for nodeid, place in self.places.items() if nodeid in self.outcomes)
        return count((place.test, axis.id, outcome) for place, outcome in ran for axis in place.axes)

    def collected(self) -> Tally:
        """How many cases there are, whatever becomes of them."""
        return count((place.test, axis.id, "collected") for place in self.places.values() for axis in place.axes)

    def contradictions(self, recorded: Tally) -> Iterator[str]:
        """Tests that are recorded as passed and did not run here. Those that failed speak for themselves."""
        for nodeid, outcome in self.outcomes.items():
            place = self.places[nodeid]
            for axis in place.axes:
                known = recorded.get(place.test, {}).get(axis.id, {})
                if outcome not in ("passed", "failed") and set(known) == {"passed"}:
                    yield f"{nodeid}: {outcome} now, recorded as passed ({axis.id})"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make conformance`."""
    group = parser.getgroup("conformance", "tests that are named for clauses")
    group.addoption("--conformance-record", type=Path, metavar="FILE", help="run those only; write outcomes there")
    group.addoption("--conformance-tests", type=Path, metavar="FILE", help="and of those only these: JSON, a list")
    group.addoption("--conformance-collected", type=Path, metavar="FILE", help="write there which there are")


def pytest_configure(config: pytest.Config) -> None:
    """Begin a record."""
    config.stash[RECORDER] = Recorder()
    config.pluginmanager.register(config.stash[RECORDER], "conformance-recorder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Know the tests of clauses; leave out the others where only outcomes are wanted."""
    recorder = config.stash[RECORDER]
    recorder.places.update((item.nodeid, place) for item in items if (place := place_of(item)) is not None)
    if config.getoption("conformance_record") is not None:
        path = config.getoption("conformance_tests")
        tests = set(json.loads(path.read_text())) if path is not None else None
        wanted = {node for node, place in recorder.places.items() if tests is None or place.test in tests}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell which there are."""
    path = session.config.getoption("conformance_collected")
    if path is not None:
        path.write_text(json.dumps(session.config.stash[RECORDER].collected()))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write down what was asked for; fail a full session that contradicts the record."""
    recorder = session.config.stash[RECORDER]
    path = session.config.getoption("conformance_record")
    if path is not None:
        path.write_text(json.dumps(recorder.tally()))
    elif _is_full(session.config) and list(_contradictions(recorder)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what contradicts the record."""
    found = list(_contradictions(config.stash[RECORDER])) if _is_full(config) else []
    if found and config.getoption("conformance_record") is None:
        terminalreporter.section(f"contradicts docs/{RESULTS.name}", red=True)
        for line in found:
            terminalreporter.line(line)
        terminalreporter.line("Have them run, or record what is true now: make conformance")


def _is_full(config: pytest.Config) -> bool:
    """Whether nothing was named on the command line: `pytest`, as `make test` calls it."""
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def _contradictions(recorder: Recorder) -> Iterable[str]:
    try:
        return recorder.contradictions(load_results().tests)
    except ResultsError as error:
        return [str(error)]


def place_of(item: pytest.Item) -> Place | None:
    """Where a test for a clause runs; None for any other. UsageError for a marker that makes no sense."""
    test = item.nodeid.partition("[")[0]
    if not clauses_of(test.rpartition("::")[2]):
        return None
    if isinstance(item, GuestItem):
        axis = AXES_BY_ID.get(item.machine.id) if item.machine.suite == SUITE else None
        return Place(test, (axis,)) if axis is not None else None
    marker = item.get_closest_marker(MARKER)
    given = {**ON_THE_HOST, **(marker.kwargs if marker is not None else {})}
    axes = tuple(Axis(attach, mode) for attach in given["attach"] for mode in given["mode"])
    if not axes or set(axes) - set(AXES_BY_ID.values()) or set(given) != set(ON_THE_HOST):
        lists = f"attach={list(ATTACHMENTS)}, mode={list(MODES)}"
        raise pytest.UsageError(f"{item.nodeid}: the marker {MARKER} has lists: {lists}, or some of each")
    return Place(test, axes)
