"""VERSION and QEMU's realize sequence over a real socket."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_client import QEMU_CAPABILITIES, Refused, VfioClient
from tests.support.vfio_scene import PAGE, FakeFunction, GuestRam, served
from vdev.pci.function import Bar
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed


async def test_version_answers_with_capabilities_qemu_accepts(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.connect()
        capabilities = await client.negotiate()

    assert capabilities == {
        "max_msg_fds": 16,
        "max_data_xfer_size": 1 << 20,
        "pgsizes": 4096,
        "max_dma_maps": 65535,
        "write_multiple": False,
    }


async def test_the_version_reply_fits_qemus_buffer_and_ends_with_nul(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.connect()
        request = wire.Version(0, 0).pack() + json.dumps({"capabilities": QEMU_CAPABILITIES}).encode() + b"\0"
        answer = await client.request(Command.VERSION, request)

    assert wire.HEADER_NBYTES + len(request) == wire.MAX_VERSION_REPLY_NBYTES
    assert wire.HEADER_NBYTES + len(answer) <= wire.MAX_VERSION_REPLY_NBYTES
    assert answer.endswith(b"}\0")
    assert answer[:4] == bytes(4)
    assert json.loads(answer[4:-1])


@pytest.mark.parametrize("text", [b"", b'{"capabilities":{}}\0', b'{"capabilities":{"pgsizes":0}}\0'])
async def test_a_short_version_request_gets_a_reply_that_fits_it(tmp_path: Path, text: bytes) -> None:
    async with served(tmp_path) as scene:
        client = await scene.connect()
        answer = await client.request(Command.VERSION, wire.Version(0, 0).pack() + text)

    assert answer[:4] == wire.Version(0, 0).pack()
    assert len(answer) <= 4 + len(text)


@pytest.mark.parametrize(
    "payload",
    [
        wire.Version(1, 0).pack(),
        wire.Version(0, 0).pack() + b"{}",  # no NUL
        wire.Version(0, 0).pack() + b"{\0",
        wire.Version(0, 0).pack() + b"[]\0",
        wire.Version(0, 0).pack() + b'{"capabilities":3}\0',
        wire.Version(0, 0).pack() + b'{"capabilities":{"max_data_xfer_size":-1}}\0',
        wire.Version(0, 0).pack() + b"[" * 3000 + b"\0",
        wire.Version(0, 0).pack() + b"\xff\xfe\0",
        wire.Version(0, 0).pack() + b"{}" + b" " * 8192 + b"\0",
        b"\0",
    ],
)
async def test_a_bad_version_request_is_refused_and_may_be_corrected(tmp_path: Path, payload: bytes) -> None:
    async with served(tmp_path) as scene:
        client = await scene.connect()
        with pytest.raises(Refused) as refusal:
            await client.request(Command.VERSION, payload)
        await client.negotiate()

    assert refusal.value.errno == errno.EINVAL


async def test_a_client_of_a_later_minor_version_is_told_ours(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.connect()
        answer = await client.request(Command.VERSION, wire.Version(0, 3).pack())

    assert answer == wire.Version(0, 0).pack()


async def test_nothing_is_answered_before_version_and_version_only_once(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.connect()
        with pytest.raises(Refused):
            await client.device_info()
        await client.negotiate()
        with pytest.raises(Refused):
            await client.negotiate()

        assert (await client.device_info()).num_regions == 9


async def test_qemus_realize_sequence_is_served_in_its_order(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.connect()
        with GuestRam(64 * PAGE) as guest:
            await client.negotiate()
            client.send(Command.DMA_MAP, wire.DmaMap(32, 3, 0, 0, 32 * PAGE).pack(), (guest.fd,))  # pipelined
            client.send(Command.DMA_MAP, wire.DmaMap(32, 1, 0, 1 << 32, PAGE).pack())
            info = await client.device_info()
            regions = [await client.region_info(index) for index in (0, 1, 2, 3, 4, 5, 7)]
            with pytest.raises(Refused):
                await client.irq_info(3)
            config = await client.region_read(7, 0, 4096)
            await _size_rom(client)
            msix = await client.irq_info(2)
            command = await client.region_read(7, 4, 2)
            await client.region_write(7, 4, command)
            await client.reset()

        assert (info.flags, info.num_regions, info.num_irqs) == (3, 9, 5)
        assert [(region.nbytes, region.flags) for region in regions] == [
            (PAGE, 3), (0, 0), (1 << 16, 3), (0, 0), (0, 0), (0, 0), (4096, 3),
        ]  # fmt: skip
        assert config == bytes(scene.function.config)
        assert (msix.flags, msix.count) == (1, 4)
        assert [region.gpa for region in scene.function.memory.regions()] == [0, 1 << 32]
        assert scene.function.calls == ["memory", "memory", "reset"]


async def _size_rom(client: VfioClient) -> None:
    """What QEMU does to the ROM register at realize."""
    original = await client.region_read(7, 0x30, 4)
    await client.region_write(7, 0x30, (0xFFFFF800).to_bytes(4, "little"))
    await client.region_read(7, 0x30, 4)
    await client.region_write(7, 0x30, original)


async def test_absent_regions_have_no_size_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path, FakeFunction(bars=(Bar(4, PAGE),))) as scene:
        client = await scene.negotiated()
        sizes = [(await client.region_info(index)).nbytes for index in range(9)]
        with pytest.raises(Refused) as refusal:
            await client.region_info(9)

    assert sizes == [0, 0, 0, 0, PAGE, 0, 0, 4096, 0]
    assert refusal.value.errno == errno.EINVAL


async def test_only_msix_has_vectors_and_error_and_request_interrupts_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path, FakeFunction(msix_vectors=7)) as scene:
        client = await scene.negotiated()
        counts = [(await client.irq_info(index)).count for index in range(3)]
        for index in (3, 4, 5, 0xFFFFFFFF):
            with pytest.raises(Refused) as refusal:
                await client.irq_info(index)
            assert refusal.value.errno == errno.EINVAL

    assert counts == [0, 0, 7]


async def test_no_region_has_io_fds(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        answer = await client.request(Command.DEVICE_GET_REGION_IO_FDS, wire.RegionIoFds(16, 0, 0, 0).pack())

    assert wire.RegionIoFds.parse(answer) == wire.RegionIoFds(16, 0, 0, 0)


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DEVICE_GET_INFO, wire.DeviceInfo(15, 0, 0, 0).pack()),
        (Command.DEVICE_GET_REGION_INFO, wire.RegionInfo(31, 0, 0, 0, 0, 0).pack()),
        (Command.DEVICE_GET_IRQ_INFO, wire.IrqInfo(15, 0, 2, 0).pack()),
        (Command.DEVICE_GET_INFO, b""),
        (Command.DMA_MAP, bytes(31)),
    ],
)
async def test_a_request_too_small_for_its_answer_is_refused(tmp_path: Path, command: int, payload: bytes) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with pytest.raises(Refused) as refusal:
            await client.request(command, payload)

    assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("command", "payload", "code"),
    [
        (14, b"", errno.ENOSYS),
        (99, bytes(64), errno.ENOSYS),
        (Command.DMA_READ, bytes(16), errno.ENOSYS),  # ours to send, not the client's
        (Command.DEVICE_FEATURE, wire.DeviceFeature(8, 1 << 18 | 2).pack(), errno.ENOTTY),
        (Command.MIG_DATA_READ, wire.MigrationData(8, 0).pack(), errno.ENOTSUP),
        (Command.MIG_DATA_WRITE, wire.MigrationData(8, 0).pack(), errno.ENOTSUP),
    ],
)
async def test_what_we_do_not_do_is_refused_and_the_stream_goes_on(
    tmp_path: Path, command: int, payload: bytes, code: int
) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with pytest.raises(Refused) as refusal:
            await client.request(command, payload)

        assert refusal.value.errno == code
        assert (await client.device_info()).num_irqs == 5
