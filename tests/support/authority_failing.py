"""An authority that kills itself at a point of a commit.

    python -m tests.support.authority_failing DIRECTORY POINT NUMBER

NUMBER counts the commits since it serves. Prints a line once it does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from vdev.authority.server import Authority, locked


class Failing:
    """Counts, and ends the process as kill -9 does."""

    def __init__(self, point: str, number: int) -> None:
        self._point = point
        self._left = number
        self.is_armed = False

    def step(self, point: str) -> None:
        if self.is_armed and point == self._point:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


async def serve(directory: Path, failing: Failing) -> None:
    authority = Authority(directory, None, step=failing.step)

    def announce(line: str) -> None:
        failing.is_armed = True
        os.write(1, line.encode() + b"\n")

    await authority.run(announce)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    with locked(where):
        asyncio.run(serve(where, Failing(sys.argv[2], int(sys.argv[3]))))
