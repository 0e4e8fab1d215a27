"""A program in a terminal of its own: what a person types, and what the screen says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence

WAIT_S = 30.0
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][0AB]|[=>])|[\x0e\x0f\r]")


class Terminal:
    """A program and what it has written so far."""

    def __init__(self, master: int) -> None:
        self._master = master
        self.screen = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, nudge: str = "") -> str:
        """What was written since the last call, up to and with `text`. `nudge`: keys to press while nothing comes."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} does not come; the screen says {self.screen!r}"
            if not select.select([self._master], [], [], 0.1)[0]:
                self.type(nudge)
            else:
                try:
                    chunk = os.read(self._master, 65536)
                except OSError:  # the program has ended
                    raise AssertionError(f"it ended before it said {text!r}: {self.screen!r}") from None
                self.screen = _CONTROL.sub("", self.screen + chunk.decode(errors="replace"))
        end = self.screen.index(text) + len(text)
        seen, self.screen = self.screen[:end], self.screen[end:]
        return seen


@contextlib.contextmanager
def terminal(command: Sequence[str], env: Mapping[str, str]) -> Iterator[Terminal]:
    """Run `command` in a terminal of 120 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 50, 120, 0, 0))
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm", **env},
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
