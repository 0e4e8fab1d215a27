"""Our commands and events as query-qmp-schema shows them: QEMU's form, and no name that could be QEMU's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.schema import SMALL
from vdev.qapi.introspection import command_names, event_names, schema_info
from vdev.qapi.schema import schema

ENTRIES = {entry["name"]: entry for entry in schema_info(described=SMALL)}
FORMS = {
    "command": ({"arg-type", "ret-type"}, {"features"}),
    "event": ({"arg-type"}, set()),
    "object": ({"members"}, set()),
    "enum": ({"members", "values"}, set()),
    "array": ({"element-type"}, set()),
    "builtin": ({"json-type"}, set()),
}
BUILTINS = {"str", "bool", "int", "number", "any"}


def referred(entry: dict[str, Any]) -> list[str]:
    """The names of types in an entry."""
    types = [entry[key] for key in ("arg-type", "ret-type", "element-type") if key in entry]
    return types + [member["type"] for member in entry.get("members", ()) if "type" in member]


def test_a_command_names_the_types_of_its_arguments_and_reply() -> None:
    assert ENTRIES["__org.example_plug"] == {
        "name": "__org.example_plug",
        "meta-type": "command",
        "arg-type": "__org.example_plug-arg",
        "ret-type": "__org.example_Part",
        "features": ["bridge-only"],
    }


def test_arguments_are_members_and_those_that_may_be_left_out_have_a_default() -> None:
    assert ENTRIES["__org.example_plug-arg"]["members"] == [
        {"name": "name", "type": "str"},
        {"name": "parts", "type": "[__org.example_Part]", "default": None},
        {"name": "colours", "type": "[__org.example_Colour]", "default": None},
        {"name": "speed", "type": "number", "default": None},
        {"name": "loud", "type": "bool", "default": None},
        {"name": "small", "type": "int", "default": None},
    ]


def test_an_enum_shows_its_values_in_both_ways_qemu_does() -> None:
    colour = ENTRIES["__org.example_Colour"]

    assert (colour["members"], colour["values"]) == ([{"name": "red"}, {"name": "blue"}], ["red", "blue"])


def test_a_command_without_arguments_and_reply_has_empty_objects() -> None:
    never = ENTRIES["__org.example_query-never"]

    assert never["arg-type"] == never["ret-type"] == "__org.example_empty"
    assert ENTRIES["__org.example_empty"] == {"name": "__org.example_empty", "meta-type": "object", "members": []}


def test_what_is_on_the_control_socket_only_is_not_shown() -> None:
    assert "__org.example_follow" not in ENTRIES
    assert "__org.vdev_trace-follow" not in command_names()


@pytest.mark.parametrize("entry", schema_info(), ids=lambda entry: entry["name"])
def test_every_entry_has_the_form_qemu_gives_it_and_refers_to_entries(entry: dict[str, Any]) -> None:
    needed, allowed = FORMS[entry["meta-type"]]
    names = {other["name"] for other in schema_info()}

    assert needed <= set(entry) - {"name", "meta-type"} <= needed | allowed
    assert set(referred(entry)) <= names
    bare = entry["name"].strip("[]")
    assert bare in BUILTINS or bare.startswith("__org.vdev_")


def test_names_are_there_once_and_those_that_are_present_are_left_out() -> None:
    names = [entry["name"] for entry in schema_info()]

    merged = [entry["name"] for entry in schema_info(present={"str", "int", "[str]"})]

    assert len(names) == len(set(names))
    assert set(names) - set(merged) == {"str", "int", "[str]"}


def test_names_of_commands_and_events_are_those_of_the_schema_with_its_prefix() -> None:
    commands = {entry["name"] for entry in schema_info() if entry["meta-type"] == "command"}
    events = {entry["name"] for entry in schema_info() if entry["meta-type"] == "event"}

    assert (set(command_names()), set(event_names())) == (commands, events)
    assert len(events) == len(schema().events)
