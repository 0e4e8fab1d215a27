"""Hostile and broken vhost-user front ends: every refusal says why, changes nothing, and nobody else notices."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support import vfio_scene, vhost_scene
from tests.support.vfio_client import VfioClient
from tests.support.vfio_scene import GuestRam, until
from tests.support.vhost import OK, map_page
from tests.support.vhost_client import HVA, VhostClient
from tests.support.vhost_scene import RAM_NBYTES, Scene
from vdev.wire import vhost_user as wire
from vdev.wire.vhost_user import Command, ProtocolFeature

every_fd_is_closed = vfio_scene.every_fd_is_closed
ram = vhost_scene.ram
scene = vhost_scene.scene


def region(gpa: int, nbytes: int, hva: int = HVA, offset: int = 0) -> bytes:
    return wire.SingleRegion(0, gpa, nbytes, hva, offset).pack()


U64_MAX = (1 << 64) - 1
# name: (command, body, fds: e eventfd, p pipe, r RAM, s socket), errno)
REFUSED: dict[str, tuple[int, bytes, str, int]] = {
    "unknown command": (99, b"", "", errno.ENOSYS),
    "known, for other devices": (Command.NET_SET_MTU, bytes(8), "", errno.ENOSYS),
    "RESET_OWNER, long deprecated": (Command.RESET_OWNER, b"", "", errno.ENOSYS),
    "SET_FEATURES, short": (Command.SET_FEATURES, bytes(7), "", errno.EINVAL),
    "SET_FEATURES, long": (Command.SET_FEATURES, bytes(9), "", errno.EINVAL),
    "SET_FEATURES, not offered": (Command.SET_FEATURES, wire.U64(1 << 33).pack(), "", errno.EINVAL),
    "SET_FEATURES with an fd": (Command.SET_FEATURES, bytes(8), "e", errno.EINVAL),
    "SET_PROTOCOL_FEATURES, not offered": (
        Command.SET_PROTOCOL_FEATURES, wire.U64(ProtocolFeature.STATUS).pack(), "", errno.EINVAL,
    ),
    "SET_BACKEND_REQ_FD without fd": (Command.SET_BACKEND_REQ_FD, b"", "", errno.EINVAL),
    "SET_BACKEND_REQ_FD with a pipe": (Command.SET_BACKEND_REQ_FD, b"", "p", errno.EINVAL),
    "SET_BACKEND_REQ_FD with two": (Command.SET_BACKEND_REQ_FD, b"", "ss", errno.EINVAL),
    "SET_MEM_TABLE, count beyond its bytes": (Command.SET_MEM_TABLE, wire.MemoryTable(2, 0).pack(), "rr", errno.EINVAL),
    "SET_MEM_TABLE, of too many": (Command.SET_MEM_TABLE, wire.MemoryTable(9, 0).pack() + bytes(288), "", errno.EINVAL),
    "SET_MEM_TABLE of 2^32-1": (Command.SET_MEM_TABLE, wire.MemoryTable(0xFFFFFFFF, 0).pack(), "", errno.EINVAL),
    "ADD_MEM_REG without fd": (Command.ADD_MEM_REG, region(1 << 32, 4096), "", errno.EINVAL),
    "ADD_MEM_REG with two": (Command.ADD_MEM_REG, region(1 << 32, 4096), "rr", errno.EINVAL),
    "ADD_MEM_REG, empty": (Command.ADD_MEM_REG, region(1 << 32, 0, 1 << 40), "r", errno.EINVAL),
    "ADD_MEM_REG beyond the file": (Command.ADD_MEM_REG, region(1 << 32, 4096, 1, RAM_NBYTES), "r", errno.EINVAL),
    "ADD_MEM_REG, over another": (Command.ADD_MEM_REG, region(4096, 4096, 1 << 40), "r", errno.EEXIST),
    "ADD_MEM_REG, HVA over another": (Command.ADD_MEM_REG, region(1 << 32, 4096, HVA), "r", errno.EEXIST),
    "ADD_MEM_REG, beyond the address space": (Command.ADD_MEM_REG, region(U64_MAX, 4096, 1 << 40), "r", errno.EINVAL),
    "ADD_MEM_REG, HVA beyond the space": (Command.ADD_MEM_REG, region(1 << 32, 4096, U64_MAX), "r", errno.EINVAL),
    "REM_MEM_REG of nothing": (Command.REM_MEM_REG, region(1 << 32, 4096), "", errno.ENOENT),
    "SET_VRING_NUM of ring 2": (Command.SET_VRING_NUM, wire.RingState(2, 16).pack(), "", errno.EINVAL),
    "SET_VRING_ADDR outside memory": (
        Command.SET_VRING_ADDR, wire.RingAddress(0, 0, 0x1000, 0x2000, 0x3000, 0).pack(), "", errno.EFAULT,
    ),
    "SET_VRING_KICK without fd": (Command.SET_VRING_KICK, wire.U64(0).pack(), "", errno.EINVAL),
    "SET_VRING_KICK to poll": (Command.SET_VRING_KICK, wire.U64(wire.RING_NO_FD).pack(), "", errno.ENOTSUP),
    "SET_VRING_KICK with a pipe": (Command.SET_VRING_KICK, wire.U64(0).pack(), "p", errno.EINVAL),
    "SET_VRING_CALL with RAM": (Command.SET_VRING_CALL, wire.U64(0).pack(), "r", errno.EINVAL),
    "SET_VRING_CALL of ring 2": (Command.SET_VRING_CALL, wire.U64(2).pack(), "e", errno.EINVAL),
    "SET_VRING_CALL with two": (Command.SET_VRING_CALL, wire.U64(0).pack(), "ee", errno.EINVAL),
    "SET_VRING_ERR with unknown bits": (Command.SET_VRING_ERR, wire.U64(1 << 9).pack(), "e", errno.EINVAL),
    "SET_VRING_ENABLE of 2": (Command.SET_VRING_ENABLE, wire.RingState(0, 2).pack(), "", errno.EINVAL),
    "SET_CONFIG of migration": (Command.SET_CONFIG, wire.ConfigAccess(0, 1, 1).pack() + b"\0", "", errno.ENOTSUP),
    "SET_CONFIG, shorter than it says": (Command.SET_CONFIG, wire.ConfigAccess(0, 64, 0).pack(), "", errno.EINVAL),
    "SET_CONFIG beyond the space": (Command.SET_CONFIG, wire.ConfigAccess(256, 1, 0).pack() + b"\0", "", errno.EINVAL),
}  # fmt: skip


@asynccontextmanager
async def descriptors(kinds: str, ram: GuestRam) -> AsyncIterator[list[int]]:
    """One fd per letter."""
    fds: list[int] = []
    spare: list[int] = []
    for kind in kinds:
        if kind == "e":
            fds.append(os.eventfd(0))
        elif kind == "p":
            reader, writer = os.pipe()
            fds.append(reader)
            spare.append(writer)
        else:
            fds.append(os.dup(ram.fd))
    try:
        yield fds
    finally:
        for fd in fds + spare:
            os.close(fd)


@pytest.mark.parametrize("case", REFUSED)
async def test_a_message_that_makes_no_sense_is_refused_and_nothing_changes(scene: Scene, case: str) -> None:
    command, body, kinds, code = REFUSED[case]
    async with scene.guest() as guest, descriptors(kinds, scene.ram) as fds:
        refused = await guest.client.acked(command, body, fds)

        assert refused == code
        assert await guest.ask(map_page(2)) == [OK]


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (Command.GET_FEATURES, b"x"),
        (Command.GET_VRING_BASE, bytes(4)),
        (Command.GET_VRING_BASE, wire.RingState(7, 0).pack()),
        (Command.GET_CONFIG, wire.ConfigAccess(0, 300, 0).pack() + bytes(300)),
        (Command.GET_CONFIG, wire.ConfigAccess(0xFFFFFFFF, 1, 0).pack() + bytes(1)),
        (Command.GET_CONFIG, b""),
    ],
)
async def test_what_must_be_answered_is_answered_without_a_body_when_refused(
    scene: Scene, command: int, body: bytes
) -> None:
    async with scene.guest() as guest:
        assert await guest.client.request(command, body) == b""
        assert await guest.ask(map_page(2)) == [OK]


async def test_a_refusal_nobody_asked_for_is_a_line_in_the_log_and_there_are_few_of_them(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene.guest() as guest:
        for _ in range(500):
            guest.client.send(99)
            await asyncio.sleep(0)
        assert len(await guest.client.config()) == 64

    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert 0 < len(lines) < 20
    assert "refused 99" in lines[0].getMessage()


@pytest.mark.parametrize("flags", [0, 2, wire.VERSION | wire.REPLY])
async def test_a_message_of_another_version_or_a_reply_is_refused(scene: Scene, flags: int) -> None:
    async with scene.guest() as guest:
        before = guest.client.features
        guest.client.send_raw(wire.Header(Command.SET_OWNER, flags, 0).pack())

        assert len(await guest.client.config()) == 64
        assert scene.server.connection is not None
        assert scene.server.connection.session.refused == 1
        assert guest.client.features == before


@pytest.mark.parametrize("size", [wire.MAX_BODY_NBYTES + 1, 0xFFFFFFFF])
async def test_a_size_that_cannot_be_ends_this_connection_only(scene: Scene, size: int) -> None:
    endpoint = await VfioClient.connect(scene.app.servers["accel0"].path)
    await endpoint.negotiate()
    client = await VhostClient.connect(scene.path)
    client.send_raw(wire.Header(Command.SET_OWNER, wire.VERSION, size).pack())

    assert await client.ended()
    assert (await endpoint.device_info()).num_irqs
    client.close()
    endpoint.close()


async def test_a_message_in_pieces_is_one_message(scene: Scene) -> None:
    client = await VhostClient.connect(scene.path)
    for byte in wire.message(Command.GET_QUEUE_NUM)[:-1]:
        client.send_raw(bytes([byte]))
        await asyncio.sleep(0)

    client.send_raw(wire.message(Command.GET_QUEUE_NUM)[-1:])
    answer = await client.receive(20)
    client.close()

    assert answer == wire.message(Command.GET_QUEUE_NUM, wire.U64(2).pack(), wire.REPLY)


async def test_a_second_connection_is_refused_while_the_first_one_works(scene: Scene) -> None:
    async with scene.guest() as guest:
        other = await VhostClient.connect(scene.path)
        refused = await other.ended()
        other.close()

        assert refused
        assert await guest.ask(map_page(2)) == [OK]


@pytest.mark.parametrize("nbytes", [1, 11, 12, 15])
async def test_a_peer_that_vanishes_inside_a_message_leaves_nothing_behind(scene: Scene, nbytes: int) -> None:
    client = await VhostClient.connect(scene.path)
    whole = wire.message(Command.SET_VRING_CALL, wire.U64(0).pack())
    client.send_raw(whole[:nbytes], [client.fronts[0].call])
    await until(lambda: scene.server.connection is not None)
    client.close()
    await until(lambda: scene.server.connection is None)

    async with scene.guest() as guest:
        assert await guest.ask(map_page(2)) == [OK]
