"""Which tests for clauses there are now, on which axes, and how many cases of each: nothing is run."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from guest_tests.runner.collection import collect
from guest_tests.runner.library import guest_library
from guest_tests.runner.nodes import runs_on
from tests.conformance.results import Tally, count, merged
from tests.conformance.table import AXES, ROOT, SUITE, clauses_of
from vdev.parts.cache import Cache
from vdev.parts.progress import quiet

FOLDER = ROOT / "tests"
_DEFINED = re.compile(r"^\s*(?:async )?def test_[dgpq]\d+_", re.MULTILINE)
COLLECT_S = 120.0


class NotCollected(Exception):
    """Tests cannot be collected; the text is pytest's."""


@cache
def all_tests() -> Tally:
    """Every test for a clause. Raises NotCollected and PartsError."""
    return merged(suite_tests(), host_tests())


def suite_tests() -> Tally:
    """Those of the suite, as the guest's Python finds them, on its machines and in process."""
    return count(_suite_cases())


def _suite_cases() -> Iterator[tuple[str, str, str]]:
    cache = Cache()
    collection = collect(SUITE, guest_library(cache, quiet), cache)
    for problem in collection.problems.values():
        raise NotCollected(problem["text"])
    where = SUITE.relative_to(ROOT).as_posix()
    for found in (found for tests in collection.modules.values() for found in tests):
        test = found.id.partition("[")[0]
        if clauses_of(test.rpartition("::")[2]):
            yield from ((f"{where}/{test}", axis.id, "collected") for axis in AXES if runs_on(found, axis.id))


def host_files() -> list[Path]:
    """The files of host tests that have a test for a clause."""
    return sorted(path for path in FOLDER.rglob("test_*.py") if _has_one(path.read_text(encoding="utf-8")))


def _has_one(source: str) -> bool:
    """Whether a test for a clause is defined there; one in a text, of a test of this very kind, is none."""
    if not _DEFINED.search(source):
        return False
    return any(
        clauses_of(node.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@cache
def host_tests() -> Tally:
    """Those of tests/, as pytest finds them; their markers say on which axes."""
    files = host_files()
    if not files:
        return {}
    with tempfile.TemporaryDirectory(prefix="vdev-") as directory:
        answer = Path(directory) / "collected.json"
        options = ["--collect-only", "-q", "-p", "no:cacheprovider", f"--conformance-collected={answer}"]
        argv = [sys.executable, "-m", "pytest", *options, *map(str, files)]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=COLLECT_S, check=False)
        if done.returncode != 0 or not answer.exists():
            raise NotCollected(f"{done.stdout}{done.stderr}")
        tally: Tally = json.loads(answer.read_text())
        return tally
