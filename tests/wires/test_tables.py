"""The tables of rules: complete, with tests that are there, and their pages up to date."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
import yaml

from tests.wires.tables import KEEPERS, ROOT, TABLES, Table, rendered
from vdev.wire import vfio_user, vhost_user

COMMANDS = {"vfio-user": vfio_user.Command, "vhost-user": vhost_user.Command}
each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.protocol)


@cache
def _collected() -> frozenset[str]:
    """Every test of the files that the tables name: with its case, and without."""
    files = sorted({test.partition("::")[0] for table in TABLES for rule in table.rules() for test in rule.tests})
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line for line in done.stdout.splitlines() if "::" in line}
    return frozenset(found | {test.partition("[")[0] for test in found})


@each_table
def test_rows_are_numbered_without_a_gap(table: Table) -> None:
    idents = [rule.ident for rule in table.rules()]

    assert idents == [f"{table.prefix}{number:02}" for number in range(1, len(idents) + 1)]


@each_table
def test_every_row_has_tests_and_each_of_them_is_there(table: Table) -> None:
    rules = table.rules()
    missing = [f"{rule.ident}: {test}" for rule in rules for test in rule.tests if test not in _collected()]

    assert [rule.ident for rule in rules if not rule.tests] == []
    assert missing == []


@each_table
def test_every_message_of_the_protocol_is_in_a_row(table: Table) -> None:
    named = {message for rule in table.rules() for message in rule.messages}

    assert named == {command.name for command in COMMANDS[table.protocol]}


@each_table
def test_every_row_says_who_keeps_a_rule_and_what_it_is_and_no_rule_is_there_twice(table: Table) -> None:
    rules = table.rules()
    texts = [text for rule in rules for text in (rule.rule, rule.vdev, rule.not_applicable) if text]

    assert {rule.keeps for rule in rules} <= set(KEEPERS)
    assert [text for text in texts if not text.endswith(".")] == []
    assert len({(rule.rule, rule.messages) for rule in rules}) == len(rules)


@each_table
def test_topics_are_not_scattered(table: Table) -> None:
    topics = [rule.topic for rule in table.rules()]
    begun = [topic for before, topic in zip(["", *topics], topics, strict=False) if topic != before]

    assert len(begun) == len(set(begun))


@each_table
def test_the_page_is_what_the_table_makes(table: Table) -> None:
    assert table.page.read_text() == rendered(table), "stale: run `python -m tests.wires`"


@each_table
def test_a_mutation_that_breaks_a_rule_is_left_to_the_tests_the_rule_names(table: Table) -> None:
    rules = {rule.ident: rule.tests for rule in table.rules()}
    groups = yaml.safe_load((ROOT / "tests" / "mutation" / "table" / table.source.name).read_text())
    rows = [row for group in groups for row in group["mutations"]]

    assert [row["id"] for row in rows if not set(row["tests"]) <= set(rules[row["rule"]])] == []
    assert len({row["rule"] for row in rows}) >= 40
