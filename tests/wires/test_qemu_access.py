"""Accesses, interrupts, resets and the end of a connection, as a running QEMU makes them of what a guest does."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_scene import until
from tests.wires.qemu_lab import Lab, Seen, endpoint_lab
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed

GIVE_UP_MS = 1000  # x-msg-timeout; less, and a busy host makes QEMU give up over a reply that is not late
ALL_ONES = 0xFFFF_FFFF
MSIX_BAR = 4
MSI_AT = 0x10_0000  # of guest RAM, where the test can look for the message
RESET_PORT = "outb 0xcf9 0x6"  # ICH9's reset control


def _accesses(scene: Lab, since: int) -> list[tuple[str, int, int, int]]:
    """Region accesses since then: command, region, offset, count."""
    return [
        (wire.COMMAND_NAMES[m.command], access.region, access.offset, access.count)
        for m in scene.vfio[since:]
        if m.command in (Command.REGION_READ, Command.REGION_WRITE)
        for access in [wire.RegionAccess.parse(m.payload)]
    ]


async def test_writes_to_memory_are_posted_and_all_else_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        at = await scene.qtest.place_bar(0)
        since = len(scene.vfio)
        await scene.qtest.write(at + 0x20, 4, 1)
        await scene.qtest.read(at, 4)
        await scene.qtest.config_write(4, 2, 2)
        await scene.qtest.config_read(4, 2)
        said = scene.vfio[since:]

    assert [m.flags for m in said] == [wire.NO_REPLY, 0, 0, 0]


async def test_no_write_is_posted_where_the_machine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch, **{"x-no-posted-writes": True}) as scene:
        at = await scene.qtest.place_bar(0)
        await scene.qtest.write(at + 0x20, 4, 1)

        assert scene.vfio[-1].flags == 0


@pytest.mark.parametrize("nbytes", [1, 2, 4, 8])
async def test_an_access_to_memory_is_one_message_of_its_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        at = await scene.qtest.place_bar(0)
        since = len(scene.vfio)
        await scene.qtest.read(at + 8, nbytes)

        assert _accesses(scene, since) == [("REGION_READ", 0, 8, nbytes)]


async def test_of_the_configuration_qemu_keeps_bars_and_msix_and_asks_us_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        msix = await scene.qtest.capability(0x11)
        since = len(scene.vfio)
        for offset in (0x10, 0x14, msix):
            await scene.qtest.config_read(offset, 4)
        await scene.qtest.config_read(0x08, 4)
        await scene.qtest.config_read(0x04, 2)

        assert _accesses(scene, since) == [("REGION_READ", 7, 8, 4), ("REGION_READ", 7, 4, 2)]


async def test_every_write_to_the_configuration_is_forwarded_those_qemu_keeps_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        msix, pcie = await scene.qtest.capability(0x11), await scene.qtest.capability(0x10)
        since = len(scene.vfio)
        for offset in (0x10, msix + 2, pcie + 8):
            await scene.qtest.config_write(offset, 2, 0)

        writes = [access for access in _accesses(scene, since) if access[0] == "REGION_WRITE"]
        assert [offset for _, _, offset, _ in writes] == [0x10, msix + 2, pcie + 8]


async def test_on_the_root_bus_an_endpoint_becomes_an_integrated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        flags = await scene.qtest.config_read(await scene.qtest.capability(0x10) + 2, 2)

    assert flags >> 4 & 0xF == 9


# Interrupts


async def _msix(scene: Lab) -> tuple[int, int, int]:
    """Enable MSI-X with every vector masked; its capability, and where table and pending bits are."""
    msix = await scene.qtest.capability(0x11)
    table, pba = [await scene.qtest.config_read(msix + offset, 4) for offset in (4, 8)]
    assert (table & 7, pba & 7) == (MSIX_BAR, MSIX_BAR)
    at = await scene.qtest.place_bar(MSIX_BAR, bus_master=True)
    await scene.qtest.config_write(msix + 2, 2, 0x8000)
    return msix, at + table - MSIX_BAR, at + pba - MSIX_BAR


async def _unmask(scene: Lab, table: int, data: int) -> None:
    for offset, value in ((0, MSI_AT), (4, 0), (8, data), (12, 0)):
        await scene.qtest.write(table + offset, 4, value)


def _set_irqs(scene: Lab, since: int = 0) -> list[tuple[int, int, int, int, int]]:
    """SET_IRQS since then: flags, index, start, count, fds."""
    found = [
        (wire.SetIrqs.parse(m.payload), m.nfds) for m in scene.vfio[since:] if m.command == Command.DEVICE_SET_IRQS
    ]
    return [(irqs.flags, irqs.index, irqs.start, irqs.count, nfds) for irqs, nfds in found]


async def test_msix_is_enabled_first_without_and_then_with_eventfds_and_disabled_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        msix, table, _ = await _msix(scene)
        enabled = _set_irqs(scene)
        await _unmask(scene, table, 0x1234)
        unmasked = _set_irqs(scene)[len(enabled) :]
        await scene.qtest.config_write(msix + 2, 2, 0)
        disabled = _set_irqs(scene)[len(enabled) + len(unmasked) :]

    assert enabled == [(0x24, 2, 0, 1, 0)]
    assert [(flags, index, start, nfds == count) for flags, index, start, count, nfds in unmasked] == [
        (0x24, 2, 0, True)
    ]
    assert disabled == [(0x21, 2, 0, 0, 0)]


async def test_the_argument_size_of_set_irqs_counts_no_eventfds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        _, table, _ = await _msix(scene)
        await _unmask(scene, table, 1)
        sizes = {(m.payload[0], m.nbytes) for m in scene.vfio if m.command == Command.DEVICE_SET_IRQS}

    assert sizes == {(20, 36)}


async def test_the_vector_table_stays_in_qemu_and_reads_of_pending_bits_come_to_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        _, table, pba = await _msix(scene)
        since = len(scene.vfio)
        await scene.qtest.write(table + 8, 4, 7)
        kept = await scene.qtest.read(table + 8, 4)
        await scene.qtest.write(pba, 8, ALL_ONES)
        await scene.qtest.read(pba, 4)

        assert kept == 7
        assert [access[:2] for access in _accesses(scene, since)] == [("REGION_READ", MSIX_BAR)]


async def test_an_eventfd_we_signal_becomes_the_message_of_the_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        _, table, _ = await _msix(scene)
        await _unmask(scene, table, 0xBEEF)
        scene.endpoint.vectors.fire(0)
        await _arrives(scene, 0xBEEF)


async def test_a_vector_that_fires_while_qemu_has_it_masked_comes_when_it_is_unmasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        _, table, _ = await _msix(scene)
        scene.endpoint.vectors.fire(0)
        before = await scene.qtest.ram(MSI_AT, 4)
        await _unmask(scene, table, 0xBEEF)
        await _arrives(scene, 0xBEEF)

        assert before == bytes(4)


async def _arrives(scene: Lab, data: int) -> None:
    async with asyncio.timeout(5):
        while await scene.qtest.ram(MSI_AT, 4) != data.to_bytes(4, "little"):  # noqa: ASYNC110 - QEMU has no event for it
            await asyncio.sleep(0.005)


# Reset and the end


async def test_a_machine_reset_closes_the_command_register_first_and_keeps_the_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        await scene.qtest.place_bar(0, bus_master=True)
        mapped = scene.endpoint.describe()["dma_able_nbytes"]
        since = len(scene.vfio)
        await scene.qtest.ask(RESET_PORT)
        await until(lambda: "DEVICE_RESET" in scene.commands(since))
        said = scene.vfio[since:]
        order = scene.commands(since)

        assert [m.payload for m in said[: order.index("DEVICE_RESET")] if m.command == Command.REGION_WRITE] == [
            wire.RegionAccess(4, 7, 2).pack() + bytes(2)
        ]
        assert "DMA_UNMAP" not in order[: order.index("DEVICE_RESET")]
        await until(lambda: scene.endpoint.describe()["dma_able_nbytes"] == mapped)


async def test_the_end_of_qemu_comes_without_a_goodbye(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        since = len(scene.vfio)
        await scene.stop()

        assert scene.commands(since) == []
        assert len(scene.app.vm.ram) == 0


async def test_without_us_the_guest_reads_all_ones_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        at = await scene.qtest.place_bar(0)
        scene.endpoint.end()
        await until(lambda: scene.app.servers["accel0"].connection is None)
        found = await scene.qtest.read(at, 4), await scene.qtest.config_read(0, 4)

        assert found == (ALL_ONES, ALL_ONES)
        assert scene.process.returncode is None


async def test_without_us_qemu_aborts_at_the_next_change_of_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        scene.endpoint.end()
        await until(lambda: scene.app.servers["accel0"].connection is None)
        scene.qtest._writer.write(b"outl 0xcf8 0x80000090\noutl 0xcfc 0x33333333\n")  # PAM: RAM where ROM was
        await scene.ended()

        assert scene.process.returncode == -6
        assert "DMA mapping failed" in scene.stderr


@pytest.mark.parametrize("bare", [True, False])
async def test_qemu_survives_a_late_reply_only_if_it_has_no_payload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch, **{"x-msg-timeout": GIVE_UP_MS}) as scene:
        at = await scene.qtest.place_bar(0)
        connection = scene.endpoint

        def late(seen: Seen, answer: bytes | None) -> bytes | None:
            assert answer is not None
            reply = wire.late_reply(answer) if bare else answer
            asyncio.get_running_loop().call_later(1.5 * GIVE_UP_MS / 1000, connection._stream.send, reply)
            return None

        scene.tamper = late
        given_up = await scene.qtest.read(at, 4)
        scene.tamper = lambda seen, answer: answer
        await asyncio.sleep(0.8 * GIVE_UP_MS / 1000)  # until the late reply is there
        found = await scene.qtest.read(at, 4)

    assert given_up == ALL_ONES
    assert (found != ALL_ONES) == bare


async def test_qemu_gives_up_over_an_fd_in_a_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch, **{"x-msg-timeout": GIVE_UP_MS}) as scene:
        at = await scene.qtest.place_bar(0)
        stream = scene.endpoint._stream

        def with_fd(seen: Seen, answer: bytes | None) -> bytes | None:
            assert answer is not None
            with vfio_scene.eventfds(1) as fds:
                socket.send_fds(stream._sock, [answer], fds)
            return None

        scene.tamper = with_fd
        found = await scene.qtest.read(at, 4)

        assert found == ALL_ONES
