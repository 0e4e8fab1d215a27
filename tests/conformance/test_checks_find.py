"""What the checks of tests/conformance find: each is shown something wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import checks
from tests.conformance.page import Answer, page
from tests.conformance.results import Facts, Results, ResultsError, count, load_results, merged, text_of
from tests.conformance.table import AXES, Clause, Section, TableError, clauses_of, load_table

TEST = "tests/x/test_x.py::test_d1_offers_it"
EVERYWHERE = {axis.id: {"passed": 2} for axis in AXES}
D1 = Clause(id="D1", level="SHOULD", rule="offer it", ours="offers it")
HIDDEN = Clause(id="D2", level="MAY", rule="hide", ours="hides", unseen={"vhost-user": "hidden there"})
GAP = Clause(id="G1", level="open", rule="what then", ours="nothing", strict="something", linux="never asks")
FACTS = Facts("c0ffee", "6.12", "11.1")


@pytest.mark.parametrize(
    ("name", "clauses"),
    [
        ("test_d16_is_refused", ("D16",)),
        ("test_d06_g03_two_digits", ("D6", "G3")),
        ("test_dma_d16_is_about_no_clause", ()),
        ("test_d16", ()),
        ("test_clause[D16]", ()),
    ],
)
def test_a_test_is_for_the_clauses_its_name_begins_with(name: str, clauses: tuple[str, ...]) -> None:
    assert clauses_of(name) == clauses


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{id: D1, level: MUST, rule: r}", "ours"),
        ("{id: D1, level: WILL, rule: r, ours: o}", "level 'WILL'"),
        ("{id: G1, level: MUST, rule: r, ours: o}", "open"),
        ("{id: D1, level: MUST, rule: r, ours: o, unseen: {usb: it is}}", "usb"),
        ("{id: D1, level: MUST, rule: r, ours: o, colour: red}", "colour"),
        ("{id: D1, level: MUST, rule: r, ours: o}\n    - {id: D1, level: MUST, rule: r, ours: o}", "twice"),
    ],
)
def test_a_mistake_in_the_table_is_named(tmp_path: Path, row: str, problem: str) -> None:
    table = tmp_path / "clauses.yaml"
    table.write_text(f"- section: One\n  clauses:\n    - {row}\n")

    with pytest.raises(TableError, match=problem):
        load_table(table)


def test_a_test_for_a_clause_that_is_not_there_is_found() -> None:
    assert list(checks.unknown({"D2": D1}, [TEST])) == [f"{TEST}: the table has no D1"]


def test_a_clause_without_a_test_on_an_axis_is_found_unless_there_is_a_reason() -> None:
    tests = {TEST: {key: value for key, value in EVERYWHERE.items() if key != "strict-vhost-user"}}
    hidden = {"tests/x/test_x.py::test_d2_hides": {"compat-in-process": {"passed": 1}}}

    found = list(checks.untested({"D1": D1, "D2": HIDDEN}, merged(tests, hidden)))

    assert found == [
        "D1 has no test on strict-vhost-user, and the table no reason (unseen)",
        "D2 has no test on strict-in-process, compat-vfio-user, strict-vfio-user, and the table no reason (unseen)",
    ]


def test_an_outcome_other_than_passed_is_found() -> None:
    tests = {TEST: {**EVERYWHERE, "compat-vfio-user": {"passed": 1, "skipped": 1}}}

    assert list(checks.failing(tests)) == [f"{TEST} on compat-vfio-user: 1 skipped"]


@pytest.mark.parametrize(
    ("collected", "recorded"),
    [
        ({TEST: {"compat-vfio-user": {"collected": 3}}}, {TEST: {"compat-vfio-user": {"passed": 2}}}),
        ({TEST: {"compat-vfio-user": {"collected": 3}}}, {}),
        ({}, {TEST: {"compat-vfio-user": {"passed": 2}}}),
    ],
    ids=["another-case", "a-new-test", "a-test-that-is-gone"],
)
def test_a_record_of_other_tests_than_there_are_is_found(
    collected: dict[str, dict[str, dict[str, int]]], recorded: dict[str, dict[str, dict[str, int]]]
) -> None:
    (found,) = checks.unrecorded(collected, recorded)

    assert found.startswith(f"{TEST} on compat-vfio-user: ")
    assert found.endswith("make conformance")


def test_tests_whose_record_is_old_or_bad_are_to_be_run_again() -> None:
    collected = {name: {"compat-vfio-user": {"collected": 2}} for name in ("new", "more", "bad", "good")}
    recorded = {
        "more": {"compat-vfio-user": {"passed": 1}},
        "bad": {"compat-vfio-user": {"passed": 1, "failed": 1}},
        "good": {"compat-vfio-user": {"passed": 2}},
        "gone": {"compat-vfio-user": {"passed": 2}},
    }

    assert checks.stale_tests(collected, recorded) == {"new", "more", "bad"}


def test_what_failed_and_passed_of_one_test_is_counted_apart() -> None:
    rows = [(TEST, "compat-vfio-user", outcome) for outcome in ("passed", "failed", "passed")]

    assert count(rows) == {TEST: {"compat-vfio-user": {"passed": 2, "failed": 1}}}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = Results(FACTS, {TEST: {**EVERYWHERE, "compat-vfio-user": {"failed": 1, "passed": 1}}})
    path = tmp_path / "conformance.json"
    path.write_text(text_of(results))

    assert load_results(path) == results


@pytest.mark.parametrize("text", [None, "{", "[]", '{"tests": {}}'])
def test_a_record_that_cannot_be_read_names_the_command_that_makes_one(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "conformance.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ResultsError, match="make conformance"):
        load_results(path)


def test_the_page_shows_results_reasons_and_what_others_do() -> None:
    sections = (Section("One", (D1, HIDDEN)), Section("Gaps", (GAP,)))
    hidden = {"tests/x/test_x.py::test_d2_hides": {"compat-in-process": {"passed": 1}}}
    answers = {"D1": Answer("is it offered | not", "yes", "yes"), "G1": Answer("what then?", "broken", "nothing")}
    failed = {TEST: {**EVERYWHERE, "strict-vfio-user": {"failed": 1, "passed": 1}}}

    lines = page(sections, Results(FACTS, merged(failed, hidden)), answers).splitlines()

    asked = "*is it offered \\| not:* yes"
    assert f"| D1 | SHOULD | offer it | offers it | {asked} | 2 / 2 | 2 / 1, **1 failed** | 2 / 2 |" in lines
    row = "| D2 | MAY | hide | hides | not asked | 1 / **none** | **none** / **none** | n/a<sup>1</sup> |"
    assert row in lines
    assert "<sup>1</sup> D2, vhost-user: hidden there.<br>" in lines
    assert "* D1: [test_d1_offers_it](../tests/x/test_x.py)" in lines
    (gap,) = (line for line in lines if line.startswith("| G1 "))
    assert gap.startswith(
        "| G1 | what then | nothing. `strict`: something | never asks | *what then?* **broken** (here: nothing) | "
    )
