"""`make shell` and the terminal it is started on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]
MISSING = "./there-is-no-such-disk"
SHELL = [sys.executable, "-m", "guest_tests.shell", "--disk", MISSING]
BRIEFLY_RAW = "from guest_tests.shell import raw_terminal\nwith raw_terminal(): pass"


def test_input_that_cannot_be_waited_for_is_refused_before_anything_starts() -> None:
    done = subprocess.run(SHELL, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stdout.startswith("standard input: nobody can type there (run it in a terminal;")
    assert done.stderr == ""


def test_a_pipe_may_type() -> None:
    done = subprocess.run(SHELL, cwd=ROOT, input="", capture_output=True, text=True, check=False)

    assert "vm.disk: " in done.stdout


def test_the_terminal_is_usable_afterwards() -> None:
    """SeaBIOS switches the wrapping of lines off; the guest, which switches it on, may never have come so far."""
    ours, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        done = subprocess.run(
            [sys.executable, "-c", BRIEFLY_RAW], cwd=ROOT, stdin=terminal, capture_output=True, check=False
        )
        after = termios.tcgetattr(terminal)
    finally:
        os.close(ours)
        os.close(terminal)

    assert done.returncode == 0, done.stderr
    assert after == before
    assert b"\x1b[?7h" in done.stdout
