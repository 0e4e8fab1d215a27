"""`make test`: all tests in two lanes side by side, `python -m tests.lanes [PYTEST'S ARGUMENTS]`.

One lane boots guests, which keep one core busy. The other lane is everything else, on the other core, and then as many
tests that boot guests as make the lanes equally long (`BEHIND`). So two guests run at a time, three while a test has
two. The first lane is shown as it goes, the second as one block when it has ended. With one core, all tests are one
lane. By hand `pytest`, with whatever arguments, is as good.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

ROOT = Path(__file__).parents[1]
BOOTING = ("tests/booted", "guest_tests")
BEHIND = (
    "tests/booted/test_bare_kernel.py",
    "tests/booted/test_bench.py",
    "tests/booted/test_configs.py",
    "tests/booted/test_disk_image.py",
    "tests/booted/test_faults_stock.py",
    "tests/booted/test_hostile_soak.py",
    "tests/booted/test_hot_plug.py",
    "tests/booted/test_lifecycle.py",
    "tests/booted/test_recipe_tools.py",
    "tests/booted/test_recipes.py",
    "tests/booted/test_scenarios.py",
)
ONE_GUEST = "--guest-live=1"  # a lane
POLL_S = 0.5


def main(arguments: Sequence[str]) -> int:
    """The exit status of the first lane that failed, or 0."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    if len(os.sched_getaffinity(0)) < 2:
        return subprocess.run(pytest, cwd=ROOT, check=False).returncode
    booting, others = ([*pytest, ONE_GUEST, *selection] for selection in selections(ROOT))
    color = ["--color=yes"] if sys.stdout.isatty() else []
    # Each keeps its own list of failures: `pytest --lf` by hand begins with those of the first lane.
    return run(booting, [*others, *color, "-o", "cache_dir=.pytest_cache/others"])


def selections(root: Path, behind: Sequence[str] = BEHIND) -> tuple[list[str], list[str]]:
    """Arguments for pytest: what boots guests but for `behind`, and what does not, with `behind` at its end.

    No path is named as an argument, so each is a session in full.
    """
    others = [
        f"tests/{path.name}"
        for path in sorted((root / "tests").iterdir())
        if f"tests/{path.name}" not in BOOTING and (path.is_dir() or path.name.startswith("test_"))
    ]
    booting = [_testpaths(BOOTING), *(f"--ignore={path}" for path in behind)]
    return ["-o", *booting], ["-o", _testpaths([*others, *behind])]


def _testpaths(paths: Sequence[str]) -> str:
    return f"testpaths={' '.join(paths)}"


def run(shown: Sequence[str], kept: Sequence[str]) -> int:
    """Run both commands; what `kept` says is shown when it has ended. SIGINT and SIGTERM end both, in order."""
    with tempfile.TemporaryFile() as said:
        first = subprocess.Popen(shown, cwd=ROOT)
        second = subprocess.Popen(kept, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        lanes = (first, second)

        def end(signum: int, frame: FrameType | None) -> None:
            for lane in lanes:
                if lane.poll() is None:
                    lane.send_signal(signum)

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            _follow(first, second, said)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return first.returncode or second.returncode


def _follow(first: subprocess.Popen[bytes], second: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """Until both have ended. The second's words are shown once, its last line again where the first ended later."""
    last = ""
    while first.poll() is None or second.poll() is None:
        try:
            (second if second.poll() is None else first).wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
        if second.poll() is not None and not last:
            last = _show(said)
    last = last or _show(said)
    print(f"\nThe second lane: {last}", flush=True)


def _show(said: IO[bytes]) -> str:
    """Print what the second lane said; its last line."""
    said.seek(0)
    text = said.read().decode(errors="replace").strip()
    print(f"\n\nThe second lane has ended:\n{text}\n", flush=True)
    return text.rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
