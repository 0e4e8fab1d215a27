"""docs/conformance.json: what became of every test for a clause on every machine, when it last was recorded.

A line for each test, in order, and no times: a change of one test is a change of one line.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.table import AXES_BY_ID, ROOT
from vdev.parts.kernel import DEFAULT_FLAVOUR, find_kernel
from vdev.parts.progress import to_stderr
from vdev.parts.qemu import find_qemu

RESULTS = ROOT / "docs" / "conformance.json"
Tally = dict[str, dict[str, dict[str, int]]]  # test -> id of the axis -> outcome -> how many cases


class ResultsError(Exception):
    """There is no readable record; the text names the command that makes one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was tested: the commit of the tree, and the versions of what stood around it."""

    commit: str
    kernel: str
    qemu: str


@dataclass(frozen=True, slots=True)
class Results:
    """The whole record."""

    facts: Facts
    tests: Tally


def count(rows: Iterable[tuple[str, str, str]]) -> Tally:
    """A tally of (test, id of the axis, outcome)."""
    tally: Tally = {}
    for test, axis, outcome in rows:
        outcomes = tally.setdefault(test, {}).setdefault(axis, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return tally


def merged(*tallies: Tally) -> Tally:
    """All of them; no two have the same test on the same axis."""
    whole: Tally = {}
    for tally in tallies:
        for test, axes in tally.items():
            whole.setdefault(test, {}).update(axes)
    return whole


def load_results(path: Path = RESULTS) -> Results:
    """The record. Raises ResultsError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tests = {
            test: {axis: {"passed": given} if isinstance(given, int) else dict(given) for axis, given in axes.items()}
            for test, axes in found.pop("tests").items()
        }
        return Results(Facts(**found), tests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: {error!r}; `make conformance` writes it") from None


def text_of(results: Results) -> str:
    """The file's content. A number alone is that of cases that passed, all there were."""
    rows = []
    for test, axes in sorted(results.tests.items()):
        short = {axis: _short(axes[axis]) for axis in AXES_BY_ID if axis in axes}
        rows.append(f"{json.dumps(test)}: {json.dumps(short)}")
    facts = results.facts
    head = {"commit": facts.commit, "kernel": facts.kernel, "qemu": facts.qemu}
    lines = [*(f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()), '"tests": {']
    return "\n".join(["{", *lines, ",\n".join(rows), "}", "}", ""])


def _short(outcomes: dict[str, int]) -> int | dict[str, int]:
    return outcomes["passed"] if set(outcomes) == {"passed"} else dict(sorted(outcomes.items()))


def facts_now() -> Facts:
    """Of the tree and the parts that guests run on. Raises PartsError."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    kernel, qemu = find_kernel(DEFAULT_FLAVOUR, to_stderr), find_qemu(None, to_stderr)
    return Facts(done.stdout.strip(), kernel.version, qemu.version)
