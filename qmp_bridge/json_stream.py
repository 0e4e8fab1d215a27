"""Where QMP requests begin and end in a stream of bytes, by the rules of QEMU's own reader; and what a request says.

QMP is a stream of JSON values, not of lines: several may be on one line and one on many. QEMU takes strings in single
quotes as well, gives up on more than 1024 levels or 64 MiB, and recovers from a lexical error at the next structural or
control character (docs/interop/qmp-spec, qobject/json-lexer.c, json-streamer.c). Nothing is lost here: every byte that
goes in comes out, in order, so that what is wrong reaches QEMU and is refused there; only a value without end does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

MAX_NBYTES = 64 << 20
MAX_NESTING = 1024

_WHITESPACE = " \t\r\n"


class _State(Enum):
    START = "start"
    DOUBLE = "double"
    SINGLE = "single"
    DOUBLE_ESCAPE = "double-escape"
    SINGLE_ESCAPE = "single-escape"
    RECOVERY = "recovery"


# The next byte that matters in each state; everything before it belongs to a token or lies between tokens.
_NEXT = {
    _State.START: re.compile(rb"""[^ \t\r\n0-9A-Za-z,:.+-]"""),
    _State.DOUBLE: re.compile(rb'["\\\x00-\x1f\xfe\xff]'),
    _State.SINGLE: re.compile(rb"['\\\x00-\x1f\xfe\xff]"),
    _State.DOUBLE_ESCAPE: re.compile(rb"[\x00-\xff]"),
    _State.SINGLE_ESCAPE: re.compile(rb"[\x00-\xff]"),
    _State.RECOVERY: re.compile(rb"[\x00-\x08\x0a-\x1f\xfe\xff\[\]{}:,]"),
}
_ESCAPED = {_State.DOUBLE_ESCAPE: _State.DOUBLE, _State.SINGLE_ESCAPE: _State.SINGLE}
_IN_STRING = {_State.DOUBLE: _State.DOUBLE_ESCAPE, _State.SINGLE: _State.SINGLE_ESCAPE}


class Piece(NamedTuple):
    """A part of the stream. `is_value`: one whole `{...}` or `[...]`; else blanks, scalars and what nobody can read."""

    data: bytes
    is_value: bool


class JsonStream:
    """Cuts a stream into pieces. It keeps back at most one value that has not ended, of up to 64 MiB."""

    def __init__(self) -> None:
        self._state = _State.START
        self._braces = self._brackets = 0
        self._pending = bytearray()  # of a value that has not ended
        self._out: list[Piece] = []

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that `data` completes."""
        start = at = 0
        while match := _NEXT[self._state].search(data, at):
            at, byte = match.end(), match[0]
            if self._state is _State.RECOVERY:
                self._state, at = _State.START, match.start()  # look at it again
            elif self._state in _ESCAPED:
                if b"\x20" <= byte <= b"\xfd":
                    self._state = _ESCAPED[self._state]
                else:
                    start = self._give_up(data, start, at)
            elif self._state is _State.START:
                start = self._structure(data, start, at, byte)
            elif byte == b"\\":
                self._state = _IN_STRING[self._state]
            elif byte in (b'"', b"'"):
                self._state = _State.START
            else:
                start = self._give_up(data, start, at)
        self._keep(data[start:])
        out, self._out = self._out, []
        return out

    @property
    def _inside(self) -> bool:
        return self._braces > 0 or self._brackets > 0

    def _structure(self, data: bytes, start: int, at: int, byte: bytes) -> int:
        """Take in the byte before `at`, which is outside strings; where what was not given out yet starts."""
        if byte in b"{[":
            if not self._inside:
                self._emit(data[start : at - 1], is_value=False)
                start = at - 1
            self._braces += byte == b"{"
            self._brackets += byte == b"["
            return start if self._braces + self._brackets <= MAX_NESTING else self._reset(data, start, at)
        if byte in b"}]":
            self._braces -= byte == b"}"
            self._brackets -= byte == b"]"
            if self._braces < 0 or self._brackets < 0:
                return self._reset(data, start, at)
            if self._inside:
                return start
            self._emit(data[start:at], is_value=True)
            return at
        if byte in b"\"'":
            self._state = _State.DOUBLE if byte == b'"' else _State.SINGLE
            return start
        return self._give_up(data, start, at)

    def _give_up(self, data: bytes, start: int, at: int) -> int:
        """A lexical error before `at`: QEMU forgets what it has of the value, and skips."""
        self._state = _State.RECOVERY
        return self._reset(data, start, at)

    def _reset(self, data: bytes, start: int, at: int) -> int:
        self._emit(data[start:at], is_value=False)
        self._braces = self._brackets = 0
        return at

    def _keep(self, rest: bytes) -> None:
        """`rest` ends the input so far: keep it if a value is open."""
        if not self._inside:
            self._emit(rest, is_value=False)
            return
        self._pending += rest
        if len(self._pending) > MAX_NBYTES:
            self._reset(b"", 0, 0)

    def _emit(self, data: bytes, *, is_value: bool) -> None:
        whole = bytes(self._pending) + data
        self._pending.clear()
        if whole:
            self._out.append(Piece(whole, is_value))


@dataclass(frozen=True)
class Request:
    """What a QMP request says. `id_text` is its id as JSON text, None when it has none."""

    name: str
    arguments: object
    texts: Mapping[str, str]  # every member's value as JSON text

    def with_members(self, texts: Mapping[str, str], without: str = "") -> bytes:
        """The same request with these members in place of its own, or besides, and `without` one."""
        members = {**self.texts, **texts}
        shown = [f"{json.dumps(name)}: {text}" for name, text in members.items() if name != without]
        return ("{" + ", ".join(shown) + "}").encode("utf-8", "surrogateescape")

    @property
    def verb(self) -> str:
        """The member that names the command: execute or exec-oob."""
        return "exec-oob" if "exec-oob" in self.texts else "execute"


class Unreadable(Exception):
    """A value we cannot read; it must not reach QEMU, which would go on reading in the middle of it.

    QEMU's lexer forgets what it has at the first character that cannot be, and a whole command may follow within what
    is one value for us: `{N{"execute": "stop"}}`.
    """


class TooDeep(Unreadable):
    """A request that QEMU may be able to read and we are not."""


# A string of either kind; escapes are any pair.
_STRING = re.compile(r"""("(?:[^"\\]|\\.)*")|'((?:[^'\\]|\\.)*)'""", re.DOTALL)
_ESCAPE_OR_QUOTE = re.compile(r"""\\.|\"""", re.DOTALL)


def _number(text: str) -> None:
    """No number is looked at, and one of more digits than Python converts must not be an error."""


def _no_constant(text: str) -> None:
    """NaN and Infinity, which are Python's alone."""
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(strict=False, parse_int=_number, parse_float=_number, parse_constant=_no_constant)


def read_request(raw: bytes) -> Request | None:
    """The request in one value of the stream; None for an object that names no command. Raises Unreadable."""
    text = _STRING.sub(_standard_string, raw.decode("utf-8", "surrogateescape"))
    try:
        members = _members(text)
    except RecursionError:
        raise TooDeep from None
    except (ValueError, IndexError):
        raise Unreadable from None
    if ("exec-oob" in members) == ("execute" in members):
        return None
    name, _ = members.get("exec-oob") or members["execute"]
    arguments, _ = members.get("arguments", ({}, ""))
    texts = {key: text for key, (_, text) in members.items()}
    return Request(name, arguments, texts) if isinstance(name, str) else None


def _standard_string(match: re.Match[str]) -> str:
    """A string of QEMU's grammar in JSON's: `\\'` is an apostrophe in both kinds, quotes in single ones need a \\."""
    inside = match[1][1:-1] if match[1] is not None else match[2]
    standard = {"\\'": "'", '"': '\\"'}
    return '"' + _ESCAPE_OR_QUOTE.sub(lambda part: standard.get(part[0], part[0]), inside) + '"'


def _members(text: str) -> dict[str, tuple[object, str]]:
    """The outermost object's members: name -> (value, its text). ValueError or IndexError when it is none."""
    members: dict[str, tuple[object, str]] = {}
    at = _skip(text, 0)
    if text[at] != "{":
        raise ValueError("not an object")
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] != ":" or not isinstance(key, str) or key in members:
            raise ValueError("not a member, or one twice")
        begin = _skip(text, at + 1)
        value, at = _decoder.raw_decode(text, begin)
        members[key] = (value, text[begin:at])
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
            if text[at] == "}":
                raise ValueError("a comma without a member")
        elif text[at] != "}":
            raise ValueError("no comma")
    return members


def _skip(text: str, at: int) -> int:
    while text[at] in _WHITESPACE:
        at += 1
    return at
