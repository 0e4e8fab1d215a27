"""Plugging between a QEMU and a vdev that are played here: order, failures, and what is left over."""

from __future__ import annotations

import asyncio

import pytest

from qmp_bridge import hot_plug
from qmp_bridge.hot_plug import MAX_OPERATIONS, HotPlugError
from tests.support.hot_plug_machine import FREE, Gone, Machine, Refused
from tests.support.vfio_scene import until
from vdev.errors import VdevError


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_plug, "LOOK_S", 0.01)
    monkeypatch.setattr(hot_plug, "SHORT_LOOK_S", 0.001)
    monkeypatch.setattr(hot_plug, "RELEASE_S", 0.05)


async def test_an_endpoint_is_made_then_plugged_then_looked_for(machine: Machine) -> None:
    found = await machine.flow.plug("new", model="rng", options={"period": 5})

    assert machine.commands == ["endpoint-add", "device_add", "query-pci"]
    assert (found["endpoint"], found["stage"]) == ("new", "enumerated")
    assert machine.endpoints["new"]["given"] == {"name": "new", "model": "rng", "options": {"period": 5}}


async def test_what_is_said_of_an_endpoints_pasids_is_passed_on_as_it_is_spelled(machine: Machine) -> None:
    await machine.flow.plug("new", dma="pasid-only", kernel_pasid=True, reserved_pasids=["0x1..0xf"])

    assert machine.endpoints["new"]["given"] == {
        "name": "new", "dma": "pasid-only", "kernel-pasid": True, "reserved-pasids": ["0x1..0xf"],
    }  # fmt: skip


async def test_qemu_is_told_what_it_is_told_of_configured_endpoints(machine: Machine) -> None:
    await machine.flow.plug("new")

    assert machine.devices["new"] == {
        "driver": "vfio-user-pci", "id": "new", "bus": "vdev.port2", "addr": "00.0",
        "socket": {"type": "unix", "path": "/run/new"}, "x-msg-timeout": 30000,
    }  # fmt: skip


async def test_the_answer_waits_for_the_stage_that_was_asked_for(machine: Machine) -> None:
    plugging = asyncio.create_task(machine.flow.plug("new", until="attached"))
    await until(lambda: "query-pci" in machine.commands)
    machine.reach("new", "probed")
    await asyncio.sleep(0.03)
    waited = not plugging.done()

    machine.reach("new", "attached")

    assert waited
    assert (await plugging)["stage"] == "attached"


async def test_a_stage_whose_event_was_lost_is_found_all_the_same(machine: Machine) -> None:
    plugging = asyncio.create_task(machine.flow.plug("new", until="attached"))
    await until(lambda: "query-pci" in machine.commands)

    machine.endpoints["new"]["stage"] = "attached"

    assert (await plugging)["stage"] == "attached"


async def test_when_the_time_is_over_the_device_stays_and_the_error_says_how_far_the_guest_got(
    machine: Machine,
) -> None:
    with pytest.raises(HotPlugError) as caught:
        await machine.flow.plug("new", until="attached", timeout=0.05)

    assert "the time is over and new is enumerated, not attached; it stays plugged in" in str(caught.value)
    assert machine.left == (["new"], ["new"])


@pytest.mark.parametrize("timeout", [0, -1, 601])
async def test_a_time_that_is_none_is_refused_before_anything_happens(machine: Machine, timeout: float) -> None:
    with pytest.raises(HotPlugError, match=r"timeout: .* is not above 0 and up to 600 seconds"):
        await machine.flow.plug("new", timeout=timeout)
    with pytest.raises(HotPlugError, match="timeout"):
        await machine.flow.unplug("new", timeout=timeout)

    assert machine.commands == []


async def test_what_vdev_refuses_never_reaches_qemu(machine: Machine) -> None:
    machine.refuse["endpoint-add"] = Refused("bdf: 07:00.0 is no slot")

    with pytest.raises(Refused, match="is no slot"):
        await machine.flow.plug("new")

    assert machine.commands == ["endpoint-add"]


@pytest.mark.parametrize("error", [Refused("Bus 'vdev.port2' not found"), Gone("QEMU is gone")])
async def test_what_qemu_does_not_take_is_taken_back(machine: Machine, error: VdevError) -> None:
    machine.refuse["device_add"] = error

    with pytest.raises(type(error), match=str(error)):
        await machine.flow.plug("new")

    assert machine.left == ([], [])
    machine.refuse.clear()
    assert (await machine.flow.plug("new"))["bdf"] == "02:00.0"


async def test_an_endpoint_that_cannot_be_taken_back_is_named_in_the_error(machine: Machine) -> None:
    machine.refuse = {"device_add": Refused("no"), "endpoint-remove": Gone("vdev is gone")}

    with pytest.raises(HotPlugError, match="no; and new could not be taken back: vdev is gone"):
        await machine.flow.plug("new")


async def test_a_device_at_another_address_is_taken_out_again(machine: Machine) -> None:
    machine.moved = 1

    with pytest.raises(HotPlugError, match=r"new should be at 02:00\.0 and is at 03:00\.0: did the guest number"):
        await machine.flow.plug("new")

    assert machine.commands == ["endpoint-add", "device_add", "query-pci", "device_del", "endpoint-remove"]
    assert machine.left == ([], [])


async def test_a_device_at_another_address_that_the_guest_keeps_is_named(machine: Machine) -> None:
    machine.moved, machine.ejects = 1, False

    with pytest.raises(HotPlugError, match="does not give it back; and new could not be taken back: QEMU is still"):
        await machine.flow.plug("new", timeout=0.05)

    machine.deleted("new")
    await until(lambda: machine.left == ([], []))


async def test_two_plugs_at_once_take_two_slots(machine: Machine) -> None:
    both = await asyncio.gather(machine.flow.plug("one"), machine.flow.plug("two"))

    assert sorted(found["bdf"] for found in both) == FREE


async def test_the_same_name_twice_at_once_is_refused(machine: Machine) -> None:
    first = asyncio.create_task(machine.flow.plug("new"))
    await asyncio.sleep(0)

    with pytest.raises(HotPlugError, match="new is being plugged in at this moment"):
        await machine.flow.plug("new")

    await first
    assert machine.left == (["new"], ["new"])


async def test_an_unplug_during_a_plug_is_refused(machine: Machine) -> None:
    plugging = asyncio.create_task(machine.flow.plug("new", until="attached"))
    await until(lambda: "query-pci" in machine.commands)

    with pytest.raises(HotPlugError, match="new is being plugged in at this moment"):
        await machine.flow.unplug("new")

    machine.reach("new", "attached")
    await plugging
    await machine.flow.unplug("new")
    assert machine.left == ([], [])


async def test_only_so_many_operations_run_at_once(machine: Machine) -> None:
    machine.held["endpoint-add"] = asyncio.Event()
    plugs = [asyncio.create_task(machine.flow.plug(f"e{n}")) for n in range(MAX_OPERATIONS)]
    await asyncio.sleep(0)

    with pytest.raises(HotPlugError, match=f"{MAX_OPERATIONS} endpoints are being plugged and unplugged"):
        await machine.flow.plug("another")

    machine.held["endpoint-add"].set()
    await asyncio.gather(*plugs, return_exceptions=True)
