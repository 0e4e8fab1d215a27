"""Where QMP requests begin and end in a stream of bytes, by the rules of QEMU's own reader. No I/O.

QMP is a stream of JSON values, not of lines: several may be on one line and one on many. After a character that cannot
be, QEMU forgets what it has of a value, skips to the next structural or control character, and reads on there; each
piece that cannot be read is answered once. (docs/interop/qmp-spec; the rest was found by asking QEMU 11.1.)

Only what has been read here goes on to QEMU, written anew: what its reader might find in the middle of something that
is one value for us, or none, never reaches it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qmp_bridge.json_text import NUMBER, STRING, BadJson, read_value

MAX_NBYTES = 1 << 20  # of one value; QEMU: 64 MiB
MAX_NESTING = 512  # QEMU: 1024
MAX_WORD_NBYTES = 4096  # of a number or a keyword
TOO_DEEP = "JSON nesting depth limit exceeded"
TOO_LONG = "JSON token size limit exceeded"

_WORD = rb"(?:%s|[a-z]++)(?!\Z)" % NUMBER  # one at the end of the input may go on
_BLANKS = re.compile(rb"[ \t\r\n]++")
_SCALAR = re.compile(rb"%s|%s|[,:]" % (STRING, _WORD))
_SCALARS = re.compile(rb"(?:[ \t\r\n,:]++|%s|%s)*+" % (STRING, _WORD))
_RECOVERED = re.compile(rb"[\x00-\x08\x0a-\x1f\xfe\xff\[\]{}:,]")
_NUMBER_START = re.compile(rb"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:(?<=[0-9])[eE][+-]?[0-9]*)?)?")
_STRING_BODY = {
    quote: re.compile(rb"[^%c\\\x00-\x1f\xfe\xff]*+(?:\\[\x20-\xfd][^%c\\\x00-\x1f\xfe\xff]*+)*+" % (quote, quote))
    for quote in b"\"'"
}
_OPENING = {ord("}"): ord("{"), ord("]"): ord("[")}
_LETTERS = frozenset(range(ord("a"), ord("z") + 1))
_DIGITS = frozenset(b"-0123456789")


@dataclass(frozen=True, slots=True)
class Value:
    """A whole value that was read."""

    value: Any


@dataclass(frozen=True, slots=True)
class Broken:
    """A piece that cannot be read; `problem` in QEMU's words, with line and column in the stream."""

    problem: str


class JsonStream:
    """Cuts one client's stream into pieces. It keeps at most one value that has not ended, and what was fed last."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # everything before it belongs to tokens that are known
        self._start = 0  # of the value that has not ended
        self._braces = self._brackets = 0  # that are open, as QEMU counts them
        self._open = bytearray()  # in their order
        self._searched = 0  # the string that has not ended is sound up to here
        self._recovering = False  # after a lexical error
        self._discarding = False  # a value over a limit: it was answered, and goes on
        self._line, self._line_start, self._counted = 1, 0, 0  # offsets in `_data`; before it: negative

    def feed(self, data: bytes) -> None:
        """Take in what the client sent. `pull` gives the pieces."""
        self._data += data

    def pull(self) -> Value | Broken | None:
        """The next piece, or None until more is fed."""
        while True:
            piece, more = self._step()
            if piece is not None or not more:
                self._forget()
                return piece

    @property
    def _inside(self) -> bool:
        return self._braces > 0 or self._brackets > 0

    def _step(self) -> tuple[Value | Broken | None, bool]:
        """What the next token completes, if anything; and whether there may be more to find."""
        data = self._data
        if self._recovering:
            found = _RECOVERED.search(data, self._at)
            self._at = found.start() if found else len(data)
            self._recovering = found is None
        if self._inside and not self._searched:
            self._at = _SCALARS.match(data, self._at).end()  # type: ignore[union-attr]  # it matches nothing as well
        elif not self._inside and (blanks := _BLANKS.match(data, self._at)):
            self._at = blanks.end()
        if self._inside and self._at - self._start > MAX_NBYTES and not self._discarding:
            return self._over(TOO_LONG), True
        if self._at == len(data):
            return None, False
        if data[self._at] in b"{}[]":
            return self._structure(data[self._at]), True
        if not self._inside and not self._searched and (scalar := _SCALAR.match(data, self._at)):
            self._start, self._at = self._at, scalar.end()
            return self._whole(), True
        return self._odd(data[self._at])

    def _structure(self, byte: int) -> Value | Broken | None:
        if not self._inside:
            self._start = self._at
        self._at += 1
        self._braces += (byte == ord("{")) - (byte == ord("}"))
        self._brackets += (byte == ord("[")) - (byte == ord("]"))
        goes_on = self._inside and self._braces >= 0 and self._brackets >= 0
        if not goes_on:
            self._braces = self._brackets = 0
        if self._discarding:
            self._discarding = goes_on
            return None
        if byte in b"{[":
            self._open.append(byte)
            return self._over(TOO_DEEP) if len(self._open) > MAX_NESTING else None
        matching = bool(self._open) and self._open.pop() == _OPENING[byte]
        if matching and goes_on:
            return None
        self._open.clear()
        self._discarding = goes_on  # QEMU answers a wrong bracket at once, and goes on counting
        return self._whole()

    def _over(self, problem: str) -> Broken:
        """The value is over a limit: what is left of it will be skipped."""
        self._discarding = True
        self._open.clear()
        return Broken(problem)

    def _whole(self) -> Value | Broken:
        try:
            return Value(read_value(bytes(self._data[self._start : self._at])))
        except BadJson as error:
            return self._broken(str(error), self._start + error.at)

    def _odd(self, byte: int) -> tuple[Value | Broken | None, bool]:
        """No token is at `_at`: one that has not ended yet, or none at all."""
        data, at = self._data, self._at
        if byte in _STRING_BODY:
            end = _STRING_BODY[byte].match(data, max(self._searched, at + 1)).end()  # type: ignore[union-attr]
            escaped = end < len(data) and data[end] == ord("\\")
            if end + escaped >= len(data):
                self._searched = end
                return self._unfinished(MAX_NBYTES)
            if data[end] == byte:  # what came since has ended it
                return self._end_string(end + 1)
            return self._stray(end + escaped + 1), True
        if byte in _DIGITS:
            end = _NUMBER_START.match(data, at).end()  # type: ignore[union-attr]
            return (self._stray(end + 1), True) if end < len(data) else self._unfinished(MAX_WORD_NBYTES)
        if byte in _LETTERS:
            return self._unfinished(MAX_WORD_NBYTES)
        return self._stray(at + 1), True

    def _end_string(self, end: int) -> tuple[Value | Broken | None, bool]:
        self._searched = 0
        if self._inside:
            self._at = end
            return None, True
        self._start, self._at = self._at, end
        return self._whole(), True

    def _unfinished(self, limit: int) -> tuple[Broken | None, bool]:
        if len(self._data) - self._at <= limit:
            return None, False
        self._reset(len(self._data))
        return Broken(TOO_LONG), True

    def _stray(self, end: int) -> Broken | None:
        """A lexical error: forget what there is of the value, and skip."""
        at, text = self._at, bytes(self._data[self._at : end]).partition(b"\0")[0]
        discarding = self._discarding
        self._reset(end)
        return None if discarding else self._broken(f"stray '{text.decode(errors='replace')[:200]}'", at)

    def _reset(self, at: int) -> None:
        self._at, self._searched = at, 0
        self._braces = self._brackets = 0
        self._open.clear()
        self._recovering, self._discarding = True, False

    def _broken(self, problem: str, at: int) -> Broken:
        self._count_lines(at)
        return Broken(f"{self._line}:{at - self._line_start + 1}: JSON parse error, {problem}")

    def _count_lines(self, at: int) -> None:
        if newlines := self._data.count(b"\n", self._counted, at):
            self._line += newlines
            self._line_start = self._data.rfind(b"\n", self._counted, at) + 1
        self._counted = max(at, self._counted)

    def _forget(self) -> None:
        """Drop what is not needed any more. (Taking bytes off the front of a bytearray copies nothing.)"""
        done = self._at if not self._inside or self._discarding else self._start
        if not done:
            return
        self._count_lines(done)
        self._searched = max(self._searched - done, 0)
        self._at -= done
        self._start = max(self._start - done, 0)
        self._line_start -= done
        self._counted -= done
        del self._data[:done]
