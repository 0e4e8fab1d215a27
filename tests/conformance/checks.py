"""What is wrong with table, tests and record, in words; nothing if all is well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.conformance.results import Tally
from tests.conformance.table import AXES, AXES_BY_ID, Clause, clauses_of

AGAIN = "make conformance"


def clauses_named(test: str) -> tuple[str, ...]:
    """Those of a test's node id without parameters."""
    return clauses_of(test.rpartition("::")[2])


def unknown(clauses: dict[str, Clause], tests: Iterable[str]) -> Iterator[str]:
    """Tests that are named for what the table has not."""
    for test in tests:
        for name in clauses_named(test):
            if name not in clauses:
                yield f"{test}: the table has no {name}"


def untested(clauses: dict[str, Clause], tests: Tally) -> Iterator[str]:
    """Clauses without a test on an axis, and without a reason."""
    seen = {(name, axis) for test, axes in tests.items() for name in clauses_named(test) for axis in axes}
    for clause in clauses.values():
        missing = [axis.id for axis in AXES if (clause.id, axis.id) not in seen and not clause.reason(axis)]
        if missing:
            yield f"{clause.id} has no test on {', '.join(missing)}, and the table no reason (unseen)"


def failing(results: Tally) -> Iterator[str]:
    """Recorded outcomes other than passed."""
    for test, axes in results.items():
        for axis, outcomes in axes.items():
            for outcome, ncases in outcomes.items():
                if outcome != "passed":
                    yield f"{test} on {axis}: {ncases} {outcome}"


def stale_tests(collected: Tally, results: Tally) -> set[str]:
    """The tests there are that the record has not as they are, or not as passed."""
    return {test for test in collected if list(_differences(test, collected, results))} | {
        test for test in collected if list(failing({test: results.get(test, {})}))
    }


def unrecorded(collected: Tally, results: Tally) -> Iterator[str]:
    """Where the record is of other tests than there are."""
    for test in sorted({*collected, *results}):
        for axis, now, then in _differences(test, collected, results):
            yield f"{test} on {axis}: {now} case(s) now, {then} recorded: {AGAIN}"


def _differences(test: str, collected: Tally, results: Tally) -> Iterator[tuple[str, int, int]]:
    """Axis, cases there are, cases that are recorded: where the two are not the same."""
    for axis in AXES_BY_ID:
        now = sum(collected.get(test, {}).get(axis, {}).values())
        then = sum(results.get(test, {}).get(axis, {}).values())
        if now != then:
            yield axis, now, then
