"""DMA_READ and DMA_WRITE to the client, in the layouts of old and new QEMUs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_client import QEMU_CAPABILITIES, VfioClient
from tests.support.vfio_scene import served, until
from vdev.errors import DmaError
from vdev.transports.vfio_dma import MAX_DMA_NBYTES, MAX_IN_FLIGHT, DmaMessages
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command, DmaLayout

every_fd_is_closed = vfio_scene.every_fd_is_closed

DOORBELL = 0xFEE0_0000

both_layouts = pytest.mark.parametrize("layout", list(DmaLayout), ids=lambda layout: layout.name)


@asynccontextmanager
async def connected(
    directory: Path, layout: DmaLayout = DmaLayout.SPECIFIED, **capabilities: int
) -> AsyncIterator[tuple[VfioClient, DmaMessages]]:
    """A negotiated client of that layout, and the server's end for DMA messages."""
    async with served(directory) as scene:
        client = await scene.connect()
        client.dma.layout = layout
        await client.negotiate({**QEMU_CAPABILITIES, **capabilities})
        assert scene.server.connection is not None
        yield client, scene.server.connection.dma


@both_layouts
async def test_the_probe_finds_the_layout_without_touching_memory(tmp_path: Path, layout: DmaLayout) -> None:
    async with connected(tmp_path, layout) as (client, dma):
        client.dma.bus_master = False  # a probe must work before the guest enables bus mastering
        found = await dma.probe()

        assert found is layout
        assert client.dma.seen == [(Command.DMA_WRITE, 0, 0)]


@both_layouts
async def test_what_is_written_reads_back(tmp_path: Path, layout: DmaLayout) -> None:
    async with connected(tmp_path, layout) as (client, dma):
        await dma.write(0x1003, b"through QEMU")
        found = await dma.read(0x1000, 16)

        assert found == b"\0\0\0through QEMU\0"
        assert client.dma.memory[0x1003:0x100F] == b"through QEMU"
        assert dma.in_flight == 0


@both_layouts
async def test_long_transfers_are_cut_to_what_qemu_can_send(tmp_path: Path, layout: DmaLayout) -> None:
    data = bytes(range(256)) * 600  # 150 KiB
    async with connected(tmp_path, layout) as (client, dma):
        await dma.write(0x10, data)
        found = await dma.read(0x10, len(data))

        assert found == data
        assert max(count for _, _, count in client.dma.seen) == MAX_DMA_NBYTES
        assert len(client.dma.seen) == 1 + 3 + 3


async def test_a_smaller_limit_of_the_client_is_kept(tmp_path: Path) -> None:
    async with connected(tmp_path, max_data_xfer_size=4096) as (client, dma):
        await dma.read(0, 10000)

        assert [count for _, _, count in client.dma.seen[1:]] == [4096, 4096, 1808]


async def test_a_refusal_by_qemu_names_its_reason(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, dma):
        client.dma.bus_master = False
        with pytest.raises(DmaError) as refusal:
            await dma.read(0x1000, 4)

        assert refusal.value.reason == "unmapped-or-bus-master-off"
        assert refusal.value.iova == 0x1000


async def test_a_client_without_dma_messages_is_reported(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, dma):
        client.dma.mute = True
        reading = asyncio.ensure_future(dma.read(0, 4))
        await until(lambda: dma.in_flight == 1)
        client.send_raw(wire.error_reply(wire.Header(1, Command.DMA_WRITE, 32, 0, 0), 38))
        with pytest.raises(DmaError) as refusal:
            await reading

        assert refusal.value.reason == "unsupported"


async def test_an_answer_that_does_not_come_is_a_timeout_and_its_late_arrival_is_dropped(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, dma):
        await dma.probe()
        dma._timeout_s = 0.05
        client.dma.mute = True
        with pytest.raises(DmaError) as refusal:
            await dma.read(0, 4)
        assert refusal.value.reason == "timeout"
        assert dma.in_flight == 1  # QEMU may still carry it out

        late = wire.Header(2, Command.DMA_READ, 32, 0, 0)
        client.send_raw(wire.reply(late, wire.dma_payload(DmaLayout.SPECIFIED, 0, 4, b"late")))
        await client.device_info()

        assert dma.in_flight == 0


async def test_a_reset_fails_what_is_under_way_and_sends_nothing_more_for_it(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, dma):
        await dma.probe()
        client.dma.mute = True
        reading = [asyncio.ensure_future(dma.read(0x1000 * n, 4)) for n in range(MAX_IN_FLIGHT + 4)]
        await until(lambda: dma.in_flight == MAX_IN_FLIGHT)
        client.dma.mute = False

        await client.reset()
        results = await asyncio.gather(*reading, return_exceptions=True)

        assert [result.reason for result in results if isinstance(result, DmaError)] == ["reset"] * len(reading)
        assert dma.in_flight == MAX_IN_FLIGHT  # those QEMU has already
        assert len(client.dma.seen) == 1  # the probe; what was waiting for its turn was never sent
        assert await dma.read(0, 4) == bytes(4)


@pytest.mark.parametrize("where", ["remembered", "behind-the-probe"])
async def test_an_interrupt_that_was_voided_is_not_sent(tmp_path: Path, where: str) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        connection = scene.server.connection
        assert connection is not None
        if where == "remembered":
            connection.hold_interrupts(True)
        client.dma.mute = where != "remembered"
        scene.function.raise_message(0, DOORBELL, 1)
        await until(lambda: connection.dma.in_flight == client.dma.mute)

        scene.function.void_messages()
        client.dma.mute = False
        connection.hold_interrupts(False)
        scene.function.raise_message(1, DOORBELL + 4, 2)
        await until(lambda: (Command.DMA_WRITE, DOORBELL + 4, 4) in client.dma.seen)

        assert [address for _, address, nbytes in client.dma.seen if nbytes] == [DOORBELL + 4]


async def test_the_end_of_the_connection_fails_what_is_under_way(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, dma):
        client.dma.mute = True
        reading = asyncio.ensure_future(dma.read(0, 4))
        await until(lambda: dma.in_flight == 1)
        client.close()
        with pytest.raises(DmaError) as cut_off:
            await reading
        with pytest.raises(DmaError) as afterwards:
            await dma.read(0, 4)

    assert (cut_off.value.reason, afterwards.value.reason) == ("disconnected", "disconnected")


async def test_register_accesses_are_answered_while_a_dma_message_waits(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, dma):
        await dma.probe()
        client.dma.mute = True
        reading = asyncio.ensure_future(dma.read(0, 4))
        await until(lambda: dma.in_flight == 1)

        assert await client.region_read(0, 0, 4) == bytes(4)
        reading.cancel()


@pytest.mark.parametrize("payload", [bytes(16), bytes(16) + b"abc", b""])
async def test_a_reply_without_all_its_data_is_refused(tmp_path: Path, payload: bytes) -> None:
    async with connected(tmp_path) as (client, dma):
        await dma.probe()
        client.dma.mute = True
        reading = asyncio.ensure_future(dma.read(0, 4))
        await until(lambda: dma.in_flight == 1)
        client.send_raw(wire.reply(wire.Header(2, Command.DMA_READ, 32, 0, 0), payload))
        with pytest.raises(DmaError) as refusal:
            await reading

        assert refusal.value.reason == "bad-reply"


async def test_a_reply_nobody_asked_for_is_dropped(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, _):
        client.send_raw(wire.message(77, Command.DMA_READ, bytes(64), wire.TYPE_REPLY))

        assert (await client.device_info()).num_irqs == 5
