"""docs/conformance.md, made of the table, the record and what QEMU's own device answers (tests/qtest/answers.yaml)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.conformance.checks import clauses_named
from tests.conformance.results import Results
from tests.conformance.table import ATTACHMENTS, MODES, ROOT, Axis, Clause, Section, all_clauses

PAGE = ROOT / "docs" / "conformance.md"
ANSWERS = ROOT / "tests" / "qtest" / "answers.yaml"
COLUMNS = {"in-process": "in process", "vfio-user": "vfio-user", "vhost-user": "vhost-user"}
CLAUSE_COLUMNS = ("clause", "level", "the rule", "this device")
GAP_COLUMNS = ("gap", "the question", "this device", "stock Linux")
NOT_ASKED = "not asked"
NOTHING = "-"
MISSING = "**none**"  # which the checks do not let pass

HEAD = Path(__file__).with_name("head.txt")


@dataclass(slots=True)
class Notes:
    """The numbered notes of one table."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The mark that leads to the note `text`."""
        if text not in self.texts:
            self.texts.append(text)
        return f"<sup>{self.texts.index(text) + 1}</sup>"

    def lines(self) -> Iterator[str]:
        """The notes, to stand below the table."""
        if self.texts:
            yield ""
            yield from (f"<sup>{number}</sup> {text}<br>" for number, text in enumerate(self.texts, 1))


@dataclass(frozen=True, slots=True)
class Answer:
    """What QEMU's device answers to a question, and what ours does, where that is known as well."""

    asks: str
    qemu: str
    ours: str

    @property
    def text(self) -> str:
        """Question and answer; what is other than ours stands out."""
        asked = f"*{self.asks}*" if self.asks.endswith("?") else f"*{self.asks}:*"
        if self.ours in ("", self.qemu):
            return f"{asked} {self.qemu}"
        return f"{asked} **{self.qemu}** (here: {self.ours})"


def load_answers() -> dict[str, Answer]:
    """What was asked of QEMU's device, by clause."""
    found = yaml.safe_load(ANSWERS.read_text(encoding="utf-8"))["answers"]
    return {clause: Answer(row["asks"], row["qemu"], row.get("ours", "")) for clause, row in found.items()}


def page(sections: tuple[Section, ...], results: Results, answers: Mapping[str, Answer]) -> str:
    """The whole page."""
    lines = [HEAD.read_text(encoding="utf-8"), *_totals(sections, results)]
    for section in sections:
        lines += ["", f"## {section.title}", "", *_table(section, results, answers), *_tests(section, results)]
    return "\n".join([*lines, ""])


def _totals(sections: tuple[Section, ...], results: Results) -> Iterator[str]:
    clauses = all_clauses(sections)
    facts, ngaps = results.facts, sum(clause.is_gap for clause in clauses.values())
    nours = sum(len(section.clauses) for section in sections if section.is_ours)
    yield f"{len(clauses) - ngaps - nours} clauses, {ngaps} gaps and {nours} clauses of the PASID extension,"
    yield f"{len(results.tests)} tests. Recorded at commit"
    yield f"`{facts.commit[:12]}`, or with changes to it, by QEMU {facts.qemu} and Linux {facts.kernel}:"
    yield ""
    yield "| cases that passed | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---|" + "---|" * len(COLUMNS)
    for mode in MODES:
        cells = (_result([*results.tests], results, Axis(attach, mode)) or "0" for attach in ATTACHMENTS)
        yield f"| {mode} | {' | '.join(cells)} |"


def _table(section: Section, results: Results, answers: Mapping[str, Answer]) -> Iterator[str]:
    has_gaps = any(clause.is_gap for clause in section.clauses)
    qemu = f"QEMU {results.facts.qemu}"
    words = (
        ["gap", "the question", "this device", "stock Linux"]
        if has_gaps
        else ["clause", "level", "the rule", "this device"]
    )
    titles = [*words, *([] if section.is_ours else [qemu]), *COLUMNS.values()]
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    notes = Notes()
    for clause in section.clauses:
        ours = f"{clause.ours}. `strict`: {clause.strict}" if clause.strict else clause.ours
        if has_gaps:
            cells = [clause.id, clause.rule, ours, clause.linux or NOTHING]
        else:
            if clause.linux:
                ours += notes.mark(f"{clause.id}: stock Linux {clause.linux}.")
            cells = [clause.id, clause.level, clause.rule, ours]
        if not section.is_ours:
            cells.append(answers[clause.id].text if clause.id in answers else NOT_ASKED)
        cells += [_results(clause, results, attach, notes) for attach in ATTACHMENTS]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield from notes.lines()


def _results(clause: Clause, results: Results, attach: str, notes: Notes) -> str:
    """One attachment: compat / strict."""
    tests = tests_of(clause, results)
    cells = []
    for axis in (Axis(attach, mode) for mode in MODES):
        reason = clause.reason(axis)
        cell = _result(tests, results, axis) or ("n/a" if reason else MISSING)
        if reason:
            cell += notes.mark(f"{clause.id}, {COLUMNS[attach]}{_only(clause, axis)}: {reason}.")
        cells.append(cell)
    return " / ".join(dict.fromkeys(cells) if cells[0].startswith("n/a") else cells)


def _only(clause: Clause, axis: Axis) -> str:
    return f", {axis.mode}" if axis.id in clause.unseen else ""


def _result(tests: list[str], results: Results, axis: Axis) -> str:
    total: dict[str, int] = {}
    for test in tests:
        for outcome, ncases in results.tests[test].get(axis.id, {}).items():
            total[outcome] = total.get(outcome, 0) + ncases
    wrong = [f"**{ncases} {outcome}**" for outcome, ncases in sorted(total.items()) if outcome != "passed"]
    return ", ".join([*([str(total["passed"])] if "passed" in total else []), *wrong])


def tests_of(clause: Clause, results: Results) -> list[str]:
    """The tests that are named for a clause."""
    return [test for test in sorted(results.tests) if clause.id in clauses_named(test)]


def _tests(section: Section, results: Results) -> Iterator[str]:
    """The tests of the section's clauses, with links to their files."""
    yield from ("", "<details><summary>Tests</summary>", "")
    for clause in section.clauses:
        yield f"* {clause.id}: {', '.join(_link(test) for test in tests_of(clause, results)) or NOTHING}"
    yield from ("", "</details>")


def _link(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[{name.replace('::', '.')}](../{path})"
