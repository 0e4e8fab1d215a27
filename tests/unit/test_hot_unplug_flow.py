"""Unplugging, and whatever else ends an operation: clients that leave, QEMU's end, other people's device_del."""

from __future__ import annotations

import asyncio

import pytest

from qmp_bridge import hot_plug
from qmp_bridge.hot_plug import HotPlug, HotPlugError
from tests.support.hot_plug_machine import Gone, Machine, Refused
from tests.support.vfio_scene import until


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_plug, "LOOK_S", 0.01)
    monkeypatch.setattr(hot_plug, "SHORT_LOOK_S", 0.001)
    monkeypatch.setattr(hot_plug, "RELEASE_S", 0.05)


async def test_an_endpoint_is_forgotten_once_qemu_has_closed_its_connection(machine: Machine) -> None:
    await machine.flow.plug("new")
    machine.lingers = 3

    await machine.flow.unplug("new")

    assert machine.commands[3:] == ["device_del", "endpoint-remove"]
    assert machine.left == ([], [])


async def test_a_guest_that_keeps_the_device_lets_the_time_run_out_and_the_request_stands(machine: Machine) -> None:
    await machine.flow.plug("new")
    machine.ejects = False

    with pytest.raises(HotPlugError, match="the guest has not given new back; the request stands"):
        await machine.flow.unplug("new", timeout=0.03)

    kept = machine.left
    machine.deleted("new")
    await until(lambda: machine.left == ([], []))
    assert kept == (["new"], ["new"])


async def test_a_guest_that_refuses_is_told_of_at_once(machine: Machine) -> None:
    await machine.flow.plug("new")
    machine.ejects = False
    unplugging = asyncio.create_task(machine.flow.unplug("new"))
    await until(lambda: "device_del" in machine.commands)
    machine.flow.qemu_event("DEVICE_UNPLUG_GUEST_ERROR", {"device": "new", "path": "/machine/peripheral/new"})

    with pytest.raises(HotPlugError, match="new is still plugged in: the guest refuses to give it back"):
        await unplugging

    assert machine.left == (["new"], ["new"])


async def test_a_second_unplug_waits_for_what_the_first_asked_for(machine: Machine) -> None:
    await machine.flow.plug("new")
    machine.refuse["device_del"] = Refused("Device new is already in the process of unplug")
    unplugging = asyncio.create_task(machine.flow.unplug("new"))
    await until(lambda: "device_del" in machine.commands)

    machine.deleted("new")

    await unplugging
    assert machine.left == ([], [])


async def test_an_endpoint_that_qemu_does_not_have_is_simply_forgotten(machine: Machine) -> None:
    await machine.vdev("endpoint-add", {"name": "new"})

    await machine.flow.unplug("new")

    assert "device_del" not in machine.commands
    assert machine.left == ([], [])


async def test_an_endpoint_in_no_slot_is_never_taken_from_qemu(machine: Machine) -> None:
    machine.endpoints["flat"] = {"endpoint": "flat", "bdf": "00:12.0", "stage": "plugged"}

    with pytest.raises(HotPlugError, match=r"flat at 00:12\.0 is in no slot and cannot be unplugged"):
        await machine.flow.unplug("flat")

    assert machine.commands == []


async def test_what_is_not_there_cannot_be_unplugged(machine: Machine) -> None:
    with pytest.raises(Refused, match="there is no endpoint 'new'"):
        await machine.flow.unplug("new")

    assert machine.commands == []


async def test_whoever_deletes_the_device_vdev_forgets_the_endpoint(machine: Machine) -> None:
    await machine.flow.plug("new")

    machine.deleted("new")

    await until(lambda: machine.left == ([], []))


async def test_two_bridges_of_one_vm_forget_an_endpoint_once(machine: Machine) -> None:
    await machine.flow.plug("new")
    other = HotPlug(machine.qemu, machine.vdev)
    machine.held["endpoint-remove"] = asyncio.Event()
    unplugging = asyncio.create_task(machine.flow.unplug("new"))
    await until(lambda: "endpoint-remove" in machine.commands)
    other.qemu_event("DEVICE_DELETED", {"device": "new"})
    await until(lambda: machine.commands.count("endpoint-remove") == 2)

    machine.held["endpoint-remove"].set()

    await unplugging
    await until(lambda: not other._removals)
    assert machine.left == ([], [])


async def test_a_device_that_is_none_of_ours_is_left_alone(machine: Machine) -> None:
    machine.deleted("disk0")
    machine.flow.qemu_event("DEVICE_DELETED", {"path": "/machine/peripheral-anon/device[0]"})
    machine.flow.qemu_event("RESET", {"guest": False})
    await asyncio.sleep(0.02)

    assert machine.commands == []
    assert (await machine.flow.plug("disk0"))["endpoint"] == "disk0"


async def test_a_device_deleted_by_somebody_else_ends_the_wait_of_its_plug(machine: Machine) -> None:
    plugging = asyncio.create_task(machine.flow.plug("new", until="attached"))
    await until(lambda: "query-pci" in machine.commands)
    await asyncio.sleep(0.02)  # it waits for the stage by now

    machine.deleted("new")

    with pytest.raises(HotPlugError, match="has been removed again by somebody else"):
        await plugging
    await until(lambda: machine.left == ([], []))


@pytest.mark.parametrize("step", ["endpoint-add", "device_add"])
async def test_a_client_that_leaves_takes_back_what_qemu_had_not_heard_of(machine: Machine, step: str) -> None:
    machine.held[step] = asyncio.Event()
    plugging = asyncio.create_task(machine.flow.plug("new"))
    await until(lambda: step in machine.commands)

    plugging.cancel()
    await asyncio.gather(plugging, return_exceptions=True)
    machine.held[step].set()

    expected = ([], []) if step == "endpoint-add" else (["new"], ["new"])
    await until(lambda: machine.left == expected and not machine.flow._operations)


async def test_a_client_that_leaves_an_unplug_leaves_the_request(machine: Machine) -> None:
    await machine.flow.plug("new")
    machine.ejects = False
    unplugging = asyncio.create_task(machine.flow.unplug("new"))
    await until(lambda: "device_del" in machine.commands)

    unplugging.cancel()
    await asyncio.gather(unplugging, return_exceptions=True)
    await until(lambda: not machine.flow._operations)
    machine.deleted("new")

    await until(lambda: machine.left == ([], []))


async def test_qemus_end_ends_a_plug_and_an_unplug(machine: Machine) -> None:
    await machine.flow.plug("old")
    machine.ejects = False
    waiting = [
        asyncio.create_task(machine.flow.plug("new", until="attached")),
        asyncio.create_task(machine.flow.unplug("old")),
    ]
    await until(lambda: "device_del" in machine.commands and machine.commands.count("query-pci") == 2)

    machine.flow.lost("QEMU")

    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in errors] == [
        "QEMU is gone; new was plugged in",
        "old is still plugged in: QEMU is gone",
    ]


async def test_vdevs_end_ends_a_plug(machine: Machine) -> None:
    machine.refuse["endpoint-add"] = Gone("vdev is gone")

    with pytest.raises(Gone, match="vdev is gone"):
        await machine.flow.plug("new")


async def test_a_command_that_is_not_answered_ends_with_a_clear_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_plug, "ANSWER_S", 0.02)
    machine.held["device_add"] = asyncio.Event()

    with pytest.raises(HotPlugError, match="QEMU does not answer device_add within"):
        await machine.flow.plug("new")

    assert machine.left == ([], [])


async def test_a_device_deleted_during_the_look_at_its_address_ends_the_plug(machine: Machine) -> None:
    machine.held["query-pci"] = asyncio.Event()
    plugging = asyncio.create_task(machine.flow.plug("new"))
    await until(lambda: "query-pci" in machine.commands)

    machine.deleted("new")
    machine.held["query-pci"].set()

    with pytest.raises(HotPlugError, match="has been removed again by somebody else"):
        await plugging
    assert machine.left == ([], [])


async def test_closing_ends_every_task(machine: Machine) -> None:
    machine.held["device_add"] = asyncio.Event()
    plugging = asyncio.create_task(machine.flow.plug("new"))
    await until(lambda: "device_add" in machine.commands)

    await machine.flow.close()

    assert not machine.flow._tasks
    assert isinstance((await asyncio.gather(plugging, return_exceptions=True))[0], asyncio.CancelledError)
