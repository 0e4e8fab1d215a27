"""Hypothesis strategies: values of a schema's types, as QMP has them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vdev.qapi.model import Builtin, Enum, ListOf, Member, Struct, Type


def values(wanted: Type) -> st.SearchStrategy[Any]:
    """Values of a type, as QMP has them."""
    match wanted:
        case Builtin("str"):
            return st.text(st.characters(codec="utf-8", exclude_characters="\0"))
        case Builtin("any"):
            return st.dictionaries(st.text("abc", min_size=1), st.integers(0, 9) | st.booleans(), max_size=2)
        case Builtin("bool"):
            return st.booleans()
        case Builtin("number"):
            return st.floats(0, 600)
        case Builtin("int"):
            return st.integers(-(1 << 63), (1 << 63) - 1)
        case Builtin("uint32"):
            return st.integers(0, (1 << 32) - 1)
        case Builtin():
            return st.integers(0, (1 << 64) - 1)
        case Enum():
            return st.sampled_from([value.name for value in wanted.values])
        case ListOf():
            return st.lists(values(wanted.item), max_size=3)
        case Struct():
            return objects(wanted.members)


def objects(members: tuple[Member, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with all the members that must be there and some of the others."""
    return st.fixed_dictionaries(
        {member.name: values(member.type) for member in members if not member.optional},
        optional={member.name: values(member.type) for member in members if member.optional},
    )
