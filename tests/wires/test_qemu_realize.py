"""What QEMU's vfio-user client says from the connection to the machine's first reset, and what it does not survive."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import vfio_scene
from tests.support.vfio_client import QEMU_CAPABILITIES
from tests.wires.qemu_lab import (
    PLAIN_RAM,
    PRIVATE_RAM,
    RAM_MIB,
    Lab,
    Seen,
    endpoint_lab,
    lab,
    qemu_version,
    vfio_device,
)
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed


def _version_reply(seen: Seen, capabilities: dict[str, Any], minor: int = 0, pad: int = 0) -> bytes:
    """A reply to VERSION with these capabilities, made longer by `pad` blanks."""
    text = json.dumps({"capabilities": capabilities}).encode() + b" " * pad + b"\0"
    return wire.message(seen.ident, seen.command, wire.Version(0, minor).pack() + text, wire.TYPE_REPLY)


async def _realized(scene: Lab, **properties: Any) -> bool:
    """Start QEMU with the endpoint; whether the device came to be."""
    return await scene.start(vfio_device(scene.app.servers["accel0"].path, **properties))


async def test_qemus_version_request_is_the_one_the_reply_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        first = scene.vfio[0]

    assert (first.command, first.flags, first.nfds, first.payload[:4]) == (Command.VERSION, 0, 0, bytes(4))
    assert first.nbytes == wire.MAX_VERSION_REPLY_NBYTES or qemu_version() < (11, 1)
    assert json.loads(first.payload[4:-1]) == {"capabilities": QEMU_CAPABILITIES}
    assert first.payload[-1] == 0


async def test_qemu_maps_memory_then_asks_then_resets_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        said = scene.commands()

    reset = said.index("DEVICE_RESET")
    assert said[:10] == [
        "VERSION", "DMA_MAP", "DMA_MAP", "DEVICE_GET_INFO", *["DEVICE_GET_REGION_INFO"] * 6,
    ]  # fmt: skip
    assert said[10:13] == ["DEVICE_GET_REGION_INFO", "DEVICE_GET_IRQ_INFO", "REGION_READ"]
    assert "DEVICE_GET_IRQ_INFO" in said[13:reset]
    assert set(said[reset + 1 :]) == {"REGION_READ", "REGION_WRITE", "DMA_UNMAP", "DMA_MAP"}


async def test_qemu_asks_for_the_bars_and_the_configuration_and_reads_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        asked = [wire.RegionInfo.parse(m.payload) for m in scene.vfio if m.command == Command.DEVICE_GET_REGION_INFO]
        irqs = [wire.IrqInfo.parse(m.payload).index for m in scene.vfio if m.command == Command.DEVICE_GET_IRQ_INFO]
        reads = [wire.RegionAccess.parse(m.payload) for m in scene.vfio if m.command == Command.REGION_READ]

    assert [info.index for info in asked] == [0, 1, 2, 3, 4, 5, wire.REGION_CONFIG]
    assert {info.argsz for info in asked} == {32}
    assert irqs == [3, wire.IRQ_MSIX]
    assert reads[0] == wire.RegionAccess(0, wire.REGION_CONFIG, 4096)


async def test_qemu_sizes_the_rom_and_must_find_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        rom = [m.payload for m in scene.vfio if m.payload[:8] == (0x30).to_bytes(8, "little")]
        left = await scene.qtest.config_read(0x30, 4)

    assert [data[16:] for data in rom if len(data) > 16] == [b"\0\xf8\xff\xff", bytes(4)]
    assert left == 0


async def test_qemu_numbers_the_requests_of_all_its_functions_from_one_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(tmp_path, monkeypatch) as scene:
        servers = scene.app.servers
        both = vfio_device(servers["accel0"].path) + vfio_device(servers["iommu0"].path, id="vu1", addr="5")
        await scene.start(both)
        idents = [seen.ident for seen in scene.vfio]

    assert sorted(idents) == list(range(len(idents)))
    assert sum(seen.command == Command.VERSION for seen in scene.vfio) == 2


async def test_qemu_never_sends_what_the_table_says_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        at = await scene.qtest.place_bar(0, bus_master=True)
        await scene.qtest.write(at + 0x20, 4, 1)
        await scene.qtest.config_read(0x100, 4)
        said = set(scene.commands())

    assert not said & {"DEVICE_GET_REGION_IO_FDS", "DEVICE_FEATURE", "MIG_DATA_READ", "MIG_DATA_WRITE"}
    assert "REGION_WRITE_MULTI" not in said


async def test_qemu_is_silent_about_error_interrupts_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        said = scene.stderr

    assert said == ""


async def test_qemu_installs_an_eventfd_for_error_interrupts_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offer_err(seen: Seen, answer: bytes | None) -> bytes | None:
        if seen.command == Command.DEVICE_GET_IRQ_INFO and seen.payload[8] == 3:
            info = wire.IrqInfo(16, wire.IRQ_FLAG_EVENTFD, 3, 1).pack()
            return wire.message(seen.ident, seen.command, info, wire.TYPE_REPLY)
        return answer

    async with lab(tmp_path, monkeypatch) as scene:
        scene.tamper = offer_err
        await _realized(scene)
        assigned = [wire.SetIrqs.parse(m.payload).index for m in scene.vfio if m.command == Command.DEVICE_SET_IRQS]

    assert assigned[0] == 3


REFUSED_VERSIONS: dict[str, Callable[[Seen], bytes]] = {
    "a reply longer than the request": lambda seen: _version_reply(seen, {}, pad=200),
    "a later minor version": lambda seen: _version_reply(seen, {}, minor=1),
    "17 fds a message": lambda seen: _version_reply(seen, {"max_msg_fds": 17}),
    "more than 64 MiB a transfer": lambda seen: _version_reply(seen, {"max_data_xfer_size": (64 << 20) + 1}),
    "less than a page a transfer": lambda seen: _version_reply(seen, {"max_data_xfer_size": 2048}),
    "no page size": lambda seen: _version_reply(seen, {"pgsizes": 0}),
    "more maps than 65535": lambda seen: _version_reply(seen, {"max_dma_maps": 65536}),
    "an error": lambda seen: wire.error_reply(wire.Header(seen.ident, seen.command, 0, 0, 0), errno.EINVAL),
    "no NUL at the end": lambda seen: wire.message(seen.ident, 1, bytes(4) + b"{}", wire.TYPE_REPLY),
}


@pytest.mark.parametrize("case", REFUSED_VERSIONS)
async def test_qemu_gives_up_over_a_version_reply_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    async with lab(tmp_path, monkeypatch) as scene:
        scene.tamper = lambda seen, answer: REFUSED_VERSIONS[case](seen) if seen.command == 1 else answer
        realized = await _realized(scene)

        assert not realized
        assert scene.stderr


async def test_qemu_takes_capabilities_it_does_not_know_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(tmp_path, monkeypatch) as scene:
        scene.tamper = lambda seen, answer: _version_reply(seen, {"vdev": 1}) if seen.command == 1 else answer

        assert await _realized(scene)
        assert "spurious" in scene.stderr


@pytest.mark.parametrize(
    "info", [wire.DeviceInfo(16, 1, 9, 5), wire.DeviceInfo(16, 3, 7, 5), wire.DeviceInfo(16, 3, 9, 2)]
)
async def test_qemu_wants_a_pci_device_with_eight_regions_and_three_interrupt_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: wire.DeviceInfo
) -> None:
    def other(seen: Seen, answer: bytes | None) -> bytes | None:
        if seen.command == Command.DEVICE_GET_INFO:
            return wire.message(seen.ident, seen.command, info.pack(), wire.TYPE_REPLY)
        return answer

    async with lab(tmp_path, monkeypatch) as scene:
        scene.tamper = other

        assert not await _realized(scene)


async def test_qemu_realizes_a_device_that_refuses_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seen: Seen, answer: bytes | None) -> bytes | None:
        if seen.command == Command.DMA_MAP:
            return wire.error_reply(wire.Header(seen.ident, seen.command, 0, 0, 0), errno.EINVAL)
        return answer

    async with lab(tmp_path, monkeypatch) as scene:
        scene.tamper = refuse

        assert await _realized(scene)


async def test_qemu_must_find_a_header_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab(tmp_path, monkeypatch) as scene:

        def in_two(seen: Seen, answer: bytes | None) -> bytes | None:
            if seen.command != Command.DEVICE_GET_INFO or answer is None:
                return answer
            stream = scene.endpoint._stream
            stream.send(answer[:8])
            asyncio.get_running_loop().call_later(0.1, stream.send, answer[8:])
            return None

        scene.tamper = in_two

        assert not await _realized(scene, **{"x-msg-timeout": 1000})
        assert "short read" in scene.stderr


async def test_every_map_of_shared_ram_brings_an_fd_and_firmware_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint_lab(tmp_path, monkeypatch) as scene:
        maps = [(wire.DmaMap.parse(m.payload), m.nfds) for m in scene.vfio if m.command == Command.DMA_MAP]

    assert maps[0] == (wire.DmaMap(32, 3, 0, 0, RAM_MIB << 20), 1)
    assert {nfds for request, nfds in maps if request.flags == 1} == {0}
    assert {nfds for request, nfds in maps if request.flags == 3} == {1}
    assert {request.offset for request, nfds in maps if not nfds} == {0}


@pytest.mark.parametrize(("ram", "nfds"), [(PLAIN_RAM, 0), (PRIVATE_RAM, 1)], ids=["plain", "private"])
async def test_ram_that_is_not_shared_is_not_used_and_qemu_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ram: tuple[str, ...], nfds: int
) -> None:
    async with lab(tmp_path, monkeypatch) as scene:
        await scene.start(vfio_device(scene.app.servers["accel0"].path), ram)
        first = next(m for m in scene.vfio if m.command == Command.DMA_MAP)
        described = scene.endpoint.describe()

    assert first.nfds == nfds
    assert described["dma_able_nbytes"] == 0
    assert described["unreachable_nbytes"] >= RAM_MIB << 20
    assert "share=on" in caplog.text
