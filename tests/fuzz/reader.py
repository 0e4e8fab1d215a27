"""Numbers and bytes out of a fuzzer's input: whatever is read behind its end is zero."""

from __future__ import annotations

WORD = (1 << 64) - 1


class Reader:
    """Takes an input apart from its start. Loops over `more`, which ends: every read moves on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether a byte is left."""
        return self._at < len(self._data)

    def take(self, nbytes: int) -> bytes:
        """At most `nbytes` bytes: fewer at the end of the input."""
        start, self._at = self._at, self._at + nbytes
        return self._data[start : self._at]

    def number(self, nbytes: int) -> int:
        """A little-endian number of `nbytes` bytes."""
        return int.from_bytes(self.take(nbytes), "little")

    def byte(self) -> int:
        """One byte, 0..255."""
        return self.number(1)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))
