"""Every vfio-user message byte by byte, as the specification lays it out, on a real socket."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_scene import PAGE, FakeFunction, GuestRam, eventfds, fired
from tests.wires.raw import answer, negotiated, refusal, request, words

every_fd_is_closed = vfio_scene.every_fd_is_closed


async def test_dma_map_is_argsz_flags_offset_address_size_with_its_fd(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        with GuestRam(4 * PAGE) as guest:
            assert guest.map is not None
            guest.map[2 * PAGE : 2 * PAGE + 4] = b"here"
            message = request(2, words("IIQQQ", 32, 3, 2 * PAGE, 0x10_0000, PAGE))
            found = await wire.ask(message, [guest.fd])

        assert len(message) == 48
        assert found == answer(2)
        assert scene.function.memory.read(0x10_0000, 4) == b"here"


@pytest.mark.parametrize(("flags", "readable", "writable"), [(1, True, False), (2, False, True), (3, True, True)])
async def test_the_flags_of_a_map_are_what_may_be_done_there(
    tmp_path: Path, flags: int, readable: bool, writable: bool
) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        with GuestRam(PAGE) as guest:
            await wire.ask(request(2, words("IIQQQ", 32, flags, 0, 0, PAGE)), [guest.fd])
        [region] = scene.function.memory.regions()

    assert (region.readable, region.writable) == (readable, writable)


async def test_dma_unmap_is_argsz_flags_address_size_and_comes_back(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        for gpa in (PAGE, 0x8000):  # the first one is in the range that address and size exchanged would be
            await wire.ask(request(2, words("IIQQQ", 32, 3, 0, gpa, PAGE)))
        body = words("IIQQ", 24, 0, 0x8000, PAGE)
        found = await wire.ask(request(3, body))

        assert found == answer(3, body)
        assert [region.gpa for region in scene.function.memory.regions()] == [PAGE]


async def test_dma_unmap_of_everything_names_no_range(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        for gpa in (0, 1 << 32):
            await wire.ask(request(2, words("IIQQQ", 32, 3, 0, gpa, PAGE)))
        body = words("IIQQ", 24, 2, 0, 0)
        found = await wire.ask(request(3, body))

        assert found == answer(3, body)
        assert len(scene.function.memory) == 0


async def test_device_info_is_argsz_flags_regions_interrupts(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(4, words("IIII", 16, 0, 0, 0)))

    assert found == answer(4, words("IIII", 16, 3, 9, 5))


@pytest.mark.parametrize(("index", "flags", "nbytes"), [(0, 3, PAGE), (1, 0, 0), (6, 0, 0), (7, 3, 4096), (8, 0, 0)])
async def test_region_info_is_argsz_flags_index_no_capability_size_offset(
    tmp_path: Path, index: int, flags: int, nbytes: int
) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(5, words("IIIIQQ", 32, 0, index, 0, 0, 0)))

    assert found == answer(5, words("IIIIQQ", 32, flags, index, 0, nbytes, 0))


async def test_no_region_may_be_mapped_whatever_room_the_client_gives(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, _):
        for index in range(9):
            found = await wire.ask(request(5, words("IIIIQQ", 4096, 0, index, 0, 0, 0)))
            argsz, flags = int.from_bytes(found[16:20], "little"), found[20]

            assert (len(found), argsz, flags & 0xC) == (48, 32, 0)


async def test_region_io_fds_is_argsz_flags_index_and_no_sub_region(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(6, words("IIII", 16, 0, 2, 0)))
        beyond = await wire.ask(request(6, words("IIII", 16, 0, 9, 0)))

    assert found == answer(6, words("IIII", 16, 0, 2, 0))
    assert beyond == refusal(6, errno.EINVAL)


@pytest.mark.parametrize(("index", "flags", "count"), [(0, 0, 0), (1, 0, 0), (2, 1, 4)])
async def test_irq_info_is_argsz_flags_index_count(tmp_path: Path, index: int, flags: int, count: int) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(7, words("IIII", 16, 0, index, 0)))

    assert found == answer(7, words("IIII", 16, flags, index, count))


async def test_set_irqs_is_argsz_flags_index_start_count_with_eventfds_beside_it(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        with eventfds(2) as fds:
            message = request(8, words("IIIII", 20, 0x24, 2, 1, 2))
            found = await wire.ask(message, fds)
            scene.function.raise_vector(2)

            assert len(message) == 36
            assert found == answer(8)
            assert [fired(fd) for fd in fds] == [0, 1]


async def test_the_booleans_of_set_irqs_follow_at_byte_20_one_byte_each(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, _):
        with eventfds(3) as fds:
            await wire.ask(request(8, words("IIIII", 20, 0x24, 2, 0, 3)), fds)
            found = await wire.ask(request(8, words("IIIII", 23, 0x22, 2, 0, 3) + b"\0\1\1"))

            assert found == answer(8)
            assert [fired(fd) for fd in fds] == [0, 1, 1]


async def test_region_read_is_offset_region_count_and_the_data_after_them(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        scene.function.registers[2][0x40:0x44] = b"\x11\x22\x33\x44"
        body = words("QII", 0x40, 2, 4)
        found = await wire.ask(request(9, body))

    assert found == answer(9, body + b"\x11\x22\x33\x44")


async def test_region_write_is_offset_region_count_data_and_the_first_three_come_back(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        body = words("QII", 0x40, 2, 4)
        found = await wire.ask(request(10, body + b"\x11\x22\x33\x44"))

        assert found == answer(10, body)
        assert scene.function.registers[2][0x40:0x44] == b"\x11\x22\x33\x44"


async def test_device_reset_has_a_payload_in_neither_direction(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        found = await wire.ask(request(13))

        assert found == answer(13)
        assert scene.function.calls == ["reset"]


async def test_write_multi_is_a_count_and_entries_of_24_bytes_and_the_count_comes_back(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        entries = [words("QII8s", 0, 0, 4, b"\1\2\3\4"), words("QII8s", 8, 2, 8, b"12345678")]
        found = await wire.ask(request(15, words("Q", 2) + b"".join(entries)))

        assert [len(entry) for entry in entries] == [24, 24]
        assert found == answer(15, words("Q", 2))
        assert scene.function.registers[0][:4] == b"\1\2\3\4"
        assert scene.function.registers[2][8:16] == b"12345678"


async def test_200_writes_in_one_message_are_done(tmp_path: Path) -> None:
    async with negotiated(tmp_path) as (wire, scene):
        entry = words("QII8s", 0, 0, 4, b"\1\2\3\4")
        found = await wire.ask(request(15, words("Q", 200) + entry * 200))

        assert found == answer(15, words("Q", 200))
        assert len(scene.function.calls) == 200


@pytest.mark.parametrize("operation", [1 << 16, 1 << 17, 1 << 18, 1 << 16 | 1 << 18])
@pytest.mark.parametrize("feature", [1, 2, 6, 7, 8])
async def test_no_device_feature_can_be_got_set_or_probed(tmp_path: Path, feature: int, operation: int) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(16, words("II", 64, operation | feature) + bytes(56)))

    assert found == refusal(16, errno.ENOTTY)


@pytest.mark.parametrize(("command", "code"), [(17, errno.ENOTSUP), (18, errno.ENOTSUP), (14, errno.ENOSYS)])
async def test_migration_data_and_the_number_that_was_dropped_are_refused(
    tmp_path: Path, command: int, code: int
) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(command, words("II", 8, 0)))

    assert found == refusal(command, code)


@pytest.mark.parametrize("command", [11, 12])
async def test_a_client_that_sends_the_servers_messages_is_refused(tmp_path: Path, command: int) -> None:
    async with negotiated(tmp_path) as (wire, _):
        found = await wire.ask(request(command, words("QQ", 0, 0)))

    assert found == refusal(command, errno.ENOSYS)


async def test_an_eventfd_is_signalled_with_one(tmp_path: Path) -> None:
    async with negotiated(tmp_path, FakeFunction()) as (wire, scene):
        with eventfds(1) as fds:
            await wire.ask(request(8, words("IIIII", 20, 0x24, 2, 0, 1)), fds)
            scene.function.raise_vector(0)

            assert os.read(fds[0], 8) == words("Q", 1)
