"""The reader of schemas: what it makes of a good one, and that a bad one is refused with its line."""

from __future__ import annotations

import pytest

from tests.support.schema import SMALL, SMALL_TEXT
from vdev.errors import SchemaError
from vdev.qapi.model import Builtin, Enum, ListOf, Struct, python_name, type_name
from vdev.qapi.schema import parse_schema, schema


def test_the_packaged_schema_is_right() -> None:
    found = schema()

    assert found.prefix == "__org.vdev_"
    assert found.commands["translate"].returns == found.types["Translation"]


def test_a_command_has_its_members_with_types_in_order() -> None:
    members = SMALL.commands["plug"].arguments

    assert [(member.name, type_name(member.type), member.optional) for member in members] == [
        ("name", "str", False),
        ("parts", "[Part]", True),
        ("colours", "[Colour]", True),
        ("speed", "number", True),
        ("loud", "bool", True),
        ("small", "uint32", True),
    ]
    assert members[1].type == ListOf(SMALL.types["Part"])


def test_types_are_resolved_and_their_members_documented() -> None:
    part, colour = SMALL.types["Part"], SMALL.types["Colour"]

    assert isinstance(part, Struct)
    assert isinstance(colour, Enum)
    assert part.members[0].type == Builtin("uint64")
    assert part.members[1].type is colour
    assert [(value.name, value.doc) for value in colour.values] == [("red", "like blood"), ("blue", "like water")]


def test_doc_comments_and_headings_belong_to_what_follows() -> None:
    answer, since = SMALL.commands["query-answer"], SMALL.commands["query-since"]

    assert (answer.doc, answer.heading, answer.errors, answer.examples) == (
        "The answer.",
        "Numbers",
        ("none that is known",),
        ("{}",),
    )
    assert since.arguments[1].doc == "the second, which has a name that is a keyword"
    assert SMALL.headings == ("Numbers", "Others")


@pytest.mark.parametrize(
    ("name", "keyword"), [("needs-reset", "needs_reset"), ("from", "from_"), ("limit", "limit"), ("is", "is_")]
)
def test_a_member_has_a_name_python_can_say(name: str, keyword: str) -> None:
    assert python_name(name) == keyword


DOC = "##\n# @a-b:\n#\n# Text.\n##\n"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("{ 'command': 'a-b' }", 1, "before it there is no doc comment that begins with '@a-b:'"),
        (DOC + "{ 'command': 'a-c' }", 6, "before it there is no doc comment"),
        (DOC, 1, "this doc comment is before no expression"),
        (DOC + DOC, 1, "this doc comment is before no expression"),
        ("##\n# @a-b:\n", 1, "this doc comment does not end"),
        ("##\n# Text.\n##\n", 1, "begins with '# @name:'"),
        ("##\n#Text.\n##\n", 2, "a line of a doc comment is"),
        (DOC + "{ 'command': 'a_b' }", 6, "lower-case words with hyphens"),
        (DOC + "{ 'command': 'A-b' }", 6, "lower-case words with hyphens"),
        (DOC + "{ 'event': 'a-b' }", 6, "UPPER-CASE words with underscores"),
        (DOC + "{ 'struct': 'a-b', 'data': {} }", 6, "CamelCase"),
        (DOC + "{ 'struct': 'PartList', 'data': {} }", 6, "is reserved by QAPI"),
        (DOC + "{ 'command': 'a-b', 'data': { 'has-x': 'str' } }", 6, "is reserved by QAPI"),
        (DOC + "{ 'command': 'a-b', 'data': { 'u': 'str' } }", 6, "is reserved by QAPI"),
        (DOC + "{ 'command': 'a-b', 'data': { 'x_y': 'str' } }", 6, "lower-case words with hyphens"),
        (DOC + "{ 'command': 'a-b', 'data': { 'x': 'str' } }", 1, "says nothing of @x"),
        ("##\n# @a-b:\n#\n# @x: it\n##\n{ 'command': 'a-b' }", 1, "speaks of @x, which is not there"),
        ("##\n# @a-b:\n# @x: it\n# @x: it\n##\n{ 'command': 'a-b' }", 4, "@x is described twice"),
        ("##\n# @a-b:\n# @x: it\n# more\n##\n{ 'command': 'a-b' }", 4, "is indented by two spaces"),
        ("##\n# @E:\n#\n# @x: it\n##\n{ 'enum': 'Ee', 'data': ['x'] }", 6, "no doc comment that begins with '@Ee:'"),
        ("##\n# @Ee:\n#\n# @x: it\n##\n{ 'enum': 'Ee', 'data': ['x', 'y'] }", 1, "says nothing of @y"),
        ("##\n# @Ee:\n##\n{ 'enum': 'Ee', 'data': ['x', 'x'] }", 4, "two values 'x'"),
        ("##\n# @Ee:\n##\n{ 'enum': 'Ee', 'data': [] }", 4, "a list of words"),
        (DOC + "{ 'command': 'a-b', 'returns': 'Nothing' }", 6, "there is no type 'Nothing'"),
        (DOC + "{ 'command': 'a-b', 'returns': 'a-b' }", 6, "there is no type 'a-b'"),
        (DOC + "{ 'command': 'a-b', 'returns': [] }", 6, "a list type is"),
        (DOC + "{ 'command': 'a-b', 'features': ['unstable'] }", 6, "features are a list of"),
        (DOC + "{ 'command': 'a-b', 'features': ['bridge-only', 'control-only'] }", 6, "for one socket only"),
        (DOC + "{ 'command': 'a-b', 'boxed': 'true' }", 6, "a command has no 'boxed'"),
        (DOC + "{ 'command': 'a-b' }\n" + DOC + "{ 'command': 'a-b' }", 12, "there is a 'a-b' already"),
        ("##\n# @Aa:\n#\n# @x: it\n##\n{ 'struct': 'Aa',\n  'data': { 'x': ['Aa'] } }", 6, "contains itself"),
        (DOC + "{ 'union': 'a-b' }", 6, "an expression defines one of"),
        (DOC + "{ 'command': 'a-b'", 6, "the expression does not end"),
        (DOC + "{ 'command': 'a-b',\n  }", 7, "where a key is expected"),
        (DOC + "{ 'command':\n  'a-b', 'command': 'a-b' }", 7, "key 'command' is there twice"),
        (DOC + '{ "command": "a-b" }', 6, "no QAPI"),
        (DOC + "[ 'a-b' ]", 6, "an expression is an object"),
        (DOC + "{ 'command' 'a-b' }", 6, "where ':' is expected"),
        ("##\n# @a-b:\n#\n# Example: {\n##\n{ 'command': 'a-b' }", 1, "the example {: "),
        ("##\n# @a-b:\n#\n# Example: { \"x\": 1 }\n##\n{ 'command': 'a-b' }", 1, "Parameter 'x' is unexpected"),
        (
            "##\n# @Aa:\n#\n# Example: {}\n##\n{ 'struct': 'Aa', 'data': {} }",
            1,
            "only a command's comment has Example:",
        ),
        ("##\n# = One\n##\n##\n# = One\n##\n", 4, "two headings 'One'"),
        ("{ 'pragma': { 'prefix': 'org.vdev' } }", 1, "such as __org.example_"),
        ("{ 'pragma': { 'other': 'x' } }", 1, "the one pragma is"),
    ],
)
def test_a_wrong_schema_is_refused_with_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(text)

    assert caught.value.line == line
    assert problem in str(caught.value)


def test_a_type_may_be_used_before_it_is_defined() -> None:
    head, tail = SMALL_TEXT.split("##\n# @Colour:")
    types, rest = tail.split("##\n# @plug:")
    moved = parse_schema(head + "##\n# @plug:" + rest + "##\n# @Colour:" + types)

    assert moved.commands["plug"] == SMALL.commands["plug"]
