"""The schema: vdev.qapi read once and checked by QAPI's rules for names and documentation.

`schema()` is the packaged one. Errors of a schema name the line.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

from vdev.errors import ArgumentError, SchemaError
from vdev.qapi.check import check_arguments
from vdev.qapi.model import (
    BRIDGE_ONLY,
    BUILTINS,
    CONTROL_ONLY,
    Builtin,
    Command,
    Documented,
    Enum,
    Event,
    ListOf,
    Member,
    Schema,
    Struct,
    Type,
)
from vdev.qapi.reader import Doc, Expression, read

_FEATURES = frozenset({BRIDGE_ONLY, CONTROL_ONLY})
_KEYS = {
    "command": frozenset({"command", "data", "returns", "features"}),
    "event": frozenset({"event", "data"}),
    "struct": frozenset({"struct", "data"}),
    "enum": frozenset({"enum", "data"}),
}
_NAMES = {
    "command": (re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*"), "lower-case words with hyphens"),
    "event": (re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*"), "UPPER-CASE words with underscores"),
    "struct": (re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*"), "CamelCase"),
    "member": (re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*"), "lower-case words with hyphens"),
    "value": (re.compile(r"[a-z0-9]+(-[a-z0-9]+)*"), "lower-case words with hyphens"),
}
_NAMES["enum"] = _NAMES["struct"]
_PREFIX = re.compile(r"__[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+_")


@cache
def schema() -> Schema:
    """The packaged schema. SchemaError when it is wrong, which a test rules out."""
    return parse_schema(resources.files("vdev.qapi").joinpath("vdev.qapi").read_text(encoding="utf-8"))


def parse_schema(text: str) -> Schema:
    """The schema in `text`. SchemaError names the line, the rule and what breaks it."""
    return _Builder().build(text)


class _Builder:
    """Collects every expression before types are resolved, since a type may be used before it is defined."""

    def __init__(self) -> None:
        self._prefix = ""
        self._headings: list[str] = []
        self._given: dict[str, tuple[str, Expression, str]] = {}  # name -> kind, expression, heading
        self._types: dict[str, Enum | Struct] = {}
        self._under_way: list[str] = []  # types that are being resolved

    def build(self, text: str) -> Schema:
        for found in read(text):
            if isinstance(found, Doc):
                if found.heading in self._headings:
                    raise SchemaError(found.line, f"there are two headings {found.heading!r}")
                self._headings.append(found.heading)
            elif "pragma" in found.data:
                self._pragma(found)
            else:
                self._define(found)
        commands = {name: self._command(name, *rest) for name, rest in self._of_kind("command")}
        events = {name: self._event(name, *rest) for name, rest in self._of_kind("event")}
        types = {
            name: self._named_type(name, expression.line)
            for kind in ("enum", "struct")
            for name, (expression, _) in self._of_kind(kind)
        }
        in_order = {name: types[name] for name in self._given if name in types}
        return Schema(self._prefix, tuple(self._headings), commands, events, in_order)

    def _of_kind(self, wanted: str) -> list[tuple[str, tuple[Expression, str]]]:
        return [(name, (found, heading)) for name, (kind, found, heading) in self._given.items() if kind == wanted]

    def _pragma(self, found: Expression) -> None:
        given = found.data["pragma"]
        if set(found.data) != {"pragma"} or not isinstance(given, dict) or set(given) != {"prefix"}:
            raise SchemaError(found.line, "the one pragma is { 'prefix': ... }")
        prefix = given["prefix"]
        if self._prefix or not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise SchemaError(found.line, "there is one prefix, such as __org.example_")
        self._prefix = prefix

    def _define(self, found: Expression) -> None:
        kinds = [kind for kind in _KEYS if kind in found.data]
        if len(kinds) != 1:
            raise SchemaError(found.line, f"an expression defines one of {', '.join(_KEYS)}")
        kind = kinds[0]
        name = found.data[kind]
        if unknown := set(found.data) - _KEYS[kind]:
            raise SchemaError(found.line, f"a {kind} has no {sorted(unknown)[0]!r}")
        _check_name(kind, name, found.line)
        if name in self._given or name in BUILTINS:
            raise SchemaError(found.line, f"there is a {name!r} already")
        if found.doc is None or found.doc.name != name:
            raise SchemaError(found.line, f"before it there is no doc comment that begins with '@{name}:'")
        if kind != "command" and found.doc.tags:
            raise SchemaError(found.doc.line, f"only a command's comment has {found.doc.tags[0][0]}:")
        self._given[name] = (kind, found, self._headings[-1] if self._headings else "")

    def _command(self, name: str, found: Expression, heading: str) -> Command:
        features = found.data.get("features", [])
        if not isinstance(features, list) or not all(feature in _FEATURES for feature in features):
            raise SchemaError(found.line, f"features are a list of {', '.join(sorted(_FEATURES))}")
        if len(features) > 1:
            raise SchemaError(found.line, "a command that is for one socket only is for no other")
        doc = _doc_of(found)
        command = Command(
            name,
            doc.text,
            self._members(found),
            self._type(found.data["returns"], found.line) if "returns" in found.data else None,
            tuple(features),
            heading,
            doc.tagged("Errors"),
            doc.tagged("Example"),
        )
        for example in command.examples:
            _check_example(command, example, doc.line)
        return command

    def _event(self, name: str, found: Expression, heading: str) -> Event:
        return Event(name, _doc_of(found).text, self._members(found), heading)

    def _members(self, found: Expression) -> tuple[Member, ...]:
        data, doc = found.data.get("data", {}), _doc_of(found)
        if not isinstance(data, dict):
            raise SchemaError(found.line, "data are an object: { 'member': 'type' }")
        members: list[Member] = []
        for key, given in data.items():
            name = key.removeprefix("*")
            _check_name("member", name, found.line)
            if any(name == member.name for member in members):
                raise SchemaError(found.line, f"there are two members {name!r}")
            text = doc.members.get(name, "")
            if not text:
                raise SchemaError(doc.line, f"the doc comment says nothing of @{name}")
            members.append(Member(name, self._type(given, found.line), key != name, text))
        _no_others(doc, {member.name for member in members})
        return tuple(members)

    def _type(self, given: Any, line: int) -> Type:
        if isinstance(given, list):
            if len(given) != 1 or not isinstance(given[0], str):
                raise SchemaError(line, "a list type is [ 'type' ]")
            return ListOf(self._type(given[0], line))
        if not isinstance(given, str):
            raise SchemaError(line, "a type is a name or [ 'name' ]")
        return Builtin(given) if given in BUILTINS else self._named_type(given, line)

    def _named_type(self, name: str, line: int) -> Enum | Struct:
        if name in self._types:
            return self._types[name]
        kind, found, _ = self._given.get(name, ("", None, ""))
        if found is None or kind not in ("enum", "struct"):
            raise SchemaError(line, f"there is no type {name!r}")
        if name in self._under_way:
            raise SchemaError(found.line, f"type {name!r} contains itself")
        self._under_way.append(name)
        if kind == "enum":
            self._types[name] = Enum(name, _doc_of(found).text, _values(found))
        else:
            self._types[name] = Struct(name, _doc_of(found).text, self._members(found))
        self._under_way.pop()
        return self._types[name]


def _values(found: Expression) -> tuple[Documented, ...]:
    """Values need doc lines only if one of them has one: of read and write there is nothing to say."""
    data, doc = found.data.get("data"), _doc_of(found)
    if not isinstance(data, list) or not data or not all(isinstance(value, str) for value in data):
        raise SchemaError(found.line, "an enum's data are a list of words")
    for value in data:
        _check_name("value", value, found.line)
        if data.count(value) > 1:
            raise SchemaError(found.line, f"there are two values {value!r}")
        if doc.members and not doc.members.get(value):
            raise SchemaError(doc.line, f"the doc comment says nothing of @{value}")
    _no_others(doc, set(data))
    return tuple(Documented(value, doc.members.get(value, "")) for value in data)


def _no_others(doc: Doc, names: set[str]) -> None:
    if unknown := [name for name in doc.members if name not in names]:
        raise SchemaError(doc.line, f"the doc comment speaks of @{unknown[0]}, which is not there")


def _check_example(command: Command, example: str, line: int) -> None:
    try:
        check_arguments(command, json.loads(example))
    except (ValueError, ArgumentError) as error:
        raise SchemaError(line, f"the example {example}: {error}") from None


def _doc_of(found: Expression) -> Doc:
    assert found.doc is not None  # _define saw to it
    return found.doc


def _check_name(kind: str, name: Any, line: int) -> None:
    pattern, rule = _NAMES[kind]
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise SchemaError(line, f"name {name!r}: the name of a {kind} is {rule}")
    reserved = {
        "member": name == "u" or name.startswith(("q-", "has-")),
        "struct": name.endswith("List"),
        "enum": name.endswith("List"),
    }
    if reserved.get(kind, False):
        raise SchemaError(line, f"name {name!r} is reserved by QAPI")
