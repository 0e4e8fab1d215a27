"""What QEMU says to requests that are wrong, the bridge says as well: compared with a real QEMU, input by input."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.monitor_lab import Lab, Message, client, lab

RESYNC = b"\n\x00"  # ends whatever is open; itself an error
END = b'{"execute": "query-name", "id": "the end"}'

BEFORE_NEGOTIATION = [
    b'{"execute": "query-status"}',
    b'{"execute": "nope", "id": 3}',
    b'{"execute": "__org.vdev_query-units"}',
    b'{"execute": "migrate", "id": 1}',
    b'{"exec-oob": "query-status", "id": 3}',
    b'{"exec-oob": "qmp_capabilities"}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": ["foo"]}, "id": []}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": "oob"}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": [1]}}',
    b'{"execute": "qmp_capabilities", "arguments": {"x": 1}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob", "oob"]}}',
    b"{nonsense}",
    b"5 [] {}",
]
ENVELOPES = [
    b'5 true "x" null [] [1, 2] {} ',
    b'{"id": 5}',
    b'{"execute": 1}',
    b'{"exec-oob": 1}',
    b'{"exec-oob": "query-status", "id": 3}',
    b'{"execute": "stop", "exec-oob": "stop"}',
    b'{"execute": "query-name", "foo": 1}',
    b'{"execute": "query-name", "arguments": 5, "foo": 1}',
    b'{"execute": "query-name", "arguments": null}',
    b'{"execute": "query-name", "arguments": []}',
    b'{"execute": "query-name", "arguments": {"a": 1}, "id": {"a": [1]}}',
    b'{"execute": "qmp_capabilities", "id": 1}',
    b'{"execute": "__org.vdev_nope", "id": 1}',
    b'{"execute": "", "id": 1}',
    b'{"execute": "query-name", "id": null}',
    b'{"execute": "query-name", "id": 1.5}',
    b'{"execute": "query-name", "id": 12345678901234567890123}',
    b'{"execute": "query-name", "id": 18446744073709551615}',
    b'{"execute": "query-name", "id": -9223372036854775808}',
    b'{"execute": "query-name", "id": {"b": 1, "a": [true, false, null, "\\u00e9\xc3\xa9\\/"]}}',
    b'{"execute": "query-name", "id": 0.1}',
    b'{"execute": "query-name", "id": -0}',
    b'{"execute": "query-name", "id": "\\ud83d\\ude00 \xf0\x9f\x98\x80 \x7f \\u0000"}',
    b'{"execute": "query-name", "id": "\xc0\x80"}',
    b"{'execute': 'query-name', 'id': 'it\\'s'}",
    b'{"execute": "query-name"}{"execute": "query-name", "id": 1} {"execute": "query-name", "id": 2}\n',
    b'{"execute":\n\n "query-name",\n "id"\n:1}',
]
STREAMS = [
    b'{"a": 01}', b'{"a": "\\ud800"}', b'{"a": "\\q"}', b'{"a": "\\u12"}', b'{"a": "\xff"}', b'{"a": "\xc3"}',
    b'{"a": "\xed\xa0\x80"}', b'{"a": "\xef\xbf\xbe"}', b'{"a": "\\uffff"}', b'{"a": "\\uFDD0"}', b'{"a": 1, "a": 2}',
    b'{"a": "\\ud83f\\udffe"}', b'{"a": 1,}', b'{"a" "b"}', b'{"a": }', b"{1: 2}", b'{"a": 1 "b": 2}', b"}", b"]",
    b"{]", b"[}", b'{N{"execute": "query-name"}}', b"{@}", b"@", b"nonsense {}", b"\x00{}", b"\xff{}", b'{"a": "\x01"}',
    b'"abc\n', b"{'a': %d}", b"%d\n", b'{"id": NaN}\n', b'{"id": -}\n', b'{"id": [1,]}', b'{"id": [1 2]}',
    b'{"id": [,]}', b"{,}", b'{"id": tru}', b'{"id": 1.}\n', b'{"id": 1e}\n', b'{"id": 1.5e+}', b'{"id": 0e5}',
    b'{"id": .5}\n', b"1.5.2 ", b"/{};\n;\n", b'{"a": ["b", {"c": tru}]}', b'"x', b'"\\\n', b"nuLL {}", b": , {}",
    b'{"a": true false}', b'{"a"\t:\r1}', b"\x0b{}", b"{\x0b}{}", b'{"a\n": 1}{}', b"[[[[[}]]]]]", b'{"a": [}{}',
    b"{'a\"b': 1} {'a': '\\\"'}", b'{"\\u0000": 1}', b"--5 {}", b"[1, 2", b'{"a": "\xf5\x80\x80\x80"}',
    b'{"a": "\\u00e9", "\\u0061": 2}', b"\\ {}", b'{"a": \\}{}', b'{"execute": "query-name", "id": "\\ud800"}',
]  # fmt: skip
OUT_OF_BAND = [
    b'{"exec-oob": "qmp_capabilities", "id": 3}',
    b'{"exec-oob": "query-status", "id": 3}',
    b'{"exec-oob": "nope", "id": 3}',
    b'{"exec-oob": 5}',
    b'{"execute": "stop", "exec-oob": "stop"}',
    b'{"exec-oob": "yank", "arguments": {"x": 1}, "id": 3}',
    b'{"exec-oob": "yank", "arguments": {"instances": []}, "id": [3]}',
    b'{"exec-oob": "__org.vdev_nope", "id": 3}',
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bridge")


@pytest.fixture
async def monitors(directory: Path) -> AsyncIterator[Lab]:
    async with lab(directory) as found:
        yield found


async def replies(path: str, data: bytes, *, negotiate: bool, oob: bool = False) -> list[Message]:
    """What a monitor answers to `data`, without columns, which QEMU counts in its own way."""
    seen: list[Message] = []
    async with client(path, negotiate=negotiate, oob=oob) as person:
        person.send(data + RESYNC + END)
        while not (seen and seen[-1].get("id") == "the end"):
            seen.append(await person.reply())
    for reply in seen:
        if "error" in reply:
            reply["error"]["desc"] = re.sub(r"^(\d+):\d+:", r"\1:", reply["error"]["desc"])
    return seen


async def compare(monitors: Lab, inputs: list[bytes], *, negotiate: bool = True, oob: bool = False) -> None:
    for data in inputs:
        ours = await replies(monitors.bridged, data, negotiate=negotiate, oob=oob)
        qemus = await replies(monitors.direct, data, negotiate=negotiate, oob=oob)
        if oob:  # no order is promised
            ours, qemus = sorted(ours, key=str), sorted(qemus, key=str)
        assert ours == qemus, data


async def test_before_negotiation_everything_is_answered_as_qemu_does(monitors: Lab) -> None:
    await compare(monitors, BEFORE_NEGOTIATION, negotiate=False)


async def test_what_is_no_request_and_ids_of_every_kind_are_answered_as_qemu_does(monitors: Lab) -> None:
    await compare(monitors, ENVELOPES)


async def test_what_is_no_json_gets_qemus_errors_and_the_stream_goes_on_where_qemus_does(monitors: Lab) -> None:
    await compare(monitors, STREAMS)


async def test_out_of_band_requests_are_answered_as_qemu_does(monitors: Lab) -> None:
    await compare(monitors, OUT_OF_BAND, oob=True)


async def test_a_client_is_greeted_as_qemu_greets(monitors: Lab) -> None:
    async with client(monitors.bridged) as ours, client(monitors.direct) as qemus:
        assert ours.greeting == qemus.greeting
