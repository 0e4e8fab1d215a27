"""Endpoints plugged into a stock guest and unplugged by one command each, a hundred times in a row in the soak."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.booted.conftest import CONFIG as FIRST_LIGHT
from tests.booted.conftest import CONFIGS
from tests.support.hot_plug_guest import Plugged, Refused, plugging
from vdev.config import load_config
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

CONFIG = CONFIGS / "hot-plug.yaml"
SLOT = "0000:02:00.0"
SOAK = os.environ.get("VDEV_TIER") == "soak"
ROUNDS = 100 if SOAK else 5
WARM_UP = 100 if SOAK else 3  # rounds: allocators take what they will need again, the log of events fills
GROWN_KIB = 512 if SOAK else 3 << 10  # of vdev
GROWN_KIB_A_ROUND = 8  # a function that stays costs 60, and the memory of an accelerator 1024 more
SETTLE_S = 10.0
RNG = ["0x1af4", "0x1044"]
ACCELERATOR = ["0x1234", "0x7664"]
HOLE = {"start": 0x10000, "end": 0x1FFFF}


async def _until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; whether it does is the caller's to look at."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while not condition():  # noqa: ASYNC110 - another process has no event for us
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("attach", ATTACHMENTS)
async def test_a_guest_works_with_what_is_plugged_in_and_forgets_what_is_unplugged(attach: Attach) -> None:
    async with plugging(load_config(CONFIG), attach) as machine:
        await _one_after_the_other(machine)
        await _the_configured_one_and_its_successor(machine)
        await _two_at_once(machine)
        await _while_the_vm_is_stopped(machine)


async def test_without_slots_qemu_refuses_what_it_would_die_of() -> None:
    async with plugging(load_config(FIRST_LIGHT), "vfio-user") as machine:
        with pytest.raises(Refused, match="in no slot"):
            await machine.unplug("accel0")
        with pytest.raises(Refused):
            await machine.qemu("device_del", {"id": "accel0"})
        assert (await machine.guest("dma", bdf="0000:01:00.0"))["copied"]


async def _one_after_the_other(machine: Plugged) -> None:
    plug, unplug, guest = machine.plug, machine.unplug, machine.guest

    # an accelerator
    plugged = await plug("extra", options={"devmem": "64M"})
    found = await guest("wait", bdf=SLOT, there=True)
    assert (plugged["bdf"], plugged["stage"], plugged["plugged"]) == ("02:00.0", "enumerated", True)
    assert found["ids"] == ACCELERATOR
    worked = await guest("dma", bdf=SLOT)
    assert (worked["copied"], worked["members"], worked["devmem"]) == (True, [SLOT], 64 << 20)
    (seen,) = await machine.vdev("query-endpoints", {"endpoint": "extra"})
    assert seen["stage"] == "attached"

    # gone again, also for vdev
    await unplug("extra")
    found = await guest("wait", bdf=SLOT, there=False)
    assert (found["there"], found["groups"]) == (False, worked["groups"] - 1)
    with pytest.raises(Refused, match="no endpoint 'extra'"):
        await machine.vdev("query-endpoints", {"endpoint": "extra"})

    # another model in the same place, with a region of its own
    plugged = await plug("random", model="rng", reserved=[HOLE])
    drawn = await guest("hwrng", bdf=SLOT)
    assert plugged["stage"] == "attached"
    assert (drawn["ids"], drawn["driver"], drawn["values"] > 200) == (RNG, "virtio-pci", True)
    assert drawn["reserved"] == [
        "0x0000000000010000 0x000000000001ffff reserved",
        "0x00000000fee00000 0x00000000feefffff msi",
    ]
    await unplug("random")


async def _the_configured_one_and_its_successor(machine: Plugged) -> None:
    plug, unplug, guest = machine.plug, machine.unplug, machine.guest

    # one that came with the configuration goes, too, and its place takes another
    worked = await guest("dma", bdf="0000:01:00.0")
    await unplug("accel0")
    found = await guest("wait", bdf="0000:01:00.0", there=False)
    assert (worked["copied"], found["there"]) == (True, False)
    assert (await plug("instead", bdf="01:00.0"))["bdf"] == "01:00.0"
    await guest("wait", bdf="0000:01:00.0", there=True)
    worked = await guest("dma", bdf="0000:01:00.0")
    assert worked["copied"]

    # and whoever takes a device out by QEMU's own command has said enough
    await machine.qemu("device_del", {"id": "instead"})
    await guest("wait", bdf="0000:01:00.0", there=False)
    await _until(lambda: not (Path(machine.vm.control_path).parent / "instead.sock").exists())
    assert [slot.get("endpoint") for slot in await machine.vdev("query-slots", {})] == [None, None, None]


async def _two_at_once(machine: Plugged) -> None:
    both = await asyncio.gather(machine.plug("left"), machine.plug("right"))

    assert {endpoint["bdf"] for endpoint in both} == {"01:00.0", "02:00.0"}
    for bdf in ("0000:01:00.0", SLOT):
        await machine.guest("wait", bdf=bdf, there=True)
        assert (await machine.guest("dma", bdf=bdf))["copied"]
    await asyncio.gather(machine.unplug("left"), machine.unplug("right"))


async def _while_the_vm_is_stopped(machine: Plugged) -> None:
    """The guest neither takes nor gives, and does both when it runs again."""
    await machine.qemu("stop", {})
    with pytest.raises(Refused, match="the time is over and late is plugged, not enumerated; it stays plugged in"):
        await machine.plug("late", bdf="02:00.0", timeout=0.5)
    await machine.qemu("cont", {})
    assert (await machine.guest("wait", bdf=SLOT, there=True))["ids"] == ACCELERATOR

    await machine.qemu("stop", {})
    with pytest.raises(Refused, match="the guest has not given late back; the request stands"):
        await machine.unplug("late", timeout=0.5)
    await machine.qemu("cont", {})
    await _until(lambda: not (Path(machine.vm.control_path).parent / "late.sock").exists())
    assert "late" not in [slot.get("endpoint") for slot in await machine.vdev("query-slots", {})]


def _fds(pid: int) -> Counter[str]:
    """What a process has open, by name; sockets and pipes without their numbers."""
    found: Counter[str] = Counter()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found[os.readlink(f"/proc/{pid}/fd/{entry}").split("[")[0]] += 1
    return found


def _resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4


async def _ours(machine: Plugged) -> dict[str, Any]:
    """Everything of ours that must be as before: open files of vdev and of this process, sockets, endpoints, groups."""
    directory = Path(machine.vm.control_path).parent
    status = await machine.vdev("query-status", {})
    return {
        "vdev's fds": _fds(machine.backend_pid),
        "our fds": _fds(os.getpid()),
        "sockets": sorted(path.name for path in directory.glob("*.sock")),
        "functions": sorted(function["function"] for function in status["functions"]),
        "connections": status["process"]["connections"],
        "timers": status["scheduler"]["timers"],
        "endpoints": [found["endpoint"] for found in await machine.vdev("query-endpoints", {})],
        "groups": (await machine.guest("look", bdf=SLOT))["groups"],
        "tasks": len(asyncio.all_tasks()),
        "mappings": [(unit["mappings"], unit["domains"]) for unit in await machine.vdev("query-iommu", {})],
    }


async def _settled(machine: Plugged, before: dict[str, Any]) -> dict[str, Any]:
    """Everything of ours once it is as `before`: connections of the last command may be ending. Otherwise as it is."""
    for _ in range(100):
        if (after := await _ours(machine)) == before:
            return after
        await asyncio.sleep(0.02)
    return after


async def _round(machine: Plugged, number: int) -> None:
    """An accelerator that does DMA, or a generator of random numbers, and nothing of it afterwards."""
    name = f"round{number}"
    if number % 2:
        await machine.plug(name, model="rng", reserved=[HOLE])
        assert (await machine.guest("hwrng", bdf=SLOT))["ids"] == RNG
    else:
        await machine.plug(name)
        await machine.guest("wait", bdf=SLOT, there=True)
        assert (await machine.guest("dma", bdf=SLOT))["copied"]
    await machine.unplug(name)
    assert not (await machine.guest("wait", bdf=SLOT, there=False))["there"]


async def _trivial_round(machine: Plugged) -> None:
    """The same with a device of QEMU's own that does nothing."""
    await machine.qemu("device_add", {"driver": "pci-testdev", "id": "trivial", "bus": "vdev.port2", "addr": "00.0"})
    assert (await machine.guest("wait", bdf=SLOT, there=True))["there"]
    before = machine.events.count("DEVICE_DELETED")
    await machine.qemu("device_del", {"id": "trivial"})
    await _until(lambda: machine.events.count("DEVICE_DELETED") > before)
    assert not (await machine.guest("wait", bdf=SLOT, there=False))["there"]


@pytest.mark.soak(count=ROUNDS)
@pytest.mark.parametrize("attach", ATTACHMENTS if SOAK else ATTACHMENTS[:1])
async def test_nothing_of_ours_grows_when_endpoints_come_and_go(
    attach: Attach, record_property: Callable[[str, object], None]
) -> None:
    async with plugging(load_config(CONFIG), attach) as machine:
        await _come_and_go(machine, record_property)


async def _come_and_go(machine: Plugged, record_property: Callable[[str, object], None]) -> None:
    for number in range(WARM_UP):
        await _round(machine, number)
        await _trivial_round(machine)
    before, resident = await _ours(machine), _resident_kib(machine.backend_pid)
    qemu = _resident_kib(machine.qemu_pid)

    for number in range(ROUNDS):
        await _round(machine, WARM_UP + number)
    qemu_grown = _resident_kib(machine.qemu_pid) - qemu
    after = await _settled(machine, before)
    grown = _resident_kib(machine.backend_pid) - resident
    qemu = _resident_kib(machine.qemu_pid)
    for _ in range(ROUNDS):
        await _trivial_round(machine)
    trivial_grown = _resident_kib(machine.qemu_pid) - qemu

    record_property("vdev_grown_kib", grown)
    record_property("qemu_grown_kib", qemu_grown)
    record_property("qemu_grown_kib_with_a_trivial_device", trivial_grown)
    assert after == before
    assert grown < GROWN_KIB + GROWN_KIB_A_ROUND * ROUNDS
    assert not (await machine.guest("kernel_lines", needle="Call Trace"))["lines"]
