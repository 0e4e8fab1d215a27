"""The schema as query-qmp-schema shows one: a list of SchemaInfo, in the form of QEMU's qapi/introspect.json.

Only what is on QMP, which is all but the control-only commands. Every name but those of built-in types and of lists
of them begins with the schema's prefix, so that none is one of QEMU's, whose types have numbers for names.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vdev.qapi.model import Builtin, Command, Enum, ListOf, Member, Schema, Struct, Type
from vdev.qapi.schema import schema

# Introspection knows one kind of integer.
_BUILTINS = {
    "str": ("str", "string"),
    "bool": ("bool", "boolean"),
    "int": ("int", "int"),
    "uint32": ("int", "int"),
    "uint64": ("int", "int"),
    "number": ("number", "number"),
    "any": ("any", "value"),
}


def command_names() -> list[str]:
    """The names of commands on QMP, with the prefix."""
    found = schema()
    return [found.prefix + command.name for command in found.commands.values() if not command.control_only]


def event_names() -> list[str]:
    """The names of events on QMP, with the prefix."""
    found = schema()
    return [found.prefix + name for name in found.events]


def schema_info(present: Collection[str] = (), described: Schema | None = None) -> list[dict[str, Any]]:
    """The entries to add to a list in which names `present` are already: built-in types, if it is QEMU's."""
    found = _Entries(described or schema()).all()
    return [entry for entry in found if entry["name"] not in present]


class _Entries:
    """Entries in the order commands, events, and types as these ask for them."""

    def __init__(self, described: Schema) -> None:
        self._schema = described
        self._roots: list[dict[str, Any]] = []
        self._types: dict[str, dict[str, Any]] = {}

    def all(self) -> list[dict[str, Any]]:
        for command in self._schema.commands.values():
            if not command.control_only:
                self._roots.append(self._command(command))
        for event in self._schema.events.values():
            self._roots.append(
                {
                    "name": self._schema.prefix + event.name,
                    "meta-type": "event",
                    "arg-type": self._object(f"{event.name}-arg", event.members),
                }
            )
        return [*self._roots, *self._types.values()]

    def _command(self, command: Command) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "name": self._schema.prefix + command.name,
            "meta-type": "command",
            "arg-type": self._object(f"{command.name}-arg", command.arguments),
            "ret-type": self._type(command.returns) if command.returns is not None else self._object("empty", ()),
        }
        return {**entry, "features": list(command.features)} if command.features else entry

    def _object(self, name: str, members: tuple[Member, ...]) -> str:
        full = self._schema.prefix + (name if members else "empty")
        if full not in self._types:
            entry: dict[str, Any] = {"name": full, "meta-type": "object"}
            self._types[full] = entry
            entry["members"] = [self._member(member) for member in members]
        return full

    def _member(self, member: Member) -> dict[str, Any]:
        entry = {"name": member.name, "type": self._type(member.type)}
        # A default of null says that it may be left out; which value it has then is in the documentation.
        return {**entry, "default": None} if member.optional else entry

    def _type(self, given: Type) -> str:
        match given:
            case Builtin():
                name, json_type = _BUILTINS[given.name]
                self._types.setdefault(name, {"name": name, "meta-type": "builtin", "json-type": json_type})
            case Enum():
                name = self._schema.prefix + given.name
                words = [value.name for value in given.values]
                members = [{"name": word} for word in words]
                self._types.setdefault(name, {"name": name, "meta-type": "enum", "members": members, "values": words})
            case ListOf():
                element = self._type(given.item)
                name = f"[{element}]"
                self._types.setdefault(name, {"name": name, "meta-type": "array", "element-type": element})
            case Struct():
                name = self._object(given.name, given.members)
        return name
