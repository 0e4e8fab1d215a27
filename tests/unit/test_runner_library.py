"""What every guest carries: found by its content, complete or absent, and old ones go."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from guest_tests.runner import library
from guest_tests.runner.library import INI, KEPT, PACKAGES, GuestLibrary
from vdev.errors import PartsError
from vdev.parts.userland import GuestPython


def a_library(root: Path, *command: str) -> GuestLibrary:
    return GuestLibrary(root, GuestPython(command, {}))


def test_the_name_changes_with_every_file_and_its_content() -> None:
    digests = [
        library._digest(sources)
        for sources in ({"a": b"1"}, {"a": b"2"}, {"b": b"1"}, {"a": b"1", "b": b""}, {"a": b"", "b": b"1"}, {})
    ]
    assert len(set(digests)) == len(digests)
    assert library._digest({"a": b"1"}) == digests[0]


def test_pytest_and_the_payload_are_among_the_sources() -> None:
    sources = dict(library._sources())
    assert {name.partition("/")[0].removesuffix(".py") for name in sources} >= {*PACKAGES, "pygments", "main"}
    assert "guest_tests/payload/agent.py" in sources
    assert "guest_tests/payload/direct/viommu.py" in sources
    assert sources["guest_tests/__init__.py"] == b""


def test_a_package_that_is_not_there_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PACKAGES", ("no_such_package_here",))
    with pytest.raises(PartsError, match="this Python has no no_such_package_here"):
        dict(library._sources())


def test_a_library_compiled_by_this_python_is_complete(tmp_path: Path) -> None:
    root = tmp_path / "made"
    library._make(root, {"a.py": b"x = 1\n", "b/c.py": b""}, GuestPython((sys.executable,), dict(os.environ)))

    files = a_library(root).files()

    assert {"a.py", "b/c.py", INI} <= set(files)
    assert sum(name.endswith(".pyc") for name in files) == 2


def test_what_cannot_be_compiled_is_an_error_and_no_library(tmp_path: Path) -> None:
    root = tmp_path / "made"
    with pytest.raises(PartsError, match="cannot compile it"):
        library._make(root, {"a.py": b"this is no Python\n"}, GuestPython((sys.executable,), dict(os.environ)))
    assert not (root / INI).exists()


def test_the_newest_and_the_current_stay(tmp_path: Path) -> None:
    for n in range(KEPT + 3):
        (tmp_path / str(n)).mkdir()
        os.utime(tmp_path / str(n), (n, n))

    library._prune(tmp_path, tmp_path / "0")

    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [0, *range(3, KEPT + 3)]


def test_a_module_gets_its_input_and_its_output_is_returned(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text("import sys\nprint(sys.stdin.read().upper())\n")
    done = a_library(tmp_path, sys.executable).run("shout", "hello", 30)
    assert done.stdout == "HELLO\n"


def test_a_python_that_does_not_run_here_is_said(tmp_path: Path) -> None:
    with pytest.raises(PartsError, match="it does not run on this host"):
        a_library(tmp_path, str(tmp_path / "no-python")).run("any", "", 30)


def test_a_module_that_never_ends_is_ended(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(PartsError, match="hang was not done within 0 s"):
        a_library(tmp_path, sys.executable).run("hang", "", 0.2)
