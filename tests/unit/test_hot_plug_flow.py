"""Plugging and unplugging between a QEMU and a vdev that are played here: order, failures, and what is left over."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from qmp_bridge import hot_plug
from qmp_bridge.hot_plug import MAX_OPERATIONS, HotPlug, HotPlugError
from tests.support.vfio_scene import until
from vdev.config import parse_bdf
from vdev.errors import VdevError

FREE = ["02:00.0", "03:00.0"]


class Refused(VdevError):
    """A refusal of QEMU or vdev."""

    error_class = "GenericError"


class Gone(VdevError):
    """Nobody answers."""


class Machine:
    """QEMU and vdev at once. `refuse` makes a command fail, `hold` makes it wait for `release`."""

    def __init__(self) -> None:
        self.flow = HotPlug(self.qemu, self.vdev)
        self.commands: list[str] = []
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.refuse: dict[str, VdevError] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.reaches = "enumerated"  # how far the guest gets by itself
        self.ejects = True  # the guest gives devices back
        self.moved = 0  # buses the guest numbers on
        self.lingers = 0  # looks at an endpoint before QEMU's connection has ended

    async def _answer(self, name: str) -> None:
        self.commands.append(name)
        if name in self.held:
            await self.held[name].wait()
        await asyncio.sleep(0)
        if name in self.refuse:
            raise self.refuse[name]

    async def vdev(self, name: str, arguments: Mapping[str, object]) -> Any:
        if name == "query-endpoints":
            return [self._look(str(arguments["endpoint"]))]
        if name == "query-slots":
            return [{"bdf": bdf} for bdf in FREE]
        await self._answer(name)
        endpoint = str(arguments["name"])
        if name == "endpoint-remove":
            if self._look(endpoint)["stage"] != "absent":
                raise Refused(f"{endpoint}: QEMU is connected to it")
            del self.endpoints[endpoint]
            return {}
        taken = {known["bdf"] for known in self.endpoints.values()}
        free = [bdf for bdf in FREE if bdf not in taken]
        if endpoint in self.endpoints or not free:
            raise Refused(f"'{endpoint}' is there already, or no slot is free")
        self.endpoints[endpoint] = {"endpoint": endpoint, "bdf": free[0], "stage": "absent", "given": dict(arguments)}
        return {"endpoint": endpoint, "bdf": free[0], "port": "p", "path": f"/run/{endpoint}", "until": "enumerated"}

    def _look(self, name: str) -> dict[str, Any]:
        if name not in self.endpoints:
            raise Refused(f"name: there is no endpoint '{name}'")
        found = self.endpoints[name]
        if name not in self.devices and found["stage"] != "absent":
            self.lingers -= 1
            if self.lingers < 0:
                found["stage"] = "absent"
        return dict(found)

    async def qemu(self, name: str, arguments: Mapping[str, object]) -> Any:
        await self._answer(name)
        if name == "device_add":
            self.devices[str(arguments["id"])] = dict(arguments)
            self.reach(str(arguments["id"]), "plugged")
            if self.reaches != "plugged":
                self.reach(str(arguments["id"]), self.reaches)
        elif name == "query-pci":
            return [{"devices": [self._pci(device) for device in self.devices]}]
        elif name == "device_del":
            device = str(arguments["id"])
            if device not in self.devices:
                raise Refused(f"Device '{device}' not found")
            if self.ejects:
                self.deleted(device)
        return {}

    def _pci(self, device: str) -> dict[str, Any]:
        bdf = parse_bdf(self.endpoints[device]["bdf"])
        return {"qdev_id": device, "bus": (bdf >> 8) + self.moved, "slot": bdf >> 3 & 31, "function": bdf & 7}

    def reach(self, name: str, stage: str) -> None:
        """The guest gets as far as `stage`, and vdev says so."""
        self.endpoints[name]["stage"] = stage
        self.flow.vdev_event("ENDPOINT_STAGE", {"unit": "iommu0", "id": 512, "endpoint": name, "stage": stage})

    def deleted(self, device: str) -> None:
        """QEMU lets go of a device, and says so before it closes the connection."""
        self.devices.pop(device, None)
        self.flow.qemu_event("DEVICE_DELETED", {"device": device, "path": f"/machine/peripheral/{device}"})

    @property
    def left(self) -> tuple[list[str], list[str]]:
        """What QEMU and what vdev has."""
        return sorted(self.devices), sorted(self.endpoints)


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
