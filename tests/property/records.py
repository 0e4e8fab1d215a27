"""Hypothesis strategies: the bytes of wire records, field by field."""

from __future__ import annotations

from hypothesis import strategies as st

from vdev.wire.record import Record

_NBYTES = {"B": 1, "H": 2, "I": 4, "Q": 8}


@st.composite
def records(draw: st.DrawFn, record: type[Record], fields: st.SearchStrategy[int]) -> bytes:
    """A record's bytes with a number of `fields` in each field; padding and byte strings are zero."""
    found, count = b"", ""
    for letter in record.layout.format[1:]:
        if letter.isdigit():
            count += letter
        elif letter in _NBYTES:
            nbytes = _NBYTES[letter]
            found += (draw(fields) & ((1 << 8 * nbytes) - 1)).to_bytes(nbytes, "little")
        else:
            found, count = found + bytes(int(count or 1)), ""
    assert len(found) == record.layout.size
    return found
