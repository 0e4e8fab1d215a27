"""Every received fd is owned and closed on every path; guest RAM over the socket."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_client import Refused
from tests.support.vfio_scene import PAGE, FakeFunction, GuestRam, eventfds, open_fds, served, until
from vdev.limited_log import LINES
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed


@pytest.mark.parametrize(
    ("command", "payload", "nfds"),
    [
        (Command.DEVICE_RESET, b"", 1),
        (Command.REGION_READ, wire.RegionAccess(0, 0, 4).pack(), 1),
        (Command.DMA_MAP, wire.DmaMap(32, 3, 0, 0, PAGE).pack(), 2),
        (Command.DMA_UNMAP, wire.DmaUnmap(24, 2, 0, 0).pack(), 1),
        (Command.DEVICE_SET_IRQS, wire.SetIrqs(20, 0x24, 2, 0, 17).pack(), 17),
        (Command.DEVICE_SET_IRQS, wire.SetIrqs(20, 0x24, 2, 0, 16).pack(), 40),
        (Command.VERSION, wire.Version(0, 0).pack(), 1),
        (99, b"", 3),
    ],
)
async def test_fds_on_the_wrong_message_or_too_many_are_closed_and_refused(
    tmp_path: Path, command: int, payload: bytes, nfds: int
) -> None:
    async with served(tmp_path, FakeFunction(msix_vectors=64)) as scene:
        client = await scene.negotiated()
        with eventfds(nfds) as fds:
            before = open_fds()
            with pytest.raises(Refused) as refusal:
                await client.request(command, payload, fds)

            assert refusal.value.errno in (errno.EINVAL, errno.ENOSYS)
            assert open_fds() == before
            assert scene.function.calls == []


async def test_fds_with_a_posted_write_or_a_reply_are_closed(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with eventfds(2) as fds:
            before = open_fds()
            client.send(Command.REGION_WRITE, wire.RegionAccess(0, 0, 1).pack() + b"x", fds, wire.NO_REPLY)
            client.send(Command.DMA_READ, b"", fds, wire.TYPE_REPLY)
            await client.device_info()

            assert open_fds() == before


async def test_fds_spread_over_one_message_are_counted_together(tmp_path: Path) -> None:
    async with served(tmp_path, FakeFunction(msix_vectors=32)) as scene:
        client = await scene.negotiated()
        with eventfds(16) as fds:
            before = open_fds()
            raw = wire.message(500, Command.DEVICE_SET_IRQS, wire.SetIrqs(20, 0x24, 2, 0, 16).pack(), wire.NO_REPLY)
            client.send_raw(raw[:16], fds)
            client.send_raw(raw[16:], fds)
            await client.device_info()

            assert open_fds() == before
            assert scene.server.describe()["connection"]["refused"] == 1


async def test_everything_received_is_closed_when_the_connection_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        before = len(open_fds())
        with GuestRam(4 * PAGE) as guest, eventfds(4) as fds:
            for index in range(4):
                await client.dma_map(index * PAGE, PAGE, guest.fd, offset=index * PAGE)
            await client.set_irqs(0x24, 0, 4, fds)
        assert len(open_fds()) == before + 5  # one mapping, four eventfds
        client.close()
        await until(lambda: scene.server.connection is None)

        assert len(open_fds()) == before - 2


# Memory over the socket


async def test_dma_maps_fill_the_functions_table_and_unmaps_empty_it(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with GuestRam(4 * PAGE) as guest:
            assert guest.map is not None
            await client.dma_map(0x10000, 2 * PAGE, guest.fd, offset=PAGE)
            guest.map[PAGE : PAGE + 4] = b"DMA!"
            found = scene.function.memory.read(0x10000, 4)
            answer = await client.dma_unmap(0x10000, 2 * PAGE)

        assert found == b"DMA!"
        assert wire.DmaUnmap.parse(answer) == wire.DmaUnmap(24, 0, 0x10000, 2 * PAGE)
        assert scene.function.calls == ["memory", "memory"]
        assert len(scene.function.memory) == 0


async def test_unshared_ram_never_makes_a_dma_map_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with GuestRam(PAGE, share=False) as guest:
            await client.dma_map(0, PAGE, guest.fd)

        assert "share=on" in caplog.text
        described = scene.server.describe()["connection"]
        assert (described["dma_able_nbytes"], described["unreachable_nbytes"]) == (0, PAGE)


async def test_refusals_are_counted_but_cannot_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with caplog.at_level(logging.WARNING):
            for _ in range(100):
                client.send(99, b"", flags=wire.NO_REPLY)
            await client.device_info()

        assert scene.server.describe()["connection"]["refused"] == 100
        assert len(caplog.records) == LINES
        assert f"pid {os.getpid()}: refused 99 (errno 38)" in caplog.messages[0]


async def test_what_every_client_asks_and_is_refused_does_not_show_as_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with caplog.at_level(logging.INFO), pytest.raises(Refused):
            await client.irq_info(3)

        assert "refused" not in caplog.text
