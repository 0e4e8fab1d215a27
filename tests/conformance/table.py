"""The clauses of clauses.yaml, the machines their tests run on, and which clauses a test is named for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("clauses.yaml")
SUITE = ROOT / "guest_tests" / "suites" / "conformance"
ATTACHMENTS = ("in-process", "vfio-user", "vhost-user")
MODES = ("compat", "strict")
LEVELS = ("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "text", "open")
_NAMED = re.compile(r"test_((?:[dgpq]\d+_)+)")
_ID = re.compile(r"[DGPQ][1-9]\d*")


class TableError(Exception):
    """clauses.yaml is not what it should be; the text names the clause."""


@dataclass(frozen=True, slots=True, order=True)
class Axis:
    """Where a test runs: an attachment, or none at all (`in-process`), and the mode of the units."""

    attach: str
    mode: str

    @property
    def id(self) -> str:
        """As a machine of the suite is called: strict-vhost-user."""
        return f"{self.mode}-{self.attach}"


AXES = tuple(Axis(attach, mode) for attach in ATTACHMENTS for mode in MODES)
AXES_BY_ID = {axis.id: axis for axis in AXES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One row; `unseen` has reasons by attachment (both modes) or by the id of an axis."""

    id: str
    level: str
    rule: str
    ours: str
    strict: str = ""
    linux: str = ""
    unseen: dict[str, str] = field(default_factory=dict)

    @property
    def is_gap(self) -> bool:
        return self.id.startswith("G")

    def reason(self, axis: Axis) -> str:
        """Why no test on `axis` can show it; empty where one can."""
        return self.unseen.get(axis.id) or self.unseen.get(axis.attach, "")


@dataclass(frozen=True, slots=True)
class Section:
    """Clauses about one thing. `is_ours`: of an extension of this project, so no other device has an answer."""

    title: str
    clauses: tuple[Clause, ...]
    is_ours: bool = False


def load_table(path: Path = TABLE) -> tuple[Section, ...]:
    """The table. Raises TableError."""
    sections = tuple(
        Section(given["section"], tuple(_clause(row) for row in given["clauses"]), given.get("extension", False))
        for given in yaml.safe_load(path.read_text(encoding="utf-8"))
    )
    ids = [clause.id for section in sections for clause in section.clauses]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise TableError(f"twice in the table: {', '.join(twice)}")
    return sections


def all_clauses(sections: tuple[Section, ...]) -> dict[str, Clause]:
    """Every clause by its id, in the table's order."""
    return {clause.id: clause for section in sections for clause in section.clauses}


def _clause(row: dict[str, Any]) -> Clause:
    try:
        clause = Clause(**row)
    except TypeError as error:
        raise TableError(f"{row.get('id', row)}: {error}") from None
    problems = [
        (not _ID.fullmatch(clause.id), "its id is none"),
        (clause.level not in LEVELS, f"level {clause.level!r} is none of {', '.join(LEVELS)}"),
        ((clause.level == "open") != clause.is_gap, "gaps, and only they, are open"),
        (not clause.rule or not clause.ours, "rule and ours say something"),
        (not all(clause.unseen.values()), "unseen gives a reason"),
    ]
    problems += [(key not in {*ATTACHMENTS, *AXES_BY_ID}, f"unseen: {key} is no attachment") for key in clause.unseen]
    for is_wrong, text in problems:
        if is_wrong:
            raise TableError(f"{clause.id}: {text}")
    return clause


def clauses_of(name: str) -> tuple[str, ...]:
    """The clauses that a test function is named for: test_d27_g19_a_bypass_domain -> D27, G19."""
    named = _NAMED.match(name)
    if named is None:
        return ()
    return tuple(f"{word[0].upper()}{int(word[1:])}" for word in named[1].split("_") if word)
