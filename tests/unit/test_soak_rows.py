"""The record of the soak tier: rows of both folders, and of runs of a part."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent.parent / "conftest.py"
SOAK_TEST = """
import pytest

@pytest.mark.soak(count=7, seed=3)
def test_it():
    assert {passes}

def test_no_soak():
    pass
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree like this one: the real conftest.py, one soak test in each folder."""
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = soak(count, seed): as here\n")
    for folder in ("tests", "guest_tests", "docs"):
        (tmp_path / folder).mkdir()
    for folder in ("tests", "guest_tests"):
        (tmp_path / folder / f"test_{folder}.py").write_text(SOAK_TEST.format(passes=True))
    return tmp_path


def soak(tree: Path, *which: str, tier: str = "soak") -> None:
    """Run pytest in `tree`, whatever comes of its tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *which]
    environment = {**os.environ, "VDEV_TIER": tier, "PYTHONPATH": str(CONFTEST.parent)}  # for the plugin it names
    subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=60, check=False)


def rows(tree: Path) -> dict[str, tuple[int, str]]:
    """Folder of each row -> count and result."""
    written = json.loads((tree / "docs" / "soak.json").read_text())
    return {row["check"].partition("/")[0]: (row["count"], row["result"]) for row in written}


def test_a_run_of_both_folders_writes_the_rows_of_both_and_of_soak_tests_only(tree: Path) -> None:
    soak(tree)

    assert rows(tree) == {"tests": (7, "passed"), "guest_tests": (7, "passed")}


def test_a_run_of_one_folder_keeps_the_rows_of_the_other_and_renews_its_own(tree: Path) -> None:
    soak(tree)
    (tree / "guest_tests" / "test_guest_tests.py").write_text(SOAK_TEST.format(passes=False))

    soak(tree, "guest_tests")

    assert rows(tree) == {"tests": (7, "passed"), "guest_tests": (7, "failed")}


def test_the_row_of_a_file_that_is_gone_goes_with_the_next_run(tree: Path) -> None:
    soak(tree)
    (tree / "tests" / "test_tests.py").unlink()

    soak(tree, "guest_tests")

    assert rows(tree) == {"guest_tests": (7, "passed")}


def test_the_reduced_tier_writes_nothing(tree: Path) -> None:
    soak(tree, tier="")

    assert list((tree / "docs").iterdir()) == []
