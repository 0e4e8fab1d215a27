"""DMA messages to a real QEMU: what it carries out, what it refuses, and with which error."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_scene import eventfds
from tests.wires.qemu_lab import PLAIN_RAM, Lab, endpoint_lab, lab, qemu_version, vfio_device
from vdev.errors import DmaError
from vdev.transports.vfio_dma import MAX_DMA_NBYTES
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command, DmaLayout

every_fd_is_closed = vfio_scene.every_fd_is_closed

RAM_AT = 0x10_0000
NOTHING_AT = 0xD000_0000


async def _ask(scene: Lab, command: int, payload: bytes) -> str:
    """The reason QEMU refuses a message of ours with."""
    dma = scene.endpoint.dma
    with pytest.raises(DmaError) as refusal:
        await dma._exchange(command, payload, 0, dma._generation)  # type: ignore[arg-type]
    return refusal.value.reason


async def test_the_probe_learns_the_layout_of_this_qemu_before_bus_mastering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = DmaLayout.SPECIFIED if qemu_version() >= (11, 1) else DmaLayout.SHORT_COUNT
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        assert await scene.endpoint.dma.probe() is expected


@pytest.mark.parametrize("ram", [None, PLAIN_RAM], ids=["shared", "plain"])
async def test_dma_messages_reach_ram_with_and_without_an_fd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ram: tuple[str, ...] | None
) -> None:
    data = bytes(range(256)) * (2 * MAX_DMA_NBYTES // 256) + b"odd"
    async with lab(tmp_path, monkeypatch) as scene:
        await scene.start(vfio_device(scene.app.servers["accel0"].path), *([ram] if ram else []))
        await scene.qtest.place_bar(0, bus_master=True)
        await scene.endpoint.dma.write(RAM_AT + 1, data)
        seen = await scene.qtest.ram(RAM_AT, len(data) + 2)
        found = await scene.endpoint.dma.read(RAM_AT + 1, len(data))

    assert seen == b"\0" + data + b"\0"
    assert found == data


async def test_without_bus_mastering_qemu_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        with pytest.raises(DmaError) as refusal:
            await scene.endpoint.dma.read(RAM_AT, 4)

    assert refusal.value.reason == "unmapped-or-bus-master-off"


@pytest.mark.parametrize("writes", [True, False])
async def test_where_nothing_is_qemu_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        await scene.qtest.place_bar(0, bus_master=True)
        dma = scene.endpoint.dma
        with pytest.raises(DmaError) as refusal:
            await (dma.write(NOTHING_AT, b"four") if writes else dma.read(NOTHING_AT, 4))

    assert refusal.value.reason == "unmapped-or-bus-master-off"


async def test_a_transfer_beyond_the_agreed_size_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        await scene.qtest.place_bar(0, bus_master=True)
        reason = await _ask(scene, Command.DMA_READ, wire.DmaAccess(RAM_AT, (1 << 20) + 1).pack())

    assert reason == "too-large"


async def test_a_message_of_ours_longer_than_agreed_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch, **{"x-msg-timeout": 1000}) as scene:
        at = await scene.qtest.place_bar(0, bus_master=True)
        nbytes = (1 << 20) + 64
        payload = wire.DmaAccess(RAM_AT, nbytes).pack() + bytes(nbytes)
        scene.endpoint._stream.send(wire.message(1, Command.DMA_WRITE, payload))

        assert await scene.qtest.read(at, 4) == 0xFFFF_FFFF


async def test_a_command_qemu_does_not_know_is_answered_and_the_connection_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        reason = await _ask(scene, 99, bytes(16))
        alive = await scene.qtest.config_read(0, 4)

    assert reason == "unsupported"
    assert alive == 0x76641234


async def test_a_request_of_ours_with_an_fd_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        dma, stream = scene.endpoint.dma, scene.endpoint._stream
        await dma.probe()
        with eventfds(1) as fds:
            monkeypatch.setattr(dma, "_send", lambda data: socket.send_fds(stream._sock, [data], fds))
            reason = await _ask(scene, Command.DMA_READ, wire.DmaAccess(RAM_AT, 4).pack())

    assert reason == "refused"


async def test_qemu_echoes_our_numbers_however_many_are_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        await scene.qtest.place_bar(0, bus_master=True)
        dma = scene.endpoint.dma
        for page in range(32):
            await dma.write(RAM_AT + page * 4096, bytes([page]))
        found = await asyncio.gather(*(dma.read(RAM_AT + page * 4096, 1) for page in range(32)))

    assert found == [bytes([page]) for page in range(32)]


async def test_after_a_reset_qemu_lets_no_dma_message_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        await scene.qtest.place_bar(0, bus_master=True)
        await scene.endpoint.dma.write(RAM_AT, b"before")
        await scene.qtest.ask("outb 0xcf9 0x6")
        await vfio_scene.until(lambda: scene.commands().count("DEVICE_RESET") == 2)
        with pytest.raises(DmaError) as refusal:
            await scene.endpoint.dma.write(RAM_AT, b"after!")

    assert refusal.value.reason == "unmapped-or-bus-master-off"
