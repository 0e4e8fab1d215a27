"""The conformance suite in process, in both modes: a test here for every clause of the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.conformance.checks import clauses_named
from tests.conformance.collected import host_tests
from tests.conformance.run import Outcome, Session, run
from tests.conformance.table import MODES, Axis, Clause, all_clauses, load_table

CLAUSES = all_clauses(load_table())
SHOWN = 4000  # characters of one failure


@pytest.fixture(scope="session")
def in_process() -> Callable[[str], Session]:
    """`in_process(mode)`: the whole suite, run once for each mode."""
    return cache(run)


def failures(outcomes: list[Outcome]) -> str:
    """All that did not pass, with what pytest said of it."""
    return "\n\n".join(f"{one.case}: {one.outcome}\n{one.text[-SHOWN:]}" for one in outcomes if one.outcome != "passed")


def is_tested_on_the_host(clause: Clause, axis: Axis) -> bool:
    """Whether another test than one of the suite is named for it."""
    return any(clause.id in clauses_named(test) and axis.id in axes for test, axes in host_tests().items())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_the_suite_runs_in_process_without_a_problem(mode: str, in_process: Callable[[str], Session]) -> None:
    session = in_process(mode)

    assert session.problem == ""
    assert failures([one for one in session.outcomes if not one.clauses]) == ""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mode", "clause"), [pytest.param(mode, one, id=f"{mode}-{one.id}") for mode in MODES for one in CLAUSES.values()]
)
def test_clause(mode: str, clause: Clause, in_process: Callable[[str], Session]) -> None:
    axis = Axis("in-process", mode)

    outcomes = [one for one in in_process(mode).outcomes if clause.id in one.clauses]

    if text := failures(outcomes):
        pytest.fail(text, pytrace=False)
    if not outcomes and not clause.reason(axis):
        assert is_tested_on_the_host(clause, axis), f"{clause.id} has no test on {axis.id}, and the table no reason"
