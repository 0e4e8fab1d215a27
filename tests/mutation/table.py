"""The table of mutations: read from table/*.yaml, and applied to source text.

A file of the table is a list of groups:

    - file: vdev/iommu/engine.py            what is changed
      first: [tests/unit/test_x.py]         tests to run before others (files, or node ids), optional
      run: [tests/wires/*.py]               the tests there are for it; left out: DEVICE_TESTS
      mutations:
        - id: attach-takes-reserved
          clauses: [D16]                    of tests/conformance/clauses.yaml; may be empty where `rule` says what it is
          rule: ""                          what breaks, where no clause says so: a rule of another table, or in words
          at: Engine._attach                the function or class that holds `old`; left out: the whole file
          old: request.reserved != bytes(4)
          new: "False"
          what: the reserved bytes are not looked at
          anew: true                        machines of tests must be built after the change; optional

`old` occurs exactly once at its place. equivalent.yaml has the same groups; each of its rows says in `what` why nobody
can tell the difference.
"""

from __future__ import annotations

import ast
import difflib
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "table"
EQUIVALENT = Path(__file__).parent / "equivalent.yaml"
CLAUSES = ROOT / "tests" / "conformance" / "clauses.yaml"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast

DEVICE_TESTS = (
    "tests/unit/test_iommu_*.py",
    "tests/unit/test_viommu_*.py",
    "tests/unit/test_virtio_*.py",
    "tests/unit/test_wire_viommu.py",
    "tests/unit/test_queue*.py",
    "tests/unit/test_dma_door.py",
    "tests/unit/test_tagged_door.py",
    "tests/unit/test_door_memory.py",
    "tests/unit/test_accelerator*.py",
    "tests/unit/test_snapshot.py",
    "tests/unit/test_config.py",
    "tests/unit/test_assemble.py",
    "tests/unit/test_vhost_*.py",
    "tests/integration/test_direct_driver.py",
    "tests/integration/test_direct_accel.py",
    "tests/integration/test_in_flight*.py",
    "tests/property/test_engine_model.py",
    "tests/property/test_translate_explained.py",
    "tests/property/test_queue_model.py",
    "tests/property/test_in_flight_model.py",
)


class MutationError(Exception):
    """A row does not fit the sources, or is no change."""


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One row, with what its group says."""

    id: str
    old: str
    new: str
    what: str
    clauses: tuple[str, ...] = ()
    rule: str = ""
    at: str = ""
    anew: bool = False
    tests: tuple[str, ...] = ()
    file: str = ""
    run: tuple[str, ...] = DEVICE_TESTS

    @property
    def module(self) -> str:
        """The dotted name of what is changed."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def apply(self, source: str) -> str:
        """The changed source; MutationError unless the row fits it, changes it and leaves Python."""
        start, stop = _place(source, self.at, self.id)
        found = [match.start() for match in re.finditer(re.escape(self.old), source[start:stop])]
        if len(found) != 1:
            raise MutationError(f"{self.id}: `old` is there {len(found)} times in {self.at or self.file}: {self.old!r}")
        if self.old.split() == self.new.split():
            raise MutationError(f"{self.id}: changes nothing")
        begin = start + found[0]
        changed = source[:begin] + self.new + source[begin + len(self.old) :]
        try:
            ast.parse(textwrap.dedent(changed[start : stop + len(self.new) - len(self.old)]))
        except SyntaxError as error:
            raise MutationError(f"{self.id}: leaves no Python: {error}") from error
        return changed

    def diff(self) -> str:
        """What it changes, for people."""
        source = (ROOT / self.file).read_text()
        lines = (source.splitlines(), self.apply(source).splitlines())
        return "\n".join(difflib.unified_diff(*lines, self.file, f"{self.file} ({self.id})", lineterm=""))


class _Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    file: str
    mutations: tuple[Mutation, ...]
    first: tuple[str, ...] = ()
    run: tuple[str, ...] = DEVICE_TESTS


def load(path: Path) -> list[Mutation]:
    """The rows of one file of the table; msgspec.ValidationError names what is wrong in it."""
    groups = msgspec.convert(yaml.load(path.read_text(), _LOADER) or [], list[_Group])
    return [
        msgspec.structs.replace(row, file=group.file, run=group.run, tests=(*row.tests, *group.first))
        for group in groups
        for row in group.mutations
    ]


def mutations() -> list[Mutation]:
    """All rows, file by file."""
    return [row for path in sorted(FOLDER.glob("*.yaml")) for row in load(path)]


def clauses() -> dict[str, str]:
    """The level of every clause and gap, by id."""
    sections = yaml.load(CLAUSES.read_text(), _LOADER)
    return {clause["id"]: clause["level"] for section in sections for clause in section["clauses"]}


def _place(source: str, name: str, row: str) -> tuple[int, int]:
    """Where the function or class `name` (dotted) lies in `source`, its decorators included."""
    if not name:
        return 0, len(source)
    node = definition(source, name, row)
    lines = source.splitlines(keepends=True)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return sum(map(len, lines[: first - 1])), sum(map(len, lines[: node.end_lineno]))


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definition(source: str, name: str, row: str) -> _Definition:
    """The function or class `name` (dotted) of `source`; MutationError, of `row`, unless there is one."""
    found = [node for full, node in _definitions(source) if full == name]
    if len(found) != 1:
        raise MutationError(f"{row}: {name} is there {len(found)} times")
    return found[0]


@cache
def _definitions(source: str) -> list[tuple[str, _Definition]]:
    return list(_below(ast.parse(source), ""))


def _below(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield prefix + child.name, child
            yield from _below(child, f"{prefix}{child.name}.")
