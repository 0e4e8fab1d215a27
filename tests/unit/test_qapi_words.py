"""Arguments as words of a command line and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.schema import SMALL
from tests.support.schema_values import objects
from vdev.errors import ArgumentError
from vdev.qapi.check import check_arguments
from vdev.qapi.model import Builtin, Command, Member
from vdev.qapi.schema import schema
from vdev.qapi.words import from_words, to_words

PLUG = SMALL.commands["plug"]
MEMBERS = {member.name: member for member in PLUG.arguments}
START = Member("iova", Builtin("uint64"), False, "where")


def test_arguments_become_options_a_person_would_write() -> None:
    arguments = {"name": "x y", "colours": ["red", "blue"], "loud": True, "small": 5, "parts": [{"start": 1}]}

    assert to_words(PLUG, arguments) == [
        "--name", "x y", "--parts", '[{"start": 1}]', "--colours", "red,blue", "--loud", "true", "--small", "5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("member", "words", "value"),
    [
        (START, ["4096"], 4096),
        (START, ["0x1000"], 4096),
        (START, ["0XfF"], 255),
        (START, ["-1"], -1),  # refused by its range, with QEMU's words
        (MEMBERS["loud"], ["on"], True),
        (MEMBERS["loud"], ["No"], False),
        (MEMBERS["speed"], ["1.5"], 1.5),
        (MEMBERS["name"], ["0x10"], "0x10"),
        (MEMBERS["colours"], ["red,blue", "red"], ["red", "blue", "red"]),
        (MEMBERS["colours"], ['["red"]'], ["red"]),
        (MEMBERS["colours"], [""], []),
        (MEMBERS["parts"], ['{"start": 1}', '{"start": 2}'], [{"start": 1}, {"start": 2}]),
        (MEMBERS["parts"], ['[{"start": 1}]', '{"start": 2}'], [{"start": 1}, {"start": 2}]),
    ],
)
def test_words_become_values(member: Member, words: list[str], value: Any) -> None:
    assert from_words(member, words, json.loads) == value


@pytest.mark.parametrize(
    ("member", "words", "problem"),
    [
        (START, ["0xg"], "--iova: '0xg' is not a whole number, decimal or 0x..."),
        (START, ["1", "2"], "--iova is there 2 times"),
        (START, ["1" * 30], "is not a whole number"),
        (START, ["١"], "is not a whole number"),  # noqa: RUF001 # a digit, but not one of ours
        (MEMBERS["loud"], ["maybe"], "--loud: 'maybe' is neither true nor false"),
        (MEMBERS["speed"], ["fast"], "--speed: 'fast' is not a number"),
        (MEMBERS["parts"], ["{"], "--parts: neither JSON nor YAML"),
    ],
)
def test_words_that_are_no_value_are_refused_by_the_option(member: Member, words: list[str], problem: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        from_words(member, words, json.loads)

    assert problem in str(caught.value)


@given(st.data(), st.sampled_from([*schema().commands.values(), PLUG]))
def test_words_and_back_are_the_same_arguments_and_the_schema_takes_them(data: st.DataObject, command: Command) -> None:
    arguments = data.draw(objects(command.arguments))

    words = to_words(command, arguments)
    options = dict(zip(words[::2], words[1::2], strict=True))
    members = {f"--{member.name}": member for member in command.arguments}
    back = {name[2:]: from_words(members[name], [word], json.loads) for name, word in options.items()}

    assert back == arguments
    assert len(check_arguments(command, back)) == len(arguments)
