"""Whatever JSON a client sends for arguments: it is taken, or refused by the one error that says why."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.schema import SMALL
from vdev.errors import ArgumentError
from vdev.qapi.check import check_arguments
from vdev.qapi.model import Command
from vdev.qapi.schema import schema

COMMANDS = [*schema().commands.values(), *SMALL.commands.values()]
NAMES = sorted({member.name for command in COMMANDS for member in command.arguments})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 65), 1 << 65),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.sampled_from(["red", "read", "attached", "msi"]),
)
KEYS = st.sampled_from([*NAMES, "start", "end", "kind"]) | st.text(st.characters(exclude_categories=()), max_size=3)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(st.sampled_from(COMMANDS), JSON | st.dictionaries(KEYS, JSON, max_size=6))
def test_arbitrary_json_is_taken_or_refused_with_words_that_can_be_sent(command: Command, arguments: object) -> None:
    try:
        taken = check_arguments(command, arguments)
    except ArgumentError as error:
        str(error).encode()
    else:
        assert isinstance(arguments, dict)
        assert len(taken) == len(arguments)


@given(st.sampled_from(COMMANDS), st.data())
def test_what_is_taken_has_every_argument_that_must_be_there(command: Command, data: st.DataObject) -> None:
    arguments = {member.name: data.draw(JSON) for member in command.arguments if data.draw(st.booleans())}

    try:
        check_arguments(command, arguments)
    except ArgumentError:
        return
    assert all(member.optional or member.name in arguments for member in command.arguments)
