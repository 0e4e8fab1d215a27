"""Where QMP requests begin and end, by QEMU's rules, and what they say."""

from __future__ import annotations

import pytest

from qmp_bridge import json_stream
from qmp_bridge.json_stream import JsonStream, TooDeep, Unreadable, read_request


def values(*chunks: bytes) -> list[bytes]:
    """The whole values of a stream."""
    stream = JsonStream()
    return [piece.data for chunk in chunks for piece in stream.feed(chunk) if piece.is_value]


def everything(*chunks: bytes) -> bytes:
    stream = JsonStream()
    return b"".join(piece.data for chunk in chunks for piece in stream.feed(chunk))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a": 1}', [b'{"a": 1}']),
        (b'{"a": 1}{"b": 2}\n', [b'{"a": 1}', b'{"b": 2}']),
        (b'{\n "a":\n {"b": [1, {"c": 2}]}\n}\r\n', [b'{\n "a":\n {"b": [1, {"c": 2}]}\n}']),
        (b'{"a": "}{\\"}"}{}', [b'{"a": "}{\\"}"}', b"{}"]),
        (b"{'a': '}\"\\'{'}{}", [b"{'a': '}\"\\'{'}", b"{}"]),
        (b'true 17 "text {" {} [1]', [b"{}", b"[1]"]),
        (b'{"a": "\xc3\xa9\xff"} {}', [b"{}"]),  # 0xff ends a string: QEMU's way to get back in step
        (b'{"a": "x\n{"b": 1}', [b'{"b": 1}']),  # so does a control character
        (b'{"a": @ {"b": 1} }', [b'{"b": 1}']),
        (b"}{} ]{}", [b"{}", b"{}"]),
        (b"{]{}", [b"{}"]),
    ],
)
def test_values_end_where_qemu_ends_them(data: bytes, expected: list[bytes]) -> None:
    assert values(data) == expected
    assert everything(data) == data


def test_a_value_deeper_than_qemu_reads_is_passed_on_and_forgotten() -> None:
    data = b"[" * 1025 + b"]" * 1025 + b"{}"
    assert values(data) == [b"{}"]
    assert everything(data) == data
    assert values(b"[" * 1024 + b"]" * 1024) == [b"[" * 1024 + b"]" * 1024]


def test_a_value_without_end_is_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_NBYTES", 1000)
    stream = JsonStream()
    chunks = [b'{"a": [', *[b"1, " * 100] * 10]
    passed = sum(len(piece.data) for chunk in chunks for piece in stream.feed(chunk))
    assert passed > 1000


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b'{"execute": "stop"}', "stop"),
        (b"{'execute': 'stop', 'id': 'it\\'s'}", "stop"),
        (b'{"\\u0065xecute": "st\\u006fp"}', "stop"),
        (b'{"exec-oob": "migrate-recover", "id": 1}', "migrate-recover"),
        (b'{"execute": "stop", "id": ' + b"1" * 5000 + b"}", "stop"),
        (b'{"execute": "stop", "id": "\xc0\x80"}', "stop"),  # what is no UTF-8 elsewhere does not hide the name
    ],
)
def test_a_request_is_read_as_qemu_reads_it(raw: bytes, name: str) -> None:
    request = read_request(raw)
    assert request is not None
    assert request.name == name


@pytest.mark.parametrize(
    "raw",
    [
        b'{"execute": 17}',
        b'{"id": 1}',
        b'{"execute": "stop", "exec-oob": "stop"}',
    ],
)
def test_what_qemu_does_not_execute_is_no_request(raw: bytes) -> None:
    assert read_request(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"[1, 2]",
        b'[N{"execute": "migrate"}]',
        b'{N{"execute": "migrate"}}',
        b'{"id": NaN, "x": {"execute": "migrate"}}',
        b'{"execute": "query-status", "execute": "migrate"}',
        b'{"execute": "stop",}',
        b'{"execute" "stop"}',
        b"{",
        b"{]",
    ],
)
def test_what_is_no_json_object_is_not_taken_for_a_harmless_one(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        read_request(raw)


def test_a_request_too_deep_for_us_is_not_taken_for_a_harmless_one() -> None:
    with pytest.raises(TooDeep):
        read_request(b'{"execute": "migrate", "id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_members_are_replaced_and_all_others_stay_as_they_were() -> None:
    request = read_request(b"{'execute': 'stop', \"x\": [1.50, 2e5, 'a\"b'], \"id\": \xff}".replace(b"\xff", b"7"))
    assert request is not None
    assert request.with_members({"id": "8"}) == b'{"execute": "stop", "x": [1.50, 2e5, "a\\"b"], "id": 8}'
    assert request.with_members({}, without="x") == b'{"execute": "stop", "id": 7}'
