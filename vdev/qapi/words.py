"""Arguments as words of a command line, and back: what `vdev ctl` takes and the documentation shows.

Numbers are decimal or hexadecimal, lists of plain words go by commas or by repeating the option, and what has a
structure is JSON or YAML, which whoever calls `from_words` knows how to read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vdev.errors import ArgumentError
from vdev.qapi.model import Builtin, Command, Enum, ListOf, Member, Type

YES = ("true", "yes", "on")
NO = ("false", "no", "off")
SHOWN_IN_HEX = 0x1000  # numbers of 64 bits without a sign are addresses, or small
_NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})")

Read = Callable[[str], Any]  # JSON or YAML; ValueError


def option(member: Member) -> str:
    """The option a member is given with."""
    return f"--{member.name}"


def is_plain(given: Type) -> bool:
    """Whether a value of this type is one word without any structure."""
    return isinstance(given, Enum) or (isinstance(given, Builtin) and given.name != "any")


def to_words(command: Command, arguments: Mapping[str, Any]) -> list[str]:
    """`arguments` as options, unquoted."""
    words = []
    for member in command.arguments:
        if member.name in arguments:
            words += [option(member), _word(member.type, arguments[member.name])]
    return words


def _word(given: Type, value: Any) -> str:
    if isinstance(given, ListOf) and is_plain(given.item):
        words = [_word(given.item, item) for item in value]
        joined = ",".join(words)
        # A word with a comma in it cannot go by commas, nor can an empty one, and what looks like JSON is read as it.
        return joined if _split(joined) == words and words else json.dumps(value)
    if not is_plain(given):
        return json.dumps(value)
    if isinstance(value, bool):
        return YES[0] if value else NO[0]
    if isinstance(given, Builtin) and given.name == "uint64" and value >= SHOWN_IN_HEX:
        return f"{value:#x}"
    return str(value)


def from_words(member: Member, words: Sequence[str], read: Read) -> Any:
    """The value of `member` that `words` spell, one for each time its option was given. ArgumentError.

    Ranges and the words of enums are left to `check_arguments`, which looks at every argument anyway.
    """
    if not isinstance(member.type, ListOf):
        if len(words) > 1:
            raise ArgumentError(f"{option(member)} is there {len(words)} times")
        return _value(member, member.type, words[0], read)
    item = member.type.item
    found: list[Any] = []
    for word in words:
        parts = _split(word) if is_plain(item) else None
        if parts is not None:
            found += [_value(member, item, part, read) for part in parts]
            continue
        value = _structured(member, word, read)
        found += value if isinstance(value, list) else [value]
    return found


def _split(word: str) -> list[str] | None:
    """The parts between commas; None for a JSON list."""
    return None if word.lstrip().startswith("[") else [part for part in word.split(",") if part]


def _value(member: Member, given: Type, word: str, read: Read) -> Any:
    if not is_plain(given):
        return _structured(member, word, read)
    if isinstance(given, Enum) or given == Builtin("str"):
        return word
    if given == Builtin("bool"):
        if word.lower() not in (*YES, *NO):
            raise ArgumentError(f"{option(member)}: {word!r} is neither true nor false")
        return word.lower() in YES
    if given == Builtin("number"):
        try:
            return float(word)
        except ValueError:
            raise ArgumentError(f"{option(member)}: {word!r} is not a number") from None
    if not _NUMBER.fullmatch(word):
        raise ArgumentError(f"{option(member)}: {word!r} is not a whole number, decimal or 0x...")
    return int(word, 16) if "x" in word.lower() else int(word)


def _structured(member: Member, word: str, read: Read) -> Any:
    try:
        return read(word)
    except ValueError as error:
        raise ArgumentError(f"{option(member)}: neither JSON nor YAML: {error}") from None
