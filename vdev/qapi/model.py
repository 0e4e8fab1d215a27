"""What a schema consists of. Types are resolved: nothing has to be looked up by name to walk a value."""

from __future__ import annotations

import keyword
from dataclasses import dataclass

BRIDGE_ONLY = "bridge-only"
CONTROL_ONLY = "control-only"
BUILTINS = ("str", "bool", "int", "uint32", "uint64", "number", "any")


@dataclass(frozen=True, slots=True)
class Builtin:
    """One of `BUILTINS`. `int` has 64 bits and a sign, `number` is an int or a finite float."""

    name: str


@dataclass(frozen=True, slots=True)
class Documented:
    """A name with what its doc comment says of it: of an enum, a value."""

    name: str
    doc: str


@dataclass(frozen=True, slots=True)
class Enum:
    """One of several words."""

    name: str
    doc: str
    values: tuple[Documented, ...]


@dataclass(frozen=True, slots=True)
class Struct:
    """An object with these members and no others."""

    name: str
    doc: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose items are all of one type."""

    item: Type


Type = Builtin | Enum | Struct | ListOf


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct, an argument of a command, or a datum of an event."""

    name: str
    type: Type
    optional: bool
    doc: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command. Without `returns` it returns the empty object. `examples` are arguments, `errors` are for people."""

    name: str
    doc: str
    arguments: tuple[Member, ...]
    returns: Type | None
    features: tuple[str, ...]
    heading: str
    errors: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    @property
    def bridge_only(self) -> bool:
        """Whether it needs QEMU's monitor, so that vdev alone cannot answer it."""
        return BRIDGE_ONLY in self.features

    @property
    def control_only(self) -> bool:
        """Whether it is on vdev's control socket only, and not on QMP."""
        return CONTROL_ONLY in self.features


@dataclass(frozen=True, slots=True)
class Event:
    """An event with its data."""

    name: str
    doc: str
    members: tuple[Member, ...]
    heading: str


@dataclass(frozen=True, slots=True)
class Schema:
    """All of it, in the order of the file. On QMP names of commands, events and types begin with `prefix`."""

    prefix: str
    headings: tuple[str, ...]
    commands: dict[str, Command]
    events: dict[str, Event]
    types: dict[str, Enum | Struct]  # without the built-in ones


def python_name(name: str) -> str:
    """The keyword parameter a member is handed over in: `needs-reset` is needs_reset, `from` is from_."""
    spelled = name.replace("-", "_")
    return spelled + "_" if keyword.iskeyword(spelled) else spelled


def type_name(given: Type) -> str:
    """The name of a type as a schema spells it; lists as [item]."""
    return f"[{type_name(given.item)}]" if isinstance(given, ListOf) else given.name
