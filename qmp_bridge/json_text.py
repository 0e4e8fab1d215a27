"""One JSON value as QEMU reads it, with QEMU's words for what is wrong. No I/O.

Most values are plain JSON, which the standard library reads; what it refuses or reads otherwise is read here by the
rules of QEMU 11.1 (found by asking it): strings in single quotes, no key twice, no half surrogate pairs, no
noncharacters, NUL as the two bytes 0xc0 0x80. A number no double can hold is refused, which QEMU answers with `inf`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

_INT64_UINT64 = range(-(1 << 63), 1 << 64)
_LONGEST_UINT64 = 20  # digits; a sign makes it no longer

_BODY = {
    quote: rb"[^%s\\\x00-\x1f\xfe\xff]*+(?:\\[\x20-\xfd][^%s\\\x00-\x1f\xfe\xff]*+)*+" % (quote, quote)
    for quote in (b'"', b"'")
}
STRING = rb'"%s"|' % _BODY[b'"'] + rb"'%s'" % _BODY[b"'"]
NUMBER = (
    rb"-?(?:0(?![0-9.])|(?:0(?=\.)|[1-9][0-9]*+)"
    rb"(?:(?![0-9.eE])|\.[0-9]++(?:(?![0-9eE])|[eE][+-]?[0-9]++)|[eE][+-]?[0-9]++))"
)
_TOKEN = re.compile(rb"[ \t\r\n]*+(?:([{}\[\],:])|(%s)|(%s)|([a-z]++))" % (STRING, NUMBER))
_NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)) + "]"
)
_SUSPECT = re.compile(_NONCHARACTER.pattern + r"|\\u[dD][89a-fA-F]|\\u[fF][dDfF]")
_SURROGATE_PAIR = re.compile(r"[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {b"true": True, b"false": False, b"null": None}


class BadJson(Exception):
    """The value cannot be read. `at` is where in it the token stands that QEMU would name."""

    def __init__(self, problem: str, at: int) -> None:
        self.at = at
        super().__init__(problem)


class _Unusual(Exception):
    """Not for the fast reader."""


def read_value(raw: bytes) -> Any:
    """What `raw` says: one token, or a whole object or array, whose tokens are known to be well-formed.

    Integers that fit in 64 bits are int, all other numbers float. Raises BadJson.
    """
    try:
        text = raw.decode()
        if _SUSPECT.search(text):
            raise _Unusual
        return _decoder.decode(text)
    except (ValueError, _Unusual, RecursionError):
        return _Thorough(raw).read()


def _integer(text: str) -> int | float:
    if len(text) <= _LONGEST_UINT64 and (value := int(text)) in _INT64_UINT64:
        return value
    return _double(text)


def _double(text: str) -> float:
    if math.isfinite(value := float(text)) and text.lstrip("-")[:2] not in ("0e", "0E"):  # no number for QEMU
        return value
    raise _Unusual


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Unusual
    return members


def _constant(text: str) -> NoReturn:
    raise _Unusual


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_double, parse_constant=_constant
)


class _Token(NamedTuple):
    kind: bytes  # the character of a structural token, else "s", "n" or "w"; "" at the end
    text: bytes
    at: int


def _tokens(raw: bytes) -> Iterator[_Token]:
    for match in _TOKEN.finditer(raw):
        group = match.lastindex or 0
        text = match[group]
        yield _Token(text if group == 1 else b".?snw"[group : group + 1], text, match.start(group))
    yield _Token(b"", b"", len(raw))


class _Thorough:
    """Reads by QEMU's grammar, token by token. Nesting is bounded by whoever cut the value out of the stream."""

    def __init__(self, raw: bytes) -> None:
        self._tokens = _tokens(raw)
        self._token = next(self._tokens)

    def read(self) -> Any:
        """The value. Raises BadJson."""
        token = self._take()
        match token.kind:
            case b"{":
                return self._read_object()
            case b"[":
                return self._read_array()
            case b"s":
                return _unescaped(token)
            case b"n":
                return _number(token)
            case b"w" if token.text in _WORDS:
                return _WORDS[token.text]
            case b"w":
                raise BadJson(f"invalid keyword '{token.text.decode()}'", token.at)
        raise BadJson("expecting value", token.at)

    def _take(self) -> _Token:
        token = self._token
        self._token = next(self._tokens, token)
        return token

    def _read_object(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        if self._token.kind == b"}":
            self._take()
            return members
        while True:
            key = self._take()
            if key.kind != b"s":
                raise BadJson("expecting key", key.at)
            name = _unescaped(key)
            colon = self._take()
            if colon.kind != b":":
                raise BadJson("expecting ':'", colon.at)
            value = self.read()
            if name in members:
                raise BadJson("duplicate key", self._token.at)
            members[name] = value
            end = self._take()
            if end.kind == b"}":
                return members
            if end.kind != b",":
                raise BadJson("expected ',' or '}'", end.at)

    def _read_array(self) -> list[Any]:
        items: list[Any] = []
        if self._token.kind == b"]":
            self._take()
            return items
        while True:
            items.append(self.read())
            end = self._take()
            if end.kind == b"]":
                return items
            if end.kind != b",":
                raise BadJson("expected ',' or ']'", end.at)


def _number(token: _Token) -> int | float:
    text = token.text.decode()
    try:
        return _double(text) if set(text) & set(".eE") else _integer(text)
    except _Unusual:
        raise BadJson("number out of range", token.at) from None


def _unescaped(token: _Token) -> str:
    """What a string token says. Raises BadJson."""
    try:
        text = token.text[1:-1].replace(b"\xc0\x80", b"\\u0000").decode()
    except UnicodeDecodeError:
        raise BadJson("invalid UTF-8 sequence in string", token.at) from None
    parts, at = list[str](), 0
    while (escape := text.find("\\", at)) >= 0:
        parts.append(_checked(text[at:escape], token))
        part, at = _escape(text, escape + 1, token)
        parts.append(part)
    parts.append(_checked(text[at:], token))
    return "".join(parts)


def _escape(text: str, at: int, token: _Token) -> tuple[str, int]:
    """The character an escape stands for, whose letter is at `at`; and where it ends."""
    if text[at] != "u":
        if text[at] not in _ESCAPES:
            raise BadJson("invalid escape sequence in string", token.at)
        return _ESCAPES[text[at]], at + 1
    if pair := _SURROGATE_PAIR.match(text, at + 1):
        high, low = int(pair[0][:4], 16), int(pair[0][6:], 16)
        return _checked(chr(0x10000 + ((high & 0x3FF) << 10 | low & 0x3FF)), token, pair[0]), pair.end()
    digits = _HEX.match(text, at + 1)
    if digits is None:
        raise BadJson(
            f"\\u{(text + token.text[-1:].decode())[at + 1 : at + 5]} is not a valid Unicode character", token.at
        )
    if digits[0][0] in "dD" and digits[0][1] in "89abcdefABCDEF":
        raise BadJson(f"\\u{digits[0]} is not a valid Unicode character", token.at)
    return _checked(chr(int(digits[0], 16)), token, digits[0]), digits.end()


def _checked(text: str, token: _Token, escape: str = "") -> str:
    if _NONCHARACTER.search(text):
        problem = f"\\u{escape} is not a valid Unicode character" if escape else "invalid UTF-8 sequence in string"
        raise BadJson(problem, token.at)
    return text
