"""Arguments and replies against the schema. Errors are in the words of QEMU, whose monitor ours stands beside.

Order and texts are those of QEMU's input visitor, found by asking QEMU 11.1. One difference: of a wrong word inside a
struct or list QEMU does not say the way to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vdev.errors import ArgumentError
from vdev.qapi.model import Builtin, Command, Enum, ListOf, Member, Struct, Type, python_name

INT64 = range(-(1 << 63), 1 << 63)
UINT32 = range(1 << 32)
UINT64 = range(1 << 64)
MAX_SHOWN = 200  # characters of a name or word of the client's that an error repeats


def check_arguments(command: Command, given: object) -> dict[str, Any]:
    """The arguments as keyword parameters; those left out are left out. ArgumentError says what is wrong.

    `given` is what a JSON parser made of "arguments". Numbers of type `number` become floats; nothing else changes.
    """
    if not isinstance(given, Mapping):
        raise ArgumentError("QMP input member 'arguments' must be an object")
    found = _members(command.arguments, given, "")
    return {python_name(name): value for name, value in found.items()}


def check_return(returns: Type | None, value: object) -> None:
    """ArgumentError unless `value` is what a command with `returns` may return: every member there, none besides."""
    if returns is None:
        _members((), value if isinstance(value, Mapping) else {"return": value}, "")
    else:
        _value(returns, value, "return")


def check_data(members: tuple[Member, ...], data: Mapping[str, object]) -> None:
    """ArgumentError unless `data` are what an event with `members` carries."""
    _members(members, data, "")


def _members(members: tuple[Member, ...], given: Mapping[str, object], path: str) -> dict[str, object]:
    """What is missing comes before what is unexpected, and members in the schema's order."""
    found: dict[str, object] = {}
    for member in members:
        full = f"{path}.{member.name}" if path else member.name
        if member.name in given:
            found[member.name] = _value(member.type, given[member.name], full)
        elif not member.optional:
            raise ArgumentError(f"Parameter '{full}' is missing")
    for name in given:
        if name not in found:
            full = f"{path}.{_shown(name)}" if path else _shown(name)
            raise ArgumentError(f"Parameter '{full}' is unexpected")
    return found


def _value(wanted: Type, value: object, path: str) -> object:
    match wanted:
        case Builtin():
            return _BUILTINS[wanted.name](value, path)
        case Enum():
            word = _string(value, path)
            if all(word != known.name for known in wanted.values):
                raise ArgumentError(f"Parameter '{path}' does not accept value '{_shown(word)}'")
            return word
        case ListOf():
            if not isinstance(value, list):
                raise _wrong_type(path, "array")
            return [_value(wanted.item, item, f"{path}[{index}]") for index, item in enumerate(value)]
        case Struct():
            if not isinstance(value, Mapping):
                raise _wrong_type(path, "object")
            return _members(wanted.members, value, path)


def _string(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(path, "string")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which Python's JSON parser lets pass
        raise _wrong_type(path, "string") from None
    return value


def _bool(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(path, "boolean")
    return value


def _int(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in INT64:
        raise _wrong_type(path, "integer")
    return value


def _uint64(value: object, path: str) -> int:
    # QEMU takes a negative number for its two's complement, for the sake of old clients; we have none.
    if not isinstance(value, int) or isinstance(value, bool) or value not in UINT64:
        raise ArgumentError(f"Parameter '{path}' expects uint64")
    return value


def _uint32(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentError(f"Parameter '{path}' expects uint64")  # QEMU reads one first
    if value not in UINT32:
        raise ArgumentError(f"Parameter '{path}' expects uint32_t")
    return value


def _number(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(path, "number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong_type(path, "number")
    return number


def _any(value: object, path: str) -> object:
    return value


_BUILTINS: dict[str, Callable[[object, str], object]] = {
    "str": _string, "bool": _bool, "int": _int, "uint32": _uint32, "uint64": _uint64, "number": _number, "any": _any,
}  # fmt: skip


def _wrong_type(path: str, expected: str) -> ArgumentError:
    return ArgumentError(f"Invalid parameter type for '{path}', expected: {expected}")


def _shown(text: object) -> str:
    """A name or word of the client's, fit to be encoded and not longer than an error wants it."""
    shown = str(text).encode(errors="replace").decode()
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."
