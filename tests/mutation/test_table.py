"""The table of mutations fits the sources, covers every clause, and is what docs/mutations.md was made of."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.mutation.report import PAGE, recorded_ids
from tests.mutation.sessions import HOST, sessions
from tests.mutation.table import EQUIVALENT, ROOT, Mutation, MutationError, clauses, load, mutations

ROWS = mutations()
FEWEST = 2  # of a clause
SOURCE = """\
class One:
    def same(self):
        return 1

    @property
    def other(self):
        return 1
"""


def row(**given: str) -> Mutation:
    return Mutation(**{"id": "x", "old": "return 1", "new": "return 2", "what": "", **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("file", sorted({one.file for one in ROWS}))
def test_every_mutation_of_a_file_can_be_made(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")

    for one in ROWS:
        if one.file == file:
            one.apply(source)


def test_every_mutation_that_is_said_to_change_nothing_can_be_made() -> None:
    for one in load(EQUIVALENT):
        one.apply((ROOT / one.file).read_text(encoding="utf-8"))
        assert len(one.what.split()) > 5, f"{one.id}: say why nobody can tell the difference"


def test_ids_are_words_and_unique() -> None:
    ids = [one.id for one in (*ROWS, *load(EQUIVALENT))]

    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert [name for name in ids if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name)] == []


def test_no_mutation_is_there_twice() -> None:
    changes = Counter(one.apply((ROOT / one.file).read_text(encoding="utf-8")) for one in ROWS)

    assert [count for count in changes.values() if count > 1] == []


def test_every_mutation_breaks_a_clause_of_the_table_or_a_rule_in_words() -> None:
    unknown = {one.id: one.clauses for one in ROWS if set(one.clauses) - set(clauses())}

    assert unknown == {}
    assert [one.id for one in ROWS if bool(one.clauses) == bool(one.rule)] == []


@pytest.mark.parametrize("clause", [name for name in clauses() if not name.startswith("Q")])  # Q: drivers
def test_every_clause_is_broken_by_some_mutations(clause: str) -> None:
    assert sum(clause in one.clauses for one in ROWS) >= FEWEST


def test_the_tests_that_the_table_names_are_there() -> None:
    files = {test.partition("::")[0] for one in ROWS for test in one.tests}
    globs = {glob for one in ROWS for glob in one.run}

    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert [glob for glob in globs if not list(ROOT.glob(glob))] == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "there 2 times"),
        ({"at": "One.same", "old": "return 3"}, "there 0 times"),
        ({"at": "One.third"}, "One.third is there 0 times"),
        ({"at": "One.same", "new": "return ("}, "leaves no Python"),
        ({"at": "One.same", "new": "return  1"}, "changes nothing"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error(given: dict[str, str], problem: str) -> None:
    with pytest.raises(MutationError, match=problem):
        row(**given).apply(SOURCE)


def test_a_row_is_applied_at_its_place() -> None:
    assert row(at="One.other").apply(SOURCE) == SOURCE.replace("1\n", "2\n").replace("2\n", "1\n", 1)


def test_tests_named_for_a_clause_run_before_others() -> None:
    (one,) = (one for one in ROWS if one.id == "attach-reserved-ignored")

    planned = list(sessions(one))

    assert [session.named for session, is_last_resort in planned if is_last_resort] == [()] * 4
    assert all(session.named == ("D16",) for session, is_last_resort in planned if not is_last_resort)
    assert {session.kind for session, is_last_resort in planned if is_last_resort} == {HOST, "compat", "strict"}


def test_the_page_is_of_this_table() -> None:
    assert recorded_ids(PAGE.read_text(encoding="utf-8")) == {one.id for one in ROWS}
