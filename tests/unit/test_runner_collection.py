"""What a suite's directory holds: files for the guest, answers kept, problems found for what lies below them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guest_tests.runner import collection
from guest_tests.runner.collection import Collection, collect, compiled, sources
from guest_tests.runner.library import GuestLibrary
from vdev.errors import PartsError
from vdev.parts.cache import Cache
from vdev.parts.userland import GuestPython

ITEM = {
    "id": "test_a.py::TestIt::test_one[x]", "module": "test_a.py", "chain": ["TestIt", "test_one[x]"], "line": 3,
    "marks": [{"name": "slow", "args": [], "kwargs": {}}], "keywords": ["word"],
}  # fmt: skip


class ScriptedLibrary(GuestLibrary):
    """A library whose Python gives a fixed answer; it remembers what it was asked."""

    def __init__(self, root: Path, answer: Any, stderr: str = "") -> None:
        super().__init__(root, GuestPython((), {}))
        self.asked: list[dict[str, Any]] = []
        self._answer = answer if isinstance(answer, str) else json.dumps(answer)
        self._stderr = stderr

    def run(self, module: str, text: str, seconds: float) -> subprocess.CompletedProcess[str]:
        self.asked.append(json.loads(text))
        return subprocess.CompletedProcess([], 0, self._answer, self._stderr)


def found(root: Path, answer: Any = None, stderr: str = "") -> tuple[Collection, ScriptedLibrary]:
    library = ScriptedLibrary(
        root, {"status": 0, "items": [ITEM], "problems": {}} if answer is None else answer, stderr
    )
    suite = root / "suite"
    suite.mkdir(exist_ok=True)
    return collect(suite, library, Cache(root / "cache")), library


def test_tests_are_found_by_module(tmp_path: Path) -> None:
    (test,) = found(tmp_path)[0].modules["test_a.py"]
    assert (test.id, test.chain, test.line) == ("test_a.py::TestIt::test_one[x]", ("TestIt", "test_one[x]"), 3)
    assert ([mark["name"] for mark in test.marks], test.keywords) == (["slow"], ("word",))


def test_the_tier_is_part_of_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VDEV_TIER", raising=False)
    found(tmp_path)
    monkeypatch.setenv("VDEV_TIER", "soak")
    _, asked_anew = found(tmp_path)
    _, known = found(tmp_path)
    assert (len(asked_anew.asked), len(known.asked)) == (1, 0)


def test_nobody_is_asked_again_until_a_file_changes(tmp_path: Path) -> None:
    found(tmp_path)
    _, unchanged = found(tmp_path)
    (tmp_path / "suite/data.txt").write_text("new")
    _, changed = found(tmp_path)

    assert (len(unchanged.asked), len(changed.asked)) == (0, 1)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"digest": 1}'])
def test_a_damaged_answer_is_asked_for_again(tmp_path: Path, damage: bytes) -> None:
    first, _ = found(tmp_path)
    (first.pycache / "collected.json").write_bytes(damage)

    again, library = found(tmp_path)

    assert (again, len(library.asked)) == (first, 1)


def test_a_cache_that_takes_nothing_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no directory")
    assert list(found(tmp_path)[0].modules) == ["test_a.py"]


def test_no_tests_are_no_error(tmp_path: Path) -> None:
    assert found(tmp_path, {"status": collection.NO_TESTS, "items": [], "problems": {}})[0].modules == {}


@pytest.mark.parametrize("answer", ["", "no JSON", {"status": 4, "items": [], "problems": {}}])
def test_a_pytest_that_does_not_run_is_an_error_with_its_words(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(PartsError, match=r"it cannot collect .*suite: conftest is wrong"):
        found(tmp_path, answer, stderr="conftest is wrong\n")


@pytest.mark.parametrize(
    ("place", "module"),
    [("a/test_x.py", "a/test_x.py"), ("a", "a/test_x.py"), ("a", "a/b/test_x.py"), (".", "a/test_x.py"), ("", "t.py")],
)  # fmt: skip
def test_a_problem_is_that_of_all_below_it(place: str, module: str) -> None:
    problem = {"outcome": "failed", "text": "why", "line": 0}
    assert Collection({}, {place: problem}, Path("/p")).problem(module) == problem


def test_a_problem_elsewhere_is_not_a_modules() -> None:
    assert Collection({}, {"a/test_y.py": {}, "ab": {"outcome": "failed"}}, Path("/p")).problem("a/test_x.py") == {}


def test_the_guest_gets_all_but_hidden_and_compiled_files(tmp_path: Path) -> None:
    for name in ("test_a.py", "b/data.bin", ".git/x", ".hidden", "__pycache__/a.pyc", "b/__pycache__/c.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink("/nowhere", tmp_path / "dangling")

    assert [name for name, _ in sources(tmp_path)] == ["test_a.py", "b/data.bin"]


def _many(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "MAX_NFILES", 2)
    for n in range(3):
        (root / str(n)).touch()


def _large(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(collection.MAX_FILE_NBYTES + 1)


@pytest.mark.parametrize(("make", "problem"), [(_many, "more than 2 files"), (_large, "large has more than 16 MiB")])
def test_what_is_too_much_for_a_guest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, pytest.MonkeyPatch], None], problem: str
) -> None:
    make(tmp_path, monkeypatch)
    with pytest.raises(PartsError, match=problem):
        list(sources(tmp_path))


def test_compiled_files_go_where_the_guests_python_looks(tmp_path: Path) -> None:
    root, pycache = Path("/suite"), tmp_path
    (pycache / "suite/sub").mkdir(parents=True)
    (pycache / "suite/sub/test_a.cpython-313-pytest.pyc").touch()

    ((where, here),) = compiled(root, pycache)

    assert where == "/suite/sub/__pycache__/test_a.cpython-313-pytest.pyc"
    assert here == pycache / "suite/sub/test_a.cpython-313-pytest.pyc"
