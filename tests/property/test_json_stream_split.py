"""However a client's bytes are cut into messages, the same values and errors are found."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from qmp_bridge import json_text
from qmp_bridge.json_stream import Broken, JsonStream, Value
from qmp_bridge.json_text import read_value

_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8)
_scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | _text
_json = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3))
_names = st.sampled_from(
    ["stop", "cont", "migrate", "savevm", "snapshot-load", "query-status", "human-monitor-command"]
)
_lines = st.sampled_from(["savevm x", " loadvm y", "info status", "stop", "c"])


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    request = {"execute": draw(_names), "id": draw(_json), "arguments": {"command-line": draw(_lines)}}
    text = json.dumps(request, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    return text.encode("utf-8", "replace")


_noise = st.sampled_from([b" ", b"\r\n", b"\xff", b"{", b"}", b"]", b"'", b'"', b"@", b"\\", b"true", b"{'a': '\\''}"])
_streams = st.lists(_requests() | _noise | st.binary(max_size=5), max_size=12).map(b"".join)


def _pieces(chunks: list[bytes]) -> list[Value | Broken]:
    stream, pieces = JsonStream(), list[Value | Broken]()
    for chunk in chunks:
        stream.feed(chunk)
        while (piece := stream.pull()) is not None:
            pieces.append(piece)
    return pieces


@given(data=_streams, cuts=st.lists(st.integers(0, 2000), max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_split_gives_the_same_pieces(data: bytes, cuts: list[int]) -> None:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    chunks = [data[start:stop] for start, stop in pairwise(at)]

    assert _pieces(chunks) == _pieces([data])


@given(requests=st.lists(_requests(), max_size=5))
@settings(max_examples=100, deadline=None)
def test_every_whole_request_is_found_and_says_what_it_said(requests: list[bytes]) -> None:
    pieces = _pieces(requests)
    assert [piece.value for piece in pieces if isinstance(piece, Value)] == [json.loads(raw) for raw in requests]


@given(value=_json)
@settings(max_examples=200, deadline=None)
def test_both_readers_read_the_same(value: object) -> None:
    raw = json.dumps([value], ensure_ascii=False).encode("utf-8", "replace")
    assert json_text._Thorough(raw).read() == read_value(raw) == json.loads(raw)
