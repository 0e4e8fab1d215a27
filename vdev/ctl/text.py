"""What commands return, as text for people: addresses in hex, lists of flat things as tables. Pure.

Types come from the schema; where it says `any` the value itself decides.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vdev.qapi.model import Builtin, Enum, ListOf, Member, Struct, Type
from vdev.qapi.words import is_plain

INDENT = "  "
ADDRESSES = frozenset({"iova", "gpa", "virt_start", "virt_end", "phys_start", "flags", "address"})
_ANY = Builtin("any")
_ADDRESS = Builtin("uint64")


def lines_of(given: Type | None, value: Any) -> list[str]:
    """`value` of type `given` as lines; none for an empty object."""
    if isinstance(given, ListOf):
        return _list(given.item, value) if value else ["none"]
    if isinstance(given, Struct):
        return _object(_shown(given, value))
    if given is None or (given == _ANY and value == {}):
        return []
    if given == _ANY and isinstance(value, dict):
        return _object(_untyped(value))
    if given == _ANY and isinstance(value, list):
        return lines_of(ListOf(_ANY), value)
    return [_word(given, value)]


def event_line(event: Mapping[str, Any], members: Sequence[Member]) -> str:
    """An event in one line: local time, name, data."""
    types = {member.name: member.type for member in members}
    stamp = event.get("timestamp", {})
    seconds = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
    clock = datetime.datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")
    words = [f"{name}={_word(types.get(name, _ANY), value)}" for name, value in event.get("data", {}).items()]
    return " ".join([clock, str(event.get("event")), *words])


Named = list[tuple[str, Type, Any]]


def _shown(given: Struct, value: Mapping[str, Any]) -> Named:
    """Members that are there, in the schema's order."""
    return [(member.name, member.type, value[member.name]) for member in given.members if member.name in value]


def _untyped(value: Mapping[str, Any]) -> Named:
    def kind(name: str, item: Any) -> Type:
        return _ADDRESS if name in ADDRESSES and _is_whole(item) else _ANY

    return [(name, kind(name, item), item) for name, item in value.items()]


def _object(members: Named) -> list[str]:
    """A line for each plain member, others indented below their names."""
    width = max((len(name) for name, given, value in members if _is_flat(given, value)), default=0) + 1
    found = []
    for name, given, value in members:
        if _is_flat(given, value):
            found.append(f"{name + ':':<{width}} {_word(given, value)}".rstrip())
        else:
            found.append(f"{name}:")
            found += [INDENT + line for line in lines_of(given, value)]
    return found


def _list(item: Type, values: Sequence[Any]) -> list[str]:
    if all(_is_flat(item, value) for value in values):
        return [_word(item, value) for value in values]
    if isinstance(item, Struct):
        rows = [_shown(item, value) for value in values]
        if all(_is_flat(given, value) for row in rows for _, given, value in row):
            return _table([member.name for member in item.members], rows)
    found: list[str] = []
    for value in values:
        first, *rest = lines_of(item, value) or [""]
        found += [f"- {first}", *(INDENT + line for line in rest)]
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Plain rows, one at least, that have their columns in one order."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _table(names, [[(name, _ANY, value) for name, value in row.items()] for row in rows])


def _table(names: Sequence[str], rows: Sequence[Named]) -> list[str]:
    """Columns that some row has. Numbers stand to the right."""
    cells = [{name: _word(given, value) for name, given, value in row} for row in rows]
    names = [name for name in names if any(name in row for row in cells)]
    right = {name for row in rows for name, _, value in row if _is_whole(value)}
    widths = {name: max(len(name), *(len(row.get(name, "-")) for row in cells)) for name in names}

    def line(texts: Iterable[tuple[str, str]]) -> str:
        padded = [text.rjust(widths[name]) if name in right else text.ljust(widths[name]) for name, text in texts]
        return "  ".join(padded).rstrip()

    return [line((name, name) for name in names), *(line((n, row.get(n, "-")) for n in names) for row in cells)]


def _is_flat(given: Type, value: Any) -> bool:
    """Whether a value goes into one word."""
    if given == _ANY:
        plain = not isinstance(value, dict | list)
        return plain or not value or (isinstance(value, list) and not any(isinstance(x, dict | list) for x in value))
    return is_plain(given) or (isinstance(given, ListOf) and is_plain(given.item)) or value == []


def _word(given: Type, value: Any) -> str:
    if isinstance(value, list):
        item = given.item if isinstance(given, ListOf) else _ANY
        return ", ".join(_word(item, each) for each in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if given == _ADDRESS and _is_whole(value):
        return f"{value:#x}"
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    if value is None or value == {}:
        return "none"
    return str(value) if isinstance(given, Enum | Builtin) else repr(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
