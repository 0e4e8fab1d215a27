"""Rules of the vfio-user conversation that no single layout shows: replies, order, sizes, versions, resets."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support import vfio_scene
from tests.support.vfio_scene import PAGE, GuestRam, served, until
from tests.wires.raw import NEGOTIATE, Wire, answer, negotiated, refusal, request, words
from vdev.transports.vfio_user import VfioUserServer, VmContext

every_fd_is_closed = vfio_scene.every_fd_is_closed

NO_REPLY = 0x10
DEVICE_INFO = words("IIII", 16, 0, 0, 0)


async def _version(directory: Path, text: bytes, major: int = 0, minor: int = 0) -> bytes:
    """The whole reply to a VERSION with this text."""
    async with served(directory) as scene:
        wire = await Wire.connect(scene.path)
        try:
            return await wire.ask(request(1, words("HH", major, minor) + text))
        finally:
            wire.close()


def _text(**capabilities: Any) -> bytes:
    return json.dumps({"capabilities": capabilities, "padding": " " * 200}).encode() + b"\0"


@pytest.mark.parametrize("ident", [0, 1, 0xFFFF])
async def test_a_reply_has_the_number_and_the_command_of_its_request(tmp_path: Path, ident: int) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(13, ident=ident))

    assert found == answer(13, ident=ident)


async def test_numbers_may_repeat_even_among_requests_under_way(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, _):
        wire.send(request(13) + request(4, DEVICE_INFO) + request(13))
        found = [await wire.vfio_reply() for _ in range(3)]

    assert [reply[:4] for reply in found] == [words("HH", 7, command) for command in (13, 4, 13)]


async def test_requests_are_carried_out_and_answered_in_their_order(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, _):
        for value in range(50):
            wire.send(request(10, words("QIIB", 0, 0, 1, value), ident=value, flags=NO_REPLY * (value % 2)))
        wire.send(request(9, words("QII", 0, 0, 1), ident=50))
        found = [await wire.vfio_reply() for _ in range(26)]

    assert [int.from_bytes(reply[:2], "little") for reply in found] == [*range(0, 50, 2), 50]
    assert found[-1][-1] == 49


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (2, words("IIQQQ", 32, 3, 0, 0, PAGE)),
        (3, words("IIQQ", 24, 2, 0, 0)),
        (4, DEVICE_INFO),
        (9, words("QII", 0, 0, 4)),
        (13, b""),
        (16, words("II", 8, 1)),
        (99, b""),
    ],
)
async def test_what_wants_no_reply_gets_none_good_or_bad(tmp_path: Path, command: int, payload: bytes) -> None:
    async with negotiated(tmp_path) as (wire, _):
        wire.send(request(command, payload, ident=1, flags=NO_REPLY))
        found = await wire.ask(request(13, ident=2))

    assert found == answer(13, ident=2)


async def test_the_error_field_of_a_request_means_nothing(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(words("HHIII", 7, 13, 16, 0, 5))

    assert found == answer(13)


@pytest.mark.parametrize("kind", [2, 3, 0xF])
async def test_what_is_neither_request_nor_reply_is_refused(tmp_path: Path, kind: int) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        found = await wire.ask(request(13, flags=kind))

        assert found == refusal(13, errno.EINVAL)
        assert scene.function.calls == []


async def test_a_reply_to_nothing_is_not_answered(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        wire.send(request(13, ident=1, flags=1))
        found = await wire.ask(request(4, DEVICE_INFO, ident=2))

        assert found[:4] == words("HH", 2, 4)
        assert scene.function.calls == []


class _Noted:
    """A socket whose sendmsg is noted."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.sent: list[bytes] = []

    def sendmsg(self, buffers: list[memoryview], ancillary: tuple[()], flags: int) -> int:
        self.sent.append(b"".join(buffers))
        return self._sock.sendmsg(buffers, ancillary, flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


async def test_every_message_leaves_in_one_piece(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        assert scene.server.connection is not None
        stream = scene.server.connection._stream
        noted = _Noted(stream._sock)
        stream._sock = noted  # type: ignore[assignment]
        found = [await wire.ask(request(9, words("QII", 0, 7, count))) for count in (1, 4096)]
        scene.server.connection.dma._send(request(11, words("QQ", 0, 4), ident=1))
        found.append(await wire.vfio_reply())

        assert noted.sent == found


async def test_a_socket_takes_a_connection_before_anybody_serves_it(tmp_path: Path) -> None:
    server = VfioUserServer(vfio_scene.FakeFunction(), tmp_path / "run" / "early.sock", VmContext())
    server.listen()
    wire = await Wire.connect(server.path)
    wire.close()
    server.close()

    assert server.connection is None


# VERSION


async def test_nothing_but_version_is_carried_out_before_it(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        wire = await Wire.connect(scene.path)
        refused = [await wire.ask(request(command, bytes(64))) for command in (2, 3, 4, 5, 7, 8, 9, 10, 13, 15)]
        accepted = await wire.ask(NEGOTIATE)
        wire.close()

    assert refused == [refusal(command, errno.EINVAL) for command in (2, 3, 4, 5, 7, 8, 9, 10, 13, 15)]
    assert scene.function.calls == ["disconnected", "memory"]
    assert accepted[8] == 1


@pytest.mark.parametrize("major", [1, 2, 0xFFFF])
async def test_another_major_version_is_an_error_and_not_answered_with_ours(tmp_path: Path, major: int) -> None:
    assert await _version(tmp_path, b"", major=major) == refusal(1, errno.EINVAL)


@pytest.mark.parametrize("minor", [0, 1, 0xFFFF])
async def test_our_minor_version_is_never_above_the_clients(tmp_path: Path, minor: int) -> None:
    assert await _version(tmp_path, b"", minor=minor) == answer(1, words("HH", 0, 0))


async def test_only_capabilities_that_were_proposed_are_agreed_to(tmp_path: Path) -> None:
    found = await _version(tmp_path, _text(pgsizes=4096, migration={"pgsize": 4096}))

    assert json.loads(found[20:-1]) == {"capabilities": {"pgsizes": 4096}}


async def test_where_nothing_was_proposed_nothing_is_agreed_to(tmp_path: Path) -> None:
    assert await _version(tmp_path, _text()) == answer(1, words("HH", 0, 0))


async def test_a_second_socket_is_not_agreed_to(tmp_path: Path) -> None:
    found = await _version(tmp_path, _text(twin_socket={"supported": True}, max_msg_fds=16))

    assert json.loads(found[20:-1]) == {"capabilities": {"max_msg_fds": 16}}


@pytest.mark.parametrize("agreed", [True, False])
async def test_write_multiple_is_declined(tmp_path: Path, agreed: bool) -> None:
    found = await _version(tmp_path, _text(write_multiple=agreed))

    assert json.loads(found[20:-1]) == {"capabilities": {"write_multiple": False}}


# Sizes


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (3, words("IIQQ", 23, 0, 0, PAGE)),
        (4, words("IIII", 15, 0, 0, 0)),
        (5, words("IIIIQQ", 31, 0, 0, 0, 0, 0)),
        (6, words("IIII", 15, 0, 0, 0)),
        (7, words("IIII", 15, 0, 2, 0)),
        (2, words("IIQQQ", 31, 3, 0, 1 << 32, PAGE)),
        (8, words("IIIII", 19, 0x21, 2, 0, 0)),
    ],
)
async def test_an_argument_size_below_the_fixed_part_is_refused(tmp_path: Path, command: int, payload: bytes) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        await wire.ask(request(2, words("IIQQQ", 32, 3, 0, 0, PAGE)))
        found = await wire.ask(request(command, payload))

        assert found == refusal(command, errno.EINVAL)
        assert len(scene.function.memory) == 1


@pytest.mark.parametrize(
    ("command", "nbytes"), [(1, 4), (2, 32), (3, 24), (4, 16), (5, 32), (6, 16), (7, 16), (8, 20), (9, 16), (10, 16)]
)
async def test_a_payload_one_byte_short_is_refused_and_the_stream_stays_in_step(
    tmp_path: Path, command: int, nbytes: int
) -> None:
    async with served(tmp_path) as scene:
        wire = await Wire.connect(scene.path)
        if command != 1:
            await wire.ask(NEGOTIATE)
        found = await wire.ask(request(command, bytes(nbytes - 1)))
        after = await wire.ask(NEGOTIATE if command == 1 else request(13))
        wire.close()

    assert found == refusal(command, errno.EINVAL)
    assert after[8] == 1


# Memory


async def test_a_map_over_another_is_eexist_and_changes_nothing(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        await wire.ask(request(2, words("IIQQQ", 32, 3, 0, 0x8000, 2 * PAGE)))
        found = [
            await wire.ask(request(2, words("IIQQQ", 32, 3, 0, gpa, PAGE))) for gpa in (0x8000, 0x9000)
        ]  # fmt: skip
        beside = await wire.ask(request(2, words("IIQQQ", 32, 3, 0, 0xA000, PAGE)))

        assert found == [refusal(2, errno.EEXIST)] * 2
        assert beside == answer(2)
        assert len(scene.function.memory) == 2


async def test_an_unmap_that_would_split_a_map_is_refused(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        await wire.ask(request(2, words("IIQQQ", 32, 3, 0, 0x8000, 2 * PAGE)))
        found = await wire.ask(request(3, words("IIQQ", 24, 0, 0x8000, PAGE)))

        assert found == refusal(3, errno.EINVAL)
        assert len(scene.function.memory) == 1


async def test_when_an_unmap_is_answered_the_function_knows_it(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        with GuestRam(PAGE) as guest:
            await wire.ask(request(2, words("IIQQQ", 32, 3, 0, 0, PAGE)), [guest.fd])
        scene.function.calls.clear()
        await wire.ask(request(3, words("IIQQ", 24, 0, 0, PAGE)))

        assert scene.function.calls == ["memory"]
        assert len(scene.vm.ram) == 0


@pytest.mark.parametrize(("flags", "code"), [(1, errno.ENOTSUP), (4, errno.EINVAL)])
async def test_dirty_tracking_and_unknown_flags_of_an_unmap_are_refused(tmp_path: Path, flags: int, code: int) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        await wire.ask(request(2, words("IIQQQ", 32, 3, 0, 0, PAGE)))
        found = await wire.ask(request(3, words("IIQQ", 24, flags, 0, PAGE)))

        assert found == refusal(3, code)
        assert len(scene.function.memory) == 1


# The end


async def test_a_client_that_comes_back_begins_with_version_and_no_memory(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        for _ in range(2):
            wire = await Wire.connect(scene.path)
            await wire.ask(NEGOTIATE)
            await wire.ask(request(2, words("IIQQQ", 32, 3, 0, 0, PAGE)))
            wire.close()
            await until(lambda: scene.server.connection is None)
        wire = await Wire.connect(scene.path)
        early = await wire.ask(request(4, DEVICE_INFO))
        wire.close()

        assert early == refusal(4, errno.EINVAL)
        assert len(scene.function.memory) == 0


async def test_we_do_not_close_a_connection_over_a_refusal(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        for command in range(256):
            if command not in (11, 12, 13):
                wire.send(request(command, b"", ident=command))
                assert (await wire.vfio_reply())[8] & 0x20
        connection = scene.server.connection

        assert await wire.ask(request(13)) == answer(13)
        assert scene.server.connection is connection
        await asyncio.sleep(0)
