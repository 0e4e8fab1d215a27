"""A schema with a piece missing, doubled or foreign is read, or refused with a line that exists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.schema import SMALL_TEXT
from vdev.errors import SchemaError
from vdev.qapi.page import page
from vdev.qapi.schema import parse_schema

PLACES = st.integers(0, len(SMALL_TEXT))
PIECES = st.sampled_from(["", "'", "{", "}", "[", "]", ":", ",", "#", "##\n", "\n", " ", "*", "@x: y", "'u'", "-", "é"])


@given(PLACES, st.integers(0, 40), PIECES)
def test_a_damaged_schema_is_read_or_refused_with_its_line(at: int, nremoved: int, piece: str) -> None:
    text = SMALL_TEXT[:at] + piece + SMALL_TEXT[at + nremoved :]

    line = 1
    try:
        shown = page(parse_schema(text))
    except SchemaError as error:
        shown, line = str(error), error.line

    assert shown
    assert 1 <= line <= text.count("\n") + 1
