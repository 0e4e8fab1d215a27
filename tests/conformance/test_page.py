"""Table, tests, record and page agree: docs/conformance.md."""

from __future__ import annotations

from difflib import unified_diff

import pytest

from tests.conformance import checks
from tests.conformance.collected import all_tests
from tests.conformance.page import PAGE, load_answers, page
from tests.conformance.results import RESULTS, Results, load_results, text_of
from tests.conformance.table import Clause, Section, all_clauses, load_table


@pytest.fixture
def sections() -> tuple[Section, ...]:
    return load_table()


@pytest.fixture
def clauses(sections: tuple[Section, ...]) -> dict[str, Clause]:
    return all_clauses(sections)


@pytest.fixture
def results() -> Results:
    return load_results()


def test_no_test_is_named_for_a_clause_that_the_table_has_not(clauses: dict[str, Clause]) -> None:
    assert list(checks.unknown(clauses, all_tests())) == []


def test_every_clause_has_a_test_on_every_axis_or_a_reason(clauses: dict[str, Clause]) -> None:
    assert list(checks.untested(clauses, all_tests())) == []


def test_the_record_is_of_the_tests_there_are(results: Results) -> None:
    assert list(checks.unrecorded(all_tests(), results.tests)) == []


def test_every_recorded_outcome_is_passed(results: Results) -> None:
    assert list(checks.failing(results.tests)) == []


def test_the_record_is_written_as_make_conformance_writes_it(results: Results) -> None:
    """An edit by hand, or a merge, shows."""
    assert RESULTS.read_text(encoding="utf-8") == text_of(results)


def test_the_page_is_what_would_be_made(sections: tuple[Section, ...], results: Results) -> None:
    expected = page(sections, results, load_answers()).splitlines()
    found = PAGE.read_text(encoding="utf-8").splitlines()

    difference = list(unified_diff(found, expected, PAGE.name, "what would be made", lineterm="", n=0))

    assert not difference, "\n".join(
        ["docs/conformance.md is stale; python -m tests.conformance page makes it. First difference:", *difference[2:8]]
    )


def test_every_answer_of_qemu_is_to_a_clause_of_the_table(clauses: dict[str, Clause]) -> None:
    assert set(load_answers()) <= set(clauses)
