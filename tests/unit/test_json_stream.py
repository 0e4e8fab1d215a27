"""Where QMP requests begin and end, by QEMU's rules. (What QEMU says to each input: test_bridge_requests.)"""

from __future__ import annotations

import pytest

from qmp_bridge import json_stream
from qmp_bridge.json_stream import TOO_DEEP, TOO_LONG, Broken, JsonStream, Value


def pieces(*chunks: bytes) -> list[object]:
    """The values of a stream, and the problems of what is none."""
    stream, found = JsonStream(), list[object]()
    for chunk in chunks:
        stream.feed(chunk)
        while (piece := stream.pull()) is not None:
            found.append(piece.problem if isinstance(piece, Broken) else piece.value)
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a": 1}', [{"a": 1}]),
        (b'{"a": 1}{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        (b'{\n "a":\n {"b": [1, {"c": 2}]}\n}\r\n', [{"a": {"b": [1, {"c": 2}]}}]),
        (b'{"a": "}{\\"}"}{}', [{"a": '}{"}'}, {}]),
        (b"{'a': '}\"\\'{'}{}", [{"a": "}\"'{"}, {}]),
        (b'true 17 "text {" {} [1]', [True, 17, "text {", {}, [1]]),
        (b'{"a": "x\n{"b": 1}', ["1:7: JSON parse error, stray '\"x\n'", {"b": 1}]),
        (b'{"a": @ {"b": 1}', ["1:7: JSON parse error, stray '@'", {"b": 1}]),
    ],
)
def test_values_end_where_qemu_ends_them(data: bytes, expected: list[object]) -> None:
    assert pieces(data) == expected


def test_the_number_of_the_line_counts_what_was_read_before() -> None:
    found = pieces(b"\n\n{}\n", b"\n@\n@")
    assert found == [{}, "5:1: JSON parse error, stray '@'", "6:1: JSON parse error, stray '@'"]


def test_a_value_that_is_too_deep_is_refused_once_and_skipped() -> None:
    deep = json_stream.MAX_NESTING
    assert pieces(b"[" * (deep + 1) + b"]" * (deep + 1) + b"{}") == [TOO_DEEP, {}]
    assert pieces(b"[" * deep + b"]" * deep + b"{}")[1:] == [{}]


@pytest.mark.parametrize("data", [b'{"a": [' + b"1, " * 500, b'{"a": "' + b"x" * 2000, b'"' + b"x" * 2000])
def test_a_value_without_end_is_not_kept_without_end(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_NBYTES", 1000)
    stream, problems = JsonStream(), list[object]()
    for at in range(0, len(data), 100):
        stream.feed(data[at : at + 100])
        problems.append(stream.pull())
        assert len(stream._data) <= 1100
    assert problems.count(Broken(TOO_LONG)) == 1


@pytest.mark.parametrize("word", [b"1" * 5000, b"a" * 5000, b"-0." + b"1" * 5000])
def test_a_number_or_keyword_without_end_is_refused(word: bytes) -> None:
    assert pieces(word) == [TOO_LONG]


def test_a_number_no_double_holds_is_refused() -> None:
    assert pieces(b'{"id": 1e400}') == ["1:8: JSON parse error, number out of range"]


def test_integers_are_whole_up_to_64_bits_and_doubles_beyond() -> None:
    (value,) = pieces(b"[18446744073709551615, -9223372036854775808, 18446744073709551616]")
    assert [type(number) for number in value] == [int, int, float]  # type: ignore[attr-defined]


def test_a_whole_value_comes_as_soon_as_it_ends() -> None:
    stream = JsonStream()
    stream.feed(b'{"a": 1}')
    assert stream.pull() == Value({"a": 1})
