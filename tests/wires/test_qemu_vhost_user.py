"""What QEMU's generic vhost-user device says when it is made, started, stopped, reset and asked for configuration."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_scene import until
from tests.wires.qemu_lab import PLAIN_RAM, PRIVATE_RAM, RAM_MIB, Lab, Seen, lab, unit_lab, vhost_device
from vdev.functions.vhost import VhostCarrier
from vdev.functions.vhost_rings import State
from vdev.wire import vhost_user as wire
from vdev.wire.vhost_user import Command, ProtocolFeature

every_fd_is_closed = vfio_scene.every_fd_is_closed

RINGS_AT = 0x10_0000  # zeroed guest RAM: two empty rings
CONFIG_NBYTES = 64
_ACKNOWLEDGE, _DRIVER, _FEATURES_OK, _DRIVER_OK = 1, 2, 8, 4


class Driver:
    """The steps of a virtio driver, by qtest, on QEMU's modern PCI transport."""

    def __init__(self, scene: Lab, common: int, device: int, isr: int) -> None:
        self._scene = scene
        self.common, self.device, self.isr = common, device, isr

    @classmethod
    async def find(cls, scene: Lab) -> Driver:
        """Walk the capabilities to the three structures, and give their BAR an address."""
        qtest, found, bar = scene.qtest, {}, 0
        at = await qtest.config_read(0x34, 1)
        while at:
            if await qtest.config_read(at, 1) == 9:
                kind, bar = await qtest.config_read(at + 3, 1), await qtest.config_read(at + 4, 1)
                found[kind] = (bar, await qtest.config_read(at + 8, 4))
            at = await qtest.config_read(at + 1, 1)
        bar = found[1][0]
        base = await qtest.place_bar(bar, bus_master=True)
        assert {found[kind][0] for kind in (1, 3, 4)} == {bar}
        return cls(scene, base + found[1][1], base + found[4][1], base + found[3][1])

    async def features(self) -> int:
        """What QEMU shows its guest."""
        qtest, value = self._scene.qtest, 0
        for select in (0, 1):
            await qtest.write(self.common, 4, select)
            value |= await qtest.read(self.common + 4, 4) << 32 * select
        return value

    async def set_status(self, status: int) -> None:
        await self._scene.qtest.write(self.common + 20, 1, status)

    async def start(self) -> None:
        """From reset to DRIVER_OK."""
        qtest, features = self._scene.qtest, await self.features()
        for status in (0, _ACKNOWLEDGE, _ACKNOWLEDGE | _DRIVER):
            await self.set_status(status)
        for select in (0, 1):
            await qtest.write(self.common + 8, 4, select)
            await qtest.write(self.common + 12, 4, features >> 32 * select & 0xFFFF_FFFF)
        await self.set_status(_ACKNOWLEDGE | _DRIVER | _FEATURES_OK)
        for index in range(2):
            await qtest.write(self.common + 22, 2, index)
            for offset, part in ((32, 0), (40, 0x2000), (48, 0x4000)):
                gpa = RINGS_AT + index * 0x8000 + part
                await qtest.write(self.common + offset, 4, gpa)
                await qtest.write(self.common + offset + 4, 4, 0)
            await qtest.write(self.common + 28, 2, 1)
        await self.set_status(_ACKNOWLEDGE | _DRIVER | _FEATURES_OK | _DRIVER_OK)


def _carrier(scene: Lab) -> VhostCarrier:
    carrier = scene.app.machine.units["iommu0"].function
    assert isinstance(carrier, VhostCarrier)
    return carrier


def _said(scene: Lab, since: int = 0) -> list[str]:
    return [wire.COMMAND_NAMES[seen.command] for seen in scene.vhost[since:]]


async def test_the_start_up_dialogue_is_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        said, fds = _said(scene), [seen.nfds for seen in scene.vhost]

    assert said == [
        "GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS",
        "SET_BACKEND_REQ_FD", "SET_OWNER", "GET_FEATURES",
        "SET_VRING_CALL", "SET_VRING_ERR", "SET_VRING_CALL", "SET_VRING_ERR",
    ]  # fmt: skip
    assert fds == [0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1]


async def test_what_the_guest_sees_is_a_virtio_device_of_qemus_with_one_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        identity = await scene.qtest.config_read(0, 4)
        msix = await scene.qtest.capability(0x11)
        table_size = await scene.qtest.config_read(msix + 2, 2) & 0x7FF

    assert identity == 0x1057_1AF4
    assert table_size == 0  # one less than there are


async def test_without_config_among_the_protocol_features_there_is_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(seen: Seen, answer: bytes | None) -> bytes | None:
        if seen.command != Command.GET_PROTOCOL_FEATURES:
            return answer
        return wire.message(seen.command, wire.U64(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK).pack(), wire.REPLY)

    async with lab(tmp_path, monkeypatch, "vhost-user") as scene:
        scene.tamper = without

        assert not await scene.start(vhost_device(scene.app.servers["iommu0"].path))
        assert scene.stderr


async def test_qemu_takes_every_protocol_feature_we_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        taken = next(m for m in scene.vhost if m.command == Command.SET_PROTOCOL_FEATURES)

    value = wire.U64.parse(taken.payload).value
    assert ProtocolFeature(value) == (
        ProtocolFeature.MQ
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.CONFIG
        | ProtocolFeature.RESET_DEVICE
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
    )


async def test_the_guest_sees_the_features_we_offer_less_the_protocol_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        driver = await Driver.find(scene)

        assert await driver.features() == _carrier(scene).offered_features & ~wire.F_PROTOCOL_FEATURES


async def test_the_start_of_a_driver_is_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        driver = await Driver.find(scene)
        since = len(scene.vhost)
        await driver.start()
        await until(lambda: _carrier(scene).state is State.RUNNING)
        said = [name for name in _said(scene, since) if name != "GET_CONFIG"]
        features = next(m for m in scene.vhost[since:] if m.command == Command.SET_FEATURES)

    ring = ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_CALL"]
    assert [name for name in said if name != "ADD_MEM_REG"][:13] == [
        "SET_FEATURES", *ring, *ring, "SET_VRING_ENABLE", "SET_VRING_ENABLE",
    ]  # fmt: skip
    assert said.index("ADD_MEM_REG") < said.index("SET_VRING_NUM")
    assert wire.U64.parse(features.payload).value & wire.F_PROTOCOL_FEATURES


async def test_memory_comes_region_by_region_each_with_its_fd_and_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        await (await Driver.find(scene)).start()
        await until(lambda: _carrier(scene).state is State.RUNNING)
        added = [m for m in scene.vhost if m.command == Command.ADD_MEM_REG]

    assert {(m.nfds, m.nbytes, m.flags) for m in added} == {(1, 52, wire.VERSION | wire.NEED_REPLY)}
    assert sum(wire.SingleRegion.parse(m.payload).nbytes for m in added) <= RAM_MIB << 20


@pytest.mark.parametrize("ram", [PLAIN_RAM, PRIVATE_RAM], ids=["plain", "private"])
async def test_qemu_keeps_ram_to_itself_that_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ram: tuple[str, ...]
) -> None:
    async with lab(tmp_path, monkeypatch, "vhost-user") as scene:
        await scene.start(vhost_device(scene.app.servers["iommu0"].path), ram)
        await (await Driver.find(scene)).start()

        assert "ADD_MEM_REG" not in _said(scene)
        assert _carrier(scene).state is not State.RUNNING or _carrier(scene).broken


async def test_a_virtio_reset_is_two_disabled_rings_and_two_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        driver = await Driver.find(scene)
        await driver.start()
        await until(lambda: _carrier(scene).state is State.RUNNING)
        since = len(scene.vhost)
        await driver.set_status(0)
        await until(lambda: _said(scene, since).count("GET_VRING_BASE") == 2)
        said = set(_said(scene, since))

    assert said >= {"SET_VRING_ENABLE", "GET_VRING_BASE"}
    assert not said & {"RESET_DEVICE", "SET_STATUS", "RESET_OWNER", "SET_FEATURES"}


async def test_the_status_of_a_driver_before_driver_ok_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        driver = await Driver.find(scene)
        since = len(scene.vhost)
        for status in (0, _ACKNOWLEDGE, _ACKNOWLEDGE | _DRIVER, 0x80):
            await driver.set_status(status)

        assert _said(scene, since) == []


@pytest.mark.parametrize("nbytes", [1, 2, 4])
async def test_every_access_to_the_configuration_fetches_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        driver = await Driver.find(scene)
        since = len(scene.vhost)
        for _ in range(3):
            await scene.qtest.read(driver.device, nbytes)
        asked = scene.vhost[since:]

    assert [wire.ConfigAccess.parse(m.payload) for m in asked] == [wire.ConfigAccess(0, CONFIG_NBYTES, 0)] * 3
    assert {m.nbytes for m in asked} == {wire.HEADER_NBYTES + 12 + CONFIG_NBYTES}


async def test_a_write_to_the_configuration_is_sent_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        driver = await Driver.find(scene)
        await scene.qtest.write(driver.device + 36, 1, 0)
        sent = [m for m in scene.vhost if m.command == Command.SET_CONFIG]

    assert [wire.ConfigAccess.parse(m.payload) for m in sent] == [wire.ConfigAccess(0, CONFIG_NBYTES, 0)]
    assert len(sent[0].payload) == 12 + CONFIG_NBYTES


async def test_a_configuration_change_of_ours_interrupts_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        driver = await Driver.find(scene)
        await driver.start()
        await until(lambda: _carrier(scene).state is State.RUNNING)
        before = await scene.qtest.read(driver.isr, 1)
        _carrier(scene).config_changed()
        async with asyncio.timeout(5):
            while not await scene.qtest.read(driver.isr, 1) & 2:  # noqa: ASYNC110 - QEMU has no event for it
                await asyncio.sleep(0.005)

        assert not before & 2


async def test_qemu_gives_up_over_a_back_end_that_leaves_before_a_driver_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit_lab(tmp_path, monkeypatch) as scene:
        connection = scene.app.servers["iommu0"].connection
        assert connection is not None
        connection.end()
        await scene.ended()

        assert scene.process.returncode == -6
