"""DMA messages byte by byte, as they leave us in either layout, and what their errors are called."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.wires.raw import Wire, answer, negotiated, refusal, request, words
from vdev.errors import DmaError
from vdev.transports.vfio_dma import DmaMessages

every_fd_is_closed = vfio_scene.every_fd_is_closed

PROBE = request(12, words("QQ", 0, 0), ident=1)


@asynccontextmanager
async def probed(directory: Path, *, old: bool) -> AsyncIterator[tuple[Wire, DmaMessages]]:
    """A client whose answer to the probe says which layout it has, and our end."""
    async with negotiated(directory) as (wire, scene):
        assert scene.server.connection is not None
        dma = scene.server.connection.dma
        probe = asyncio.ensure_future(dma.probe())
        assert await wire.vfio_reply() == PROBE
        wire.send(answer(12, b"" if old else words("QQ", 0, 0), ident=1))
        await probe
        yield wire, dma


async def test_a_specified_read_is_address_and_count_of_eight_bytes_and_data_at_byte_32(tmp_path: Path) -> None:
    async with probed(tmp_path, old=False) as (wire, dma):
        reading = asyncio.ensure_future(dma.read(0x1234, 4))
        asked = await wire.vfio_reply()
        reply = answer(11, words("QQ", 0x1234, 4) + b"data", ident=2)
        wire.send(reply)

        assert asked == request(11, words("QQ", 0x1234, 4), ident=2)
        assert reply[32:] == b"data"
        assert await reading == b"data"


async def test_a_specified_write_is_address_count_and_data_at_byte_32(tmp_path: Path) -> None:
    async with probed(tmp_path, old=False) as (wire, dma):
        writing = asyncio.ensure_future(dma.write(0x1234, b"data"))
        asked = await wire.vfio_reply()
        wire.send(answer(12, words("QQ", 0x1234, 4), ident=2))
        await writing

    assert asked == request(12, words("QQ", 0x1234, 4) + b"data", ident=2)


async def test_an_old_read_is_a_count_of_four_bytes_and_data_at_byte_28(tmp_path: Path) -> None:
    async with probed(tmp_path, old=True) as (wire, dma):
        reading = asyncio.ensure_future(dma.read(0x1234, 4))
        asked = await wire.vfio_reply()
        reply = answer(11, words("QI", 0x1234, 4) + b"data" + bytes(4), ident=2)
        wire.send(reply)

        assert asked == request(11, words("QI", 0x1234, 4) + bytes(4), ident=2)
        assert reply[28:32] == b"data"
        assert await reading == b"data"


async def test_an_old_write_has_data_at_byte_28_and_four_bytes_behind_them(tmp_path: Path) -> None:
    async with probed(tmp_path, old=True) as (wire, dma):
        writing = asyncio.ensure_future(dma.write(0x1234, b"data"))
        asked = await wire.vfio_reply()
        wire.send(answer(12, ident=2))
        await writing

    assert asked == request(12, words("QI", 0x1234, 4) + b"data" + bytes(4), ident=2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EFAULT, "memory-error"),
        (errno.ENODEV, "unmapped-or-bus-master-off"),
        (errno.EPERM, "access-denied"),
        (errno.E2BIG, "too-large"),
        (errno.ENOSYS, "unsupported"),
        (errno.EINVAL, "refused"),
        (0, "refused"),
    ],
)
async def test_every_errno_of_a_client_has_its_reason(tmp_path: Path, code: int, reason: str) -> None:
    async with probed(tmp_path, old=False) as (wire, dma):
        reading = asyncio.ensure_future(dma.read(0x1234, 4))
        await wire.vfio_reply()
        wire.send(refusal(11, code, ident=2))
        with pytest.raises(DmaError) as refused:
            await reading

    assert (refused.value.reason, refused.value.iova) == (reason, 0x1234)
