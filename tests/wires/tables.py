"""The tables of rules and the pages made from them.

A table is a YAML file: `files` gives short names to files of tests; `rows` are the rules, in groups. Of a row:

    id, topic        VU01 ... or VH01 ..., without a gap; the heading it stands under
    source           where the rule is from: "spec" and a heading of QEMU's document of the protocol, a section of this
                     project's notes on QEMU's client (1.1 to 1.10 vfio-user, 2 vhost-user), or "design"
    messages         the messages it is about, where it is about some
    keeps            who must keep it: vdev, QEMU, or both
    rule, vdev       the rule, and what vdev does
    not-applicable   why vdev has nothing to keep; then the tests show what is answered instead
    tests            those that fail when the rule is broken, FILE::NAME with FILE from `files`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KEEPERS = ("vdev", "QEMU", "both")


@dataclass(frozen=True, slots=True)
class Rule:
    """One row; `tests` are pytest's node ids from the root of the repository."""

    ident: str
    topic: str
    source: str
    messages: tuple[str, ...]
    keeps: str
    rule: str
    vdev: str
    not_applicable: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One protocol: where its rules and its page are."""

    protocol: str
    prefix: str
    document: str

    @property
    def source(self) -> Path:
        """The YAML file."""
        return ROOT / "tests" / "wires" / f"{self.protocol.replace('-', '_')}.yaml"

    @property
    def page(self) -> Path:
        """The page made from it."""
        return ROOT / "docs" / f"{self.protocol}-conformance.md"

    def rules(self) -> list[Rule]:
        """All rows. KeyError for one that lacks a key or names a file that `files` has not."""
        data = yaml.safe_load(self.source.read_text())
        return [_rule(row, data["files"]) for row in data["rows"]]


TABLES = (Table("vfio-user", "VU", "vfio-user.rst"), Table("vhost-user", "VH", "vhost-user.rst"))


def _rule(row: dict[str, Any], files: dict[str, str]) -> Rule:
    tests = tuple(f"{files[alias]}::{name}" for alias, _, name in (test.partition("::") for test in row["tests"]))
    return Rule(
        row["id"],
        row["topic"],
        row["source"],
        tuple(row.get("messages", ())),
        row["keeps"],
        row["rule"],
        row["vdev"],
        row.get("not-applicable", ""),
        tests,
    )


def rendered(table: Table) -> str:
    """The page."""
    rules = table.rules()
    return "\n".join([*_preamble(table, rules), *_groups(rules)])


_PREAMBLE = """\
# Conformance: {protocol}

Made by `python -m tests.wires` from `{source}`; do not edit.

Every message and every rule of the protocol, in our own words: as `docs/interop/{document}` of QEMU has it, and as
QEMU's client goes about it. Beside each are what vdev does and the tests that fail when the rule is broken. Under an id
is where the rule is from: "spec" and a heading of that document, the number of a section of the project's notes on
QEMU, or "design", a decision of this project. Rules that QEMU keeps are tested against the real QEMU
(`tests/wires/test_qemu_*.py`), so that one which behaves otherwise does not pass unnoticed.

{rows} rows: {vdev} for vdev to keep, {qemu} for QEMU, {both} for both. {without} are not applicable, with the reason
and the test of what is answered instead. {tests} tests are named.
"""


def _preamble(table: Table, rules: list[Rule]) -> Iterator[str]:
    keepers = Counter(rule.keeps for rule in rules)
    yield _PREAMBLE.format(
        protocol=table.protocol,
        source=table.source.relative_to(ROOT),
        document=table.document,
        rows=len(rules),
        vdev=keepers["vdev"],
        qemu=keepers["QEMU"],
        both=keepers["both"],
        without=sum(bool(rule.not_applicable) for rule in rules),
        tests=len({test for rule in rules for test in rule.tests}),
    )


def _groups(rules: list[Rule]) -> Iterator[str]:
    for topic, group in groupby(rules, key=lambda rule: rule.topic):
        yield f"## {topic}"
        yield ""
        yield "| | the rule | kept by | vdev | tests |"
        yield "|---|---|---|---|---|"
        yield from (_line(rule) for rule in group)
        yield ""


def _line(rule: Rule) -> str:
    vdev = f"{rule.vdev} *Not applicable: {rule.not_applicable}*" if rule.not_applicable else rule.vdev
    messages = "".join(f"<br>`{message}`" for message in rule.messages)
    cells = (
        f"{rule.ident}<br>{rule.source}",
        rule.rule + messages,
        rule.keeps,
        vdev,
        "<br>".join(map(_link, rule.tests)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _link(test: str) -> str:
    """The test's name as the sentence it is, leading to its file."""
    path, _, name = test.partition("::")
    function, bracket, case = name.partition("[")
    sentence = function.removeprefix("test_").replace("_", " ") + (f": {case.removesuffix(']')}" if bracket else "")
    return f"[{sentence}](../{path})"
