"""Every vhost-user message we serve byte by byte, as the document lays it out, on a real socket."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support import vfio_scene, vhost_scene
from tests.support.vfio_scene import eventfds, until
from tests.support.vhost_client import HVA
from tests.support.vhost_scene import RAM_NBYTES, Scene
from tests.wires.raw import Wire, words

every_fd_is_closed = vfio_scene.every_fd_is_closed
ram = vhost_scene.ram
scene = vhost_scene.scene

VERSION, REPLY, NEED_REPLY = 1, 4, 8
REPLY_ACK = 1 << 3
CONFIG = 1 << 9
PROTOCOL_BIT = 1 << 30


def message(command: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Request, flags with version 1, size of the body alone, body."""
    return words("III", command, VERSION | flags, len(body)) + body


def reply(command: int, body: bytes = b"") -> bytes:
    """What answers it: version and reply flag, nothing else."""
    return words("III", command, VERSION | REPLY, len(body)) + body


@asynccontextmanager
async def wired(scene: Scene, *, acked: bool = True) -> AsyncIterator[Wire]:
    """A raw connection, with REPLY_ACK negotiated unless told otherwise."""
    wire = await Wire.connect(scene.path)
    try:
        if acked:
            wire.send(message(16, words("Q", REPLY_ACK | CONFIG)))
        yield wire
    finally:
        wire.close()
        await until(lambda: scene.server.connection is None)


async def acknowledged(wire: Wire, command: int, body: bytes = b"", fds: list[int] | None = None) -> int:
    """The number in the acknowledgement, whose shape is checked."""
    wire.send(message(command, body, NEED_REPLY), fds or [])
    found = await wire.vhost_reply()
    assert found[:12] == words("III", command, VERSION | REPLY, 8)
    return int.from_bytes(found[12:], "little")


@pytest.mark.parametrize("flags", [0, NEED_REPLY])
@pytest.mark.parametrize("command", [1, 15, 17, 36])
async def test_a_question_is_answered_by_one_number_whether_or_not_a_reply_is_needed(
    scene: Scene, command: int, flags: int
) -> None:
    async with wired(scene) as wire:
        wire.send(message(command, b"", flags) + message(17))
        found, after = await wire.vhost_reply(), await wire.vhost_reply()

    assert found[:12] == words("III", command, VERSION | REPLY, 8)
    assert after == reply(17, words("Q", 2))


async def test_the_numbers_of_queues_and_memory_slots_are_eight_bytes(scene: Scene) -> None:
    async with wired(scene) as wire:
        wire.send(message(17) + message(36))

        assert await wire.vhost_reply() == reply(17, words("Q", 2))
        assert await wire.vhost_reply() == reply(36, words("Q", 509))


async def test_a_memory_region_is_padding_guest_address_size_user_address_offset(scene: Scene) -> None:
    async with wired(scene) as wire:
        body = words("QQQQQ", 0xDEAD, 0x10_0000, 0x2000, HVA, 0x3000)
        added = await acknowledged(wire, 37, body, [scene.ram.fd])
        assert scene.ram.map is not None
        scene.ram.map[0x3000:0x3004] = b"here"
        found = scene.carrier.memory.read(0x10_0000, 4)

    assert (added, found) == (0, b"here")


async def test_a_region_is_removed_by_its_addresses_and_size_whatever_the_offset(scene: Scene) -> None:
    async with wired(scene) as wire:
        await acknowledged(wire, 37, words("QQQQQ", 0, 0x10_0000, 0x2000, HVA, 0x3000), [scene.ram.fd])
        other = [
            await acknowledged(wire, 38, words("QQQQQ", 0, gpa, nbytes, hva, 0x3000))
            for gpa, nbytes, hva in ((0, 0x2000, HVA), (0x10_0000, 0x1000, HVA), (0x10_0000, 0x2000, HVA + 1))
        ]
        removed = await acknowledged(wire, 38, words("QQQQQ", 0, 0x10_0000, 0x2000, HVA, 0))

        assert (other, removed) == ([errno.ENOENT] * 3, 0)
        assert len(scene.carrier.memory) == 0


async def test_an_fd_with_a_removed_region_is_closed_unused(scene: Scene) -> None:
    async with wired(scene) as wire:
        await acknowledged(wire, 37, words("QQQQQ", 0, 0, 0x2000, HVA, 0), [scene.ram.fd])
        with eventfds(1) as fds:
            before = vfio_scene.open_fds()
            removed = await acknowledged(wire, 38, words("QQQQQ", 0, 0, 0x2000, HVA, 0), fds)

            assert removed == 0
            assert set(vfio_scene.open_fds()) <= set(before)


async def test_a_memory_table_is_a_count_a_padding_and_regions_in_the_order_of_their_fds(scene: Scene) -> None:
    half = RAM_NBYTES // 2
    async with wired(scene) as wire:
        regions = words("QQQQ", 0, half, HVA, half) + words("QQQQ", half, half, HVA + half, 0)
        set_ = await acknowledged(wire, 5, words("II", 2, 0xFFFF) + regions, [scene.ram.fd] * 2)
        assert scene.ram.map is not None
        scene.ram.map[half : half + 5] = b"first"
        found = scene.carrier.memory.read(0, 5)

    assert (set_, found) == (0, b"first")


@pytest.mark.parametrize("nfds", [0, 2])
async def test_a_memory_table_with_fewer_or_more_fds_than_regions_is_refused(scene: Scene, nfds: int) -> None:
    async with wired(scene) as wire:
        table = words("IIQQQQ", 1, 0, 0, 0x1000, HVA, 0)

        assert await acknowledged(wire, 5, table, [scene.ram.fd] * nfds) == errno.EINVAL
        assert len(scene.carrier.memory) == 0


async def test_a_new_memory_table_takes_the_place_of_the_old_one(scene: Scene) -> None:
    async with wired(scene) as wire:
        await acknowledged(wire, 37, words("QQQQQ", 0, 1 << 32, 0x2000, HVA, 0), [scene.ram.fd])
        await acknowledged(wire, 5, words("IIQQQQ", 1, 0, 0, 0x1000, HVA, 0), [scene.ram.fd])

        assert [region.gpa for region in scene.carrier.memory.regions()] == [0]


async def test_a_ring_is_index_and_number_and_its_addresses_are_the_front_ends(scene: Scene) -> None:
    async with wired(scene) as wire:
        await acknowledged(wire, 37, words("QQQQQ", 0, 0x10_0000, RAM_NBYTES, HVA, 0), [scene.ram.fd])
        answers = [
            await acknowledged(wire, 8, words("II", 1, 128)),
            await acknowledged(wire, 10, words("II", 1, 5)),
            await acknowledged(wire, 9, words("IIQQQQ", 1, 0, HVA + 0x1000, HVA + 0x3000, HVA + 0x2000, 0)),
        ]
        ring = scene.carrier.rings[1]

        assert answers == [0, 0, 0]
        assert (ring.size, ring.base, ring.gpas) == (128, 5, (0x10_1000, 0x10_2000, 0x10_3000))


@pytest.mark.parametrize(
    ("size", "answered"), [(1, 0), (256, 0), (0, 22), (3, 22), (257, 22), (512, 22), (1 << 31, 22)]
)
async def test_a_rings_size_is_a_power_of_two_up_to_the_devices(scene: Scene, size: int, answered: int) -> None:
    async with wired(scene) as wire:
        assert await acknowledged(wire, 8, words("II", 0, size)) == answered
        assert scene.carrier.rings[0].size == (0 if answered else size)


@pytest.mark.parametrize(("base", "answered"), [(0xFFFF, 0), (0x1_0000, 22), (0xFFFF_FFFF, 22)])
async def test_a_rings_base_has_sixteen_bits(scene: Scene, base: int, answered: int) -> None:
    async with wired(scene) as wire:
        assert await acknowledged(wire, 10, words("II", 0, base)) == answered
        assert scene.carrier.rings[0].base == (0 if answered else base)


async def test_a_question_for_a_rings_base_is_answered_with_index_and_number(scene: Scene) -> None:
    async with wired(scene) as wire:
        await acknowledged(wire, 10, words("II", 1, 5))
        wire.send(message(11, words("II", 1, 0)))

        assert await wire.vhost_reply() == reply(11, words("II", 1, 5))


@pytest.mark.parametrize("command", [12, 13, 14])
async def test_an_eventfds_ring_is_in_the_low_byte(scene: Scene, command: int) -> None:
    async with wired(scene) as wire:
        with eventfds(1) as fds:
            answers = [await acknowledged(wire, command, words("Q", index), fds) for index in (0, 1, 2, 255)]

    assert answers == [0, 0, errno.EINVAL, errno.EINVAL]


@pytest.mark.parametrize("command", [13, 14])
async def test_bit_8_takes_a_call_or_error_eventfd_away(scene: Scene, command: int) -> None:
    async with wired(scene) as wire:
        await acknowledged(wire, 3)  # the connection is there
        with eventfds(1) as fds:
            before = len(vfio_scene.open_fds())
            await acknowledged(wire, command, words("Q", 1), fds)
            given = len(vfio_scene.open_fds())
            taken = await acknowledged(wire, command, words("Q", 0x101))

            assert (taken, given) == (0, before + 1)
            assert len(vfio_scene.open_fds()) == before


async def test_a_kick_without_an_fd_asks_for_polling_and_is_refused(scene: Scene) -> None:
    async with wired(scene) as wire:
        assert await acknowledged(wire, 12, words("Q", 0x100)) == errno.ENOTSUP


async def test_configuration_is_offset_size_flags_and_as_many_bytes_as_were_sent(scene: Scene) -> None:
    async with wired(scene) as wire:
        head = words("III", 8, 16, 0)
        wire.send(message(24, head + bytes(16)))

        assert await wire.vhost_reply() == reply(24, head + scene.carrier.config_read(8, 16))


async def test_configuration_that_cannot_be_read_is_an_answer_of_no_bytes(scene: Scene) -> None:
    async with wired(scene) as wire:
        wire.send(message(24, words("III", 200, 57, 0) + bytes(57)))

        assert await wire.vhost_reply() == reply(24)


async def test_what_a_driver_may_not_write_stays_whatever_it_sends(scene: Scene) -> None:
    async with wired(scene) as wire:
        before = scene.carrier.config_read(0, 64)
        answered = await acknowledged(wire, 25, words("III", 0, 64, 0) + b"\xff" * 36 + b"\0" + b"\xff" * 27)
        after = scene.carrier.config_read(0, 64)

    assert answered == 0
    assert [offset for offset in range(64) if before[offset] != after[offset]] == [36]


async def test_the_back_end_channel_is_one_socket_beside_an_empty_message(scene: Scene) -> None:
    async with wired(scene) as wire:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            answered = await acknowledged(wire, 21, b"", [theirs.fileno()])
            assert scene.server.connection is not None
            scene.server.connection.channel.config_changed()
            ours.setblocking(False)
            found = ours.recv(64)

    assert answered == 0
    assert found == words("III", 2, VERSION, 0)
