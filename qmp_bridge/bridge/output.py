"""What a client has not read yet, with its limits. No I/O.

Replies and events are in one queue, so that their order is QEMU's. A reply that has to wait for something of ours holds
back all that comes after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

PAUSE_NBYTES = 64 << 10  # with so much unread no further command of the client is executed
MAX_NBYTES = 8 << 20  # of events, beyond the replies to commands it has sent: with more it is cut off


class Output:
    """One client's. `changed` is called when there is something to write, or less than there was."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.nbytes = 0  # not written yet, what is held back included
        self._changed = changed
        self._lines: deque[bytes] = deque()
        self._held: deque[bytes] | None = None

    @property
    def paused(self) -> bool:
        """Whether the client should read before anything else is done for it."""
        return self.nbytes > PAUSE_NBYTES

    @property
    def overrun(self) -> bool:
        """Whether the client has let too much lie."""
        return self.nbytes > MAX_NBYTES

    @property
    def empty(self) -> bool:
        """Whether everything is written."""
        return not self.nbytes

    def add(self, line: bytes) -> None:
        """The next line, behind all others."""
        (self._lines if self._held is None else self._held).append(line)
        self.nbytes += len(line)
        self._changed()

    def hold(self) -> None:
        """From now on lines wait, until `release` brings the one they must not overtake."""
        self._held = deque() if self._held is None else self._held

    def release(self, line: bytes) -> None:
        """The line that was waited for, and then those behind it."""
        held, self._held = self._held or deque(), None
        self.add(line)
        self._lines += held

    def peek(self) -> bytes:
        """What can be written next, at most some 64 KiB and never cut off within a shorter line; empty: nothing."""
        if not self._lines:
            return b""
        if len(self._lines) > 1 and len(self._lines[0]) < PAUSE_NBYTES:
            joined = list[bytes]()
            total = 0
            while self._lines and total < PAUSE_NBYTES:
                joined.append(self._lines.popleft())
                total += len(joined[-1])
            self._lines.appendleft(b"".join(joined))
        return self._lines[0]

    def written(self, count: int) -> None:
        """The first `count` bytes of `peek` have gone."""
        first = self._lines.popleft()
        if count < len(first):
            self._lines.appendleft(first[count:])
        self.nbytes -= count
        self._changed()
