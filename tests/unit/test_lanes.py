"""`make test` in two lanes: every test in exactly one, and nothing of what a lane says or how it ends is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lanes import BEHIND, BOOTING, ROOT, run, selections

SAYING = "import sys; print(sys.argv[1]); sys.exit(int(sys.argv[2]))"
WAITING = "import time; print('waits', flush=True); time.sleep(60)"


def saying(what: str, status: int) -> list[str]:
    return [sys.executable, "-c", SAYING, what, str(status)]


FILES = (
    "tests/booted/test_a.py",
    "tests/booted/test_behind.py",
    "tests/unit/deep/test_b.py",
    "tests/wires/test_c.py",
    "tests/test_d.py",
    "guest_tests/test_e.py",
)


def collected(root: Path, arguments: list[str]) -> list[str]:
    """The files whose tests a session of `root` has, in order."""
    listing = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    done = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True, timeout=60)
    return [line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line]


def test_every_file_of_tests_is_in_exactly_one_lane(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests guest_tests\n")
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("def test_it():\n    pass\n")

    behind = "tests/booted/test_behind.py"
    booting, others = (collected(tmp_path, selection) for selection in selections(tmp_path, [behind]))

    assert sorted(booting) == sorted(name for name in FILES if name.startswith(BOOTING) and name != behind)
    assert sorted([*booting, *others]) == sorted(FILES)
    assert others[-1] == behind


def test_the_lanes_are_those_of_this_tree() -> None:
    assert all((ROOT / name).is_dir() for name in BOOTING)
    assert all((ROOT / name).is_file() and name.startswith(BOOTING) for name in BEHIND)
    assert ROOT.joinpath("Makefile").read_text().count("-m tests.lanes") == 1


@pytest.mark.parametrize(("first", "second", "status"), [(0, 0, 0), (1, 0, 1), (0, 2, 2), (3, 4, 3)])
def test_a_lane_that_fails_fails_the_whole(first: int, second: int, status: int) -> None:
    assert run(saying("one", first), saying("two", second)) == status


def test_what_the_second_lane_says_is_shown_with_its_last_line_at_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    run(saying("shown", 0), saying("first line\n9 passed", 0))

    said = capfd.readouterr().out
    assert "shown\n" in said
    assert "has ended:\nfirst line\n9 passed\n" in said
    assert said.endswith("The second lane: 9 passed\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_lanes(tmp_path: Path, number: signal.Signals) -> None:
    marks = [tmp_path / name for name in ("first", "second")]
    lanes = [
        [sys.executable, "-c", f"import os; open({str(mark)!r}, 'w').write(str(os.getpid())); {WAITING}"]
        for mark in marks
    ]
    script = f"import sys; from tests.lanes import run; sys.exit(run({lanes[0]!r}, {lanes[1]!r}) != 0)"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not all(mark.exists() and mark.read_text() for mark in marks):
        time.sleep(0.02)

    process.send_signal(number)
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "waits" in said
    for mark in marks:
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.read_text()), 0)
