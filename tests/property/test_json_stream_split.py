"""However a client's bytes are cut into messages, the guard finds the same commands and loses no byte."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from qmp_bridge.guard import Rule, judge
from qmp_bridge.json_stream import JsonStream

_scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
_json = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
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


def _decide(chunks: list[bytes]) -> tuple[bytes, list[tuple[bytes, Rule | None]]]:
    """All bytes that came out, and what was decided about each value."""
    stream, out, decided = JsonStream(), bytearray(), list[tuple[bytes, Rule | None]]()
    for chunk in chunks:
        for piece in stream.feed(chunk):
            out += piece.data
            if piece.is_value:
                judged = judge(piece.data)
                decided.append((judged.data, judged.rule))
    return bytes(out), decided


@given(data=_streams, cuts=st.lists(st.integers(0, 2000), max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_split_gives_the_same_decisions(data: bytes, cuts: list[int]) -> None:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    chunks = [data[start:stop] for start, stop in pairwise(at)]

    whole, split = _decide([data]), _decide(chunks)

    assert split == whole
    assert data.startswith(whole[0])


@given(requests=st.lists(_requests(), max_size=5))
@settings(max_examples=100, deadline=None)
def test_every_whole_request_is_found(requests: list[bytes]) -> None:
    _, decided = _decide(requests)
    assert len(decided) == len(requests)
