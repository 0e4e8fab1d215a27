"""The monitor's commands in a live guest: every reply is what the schema says, and what `vdev ctl` shows is true."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from qemu.qmp import QMPClient

from guest_tests.boot import Control
from qmp_bridge.up import RunningVm, bring_up
from tests.booted.conftest import CONFIG
from tests.booted.test_reset import CHECKS, boot_once, options
from tests.support.patience import heard, patience
from vdev.config import Config, load_config, override_vm
from vdev.config.schema import ATTACHMENTS, Attach
from vdev.qapi.check import check_return
from vdev.qapi.schema import schema

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

# What needs a free slot, what streams, and a bridge's own word: tests of hot-plug, of the trace, of the monitor's
# events and of injected faults have them.
ELSEWHERE = {"endpoint-add", "endpoint-remove", "trace-follow", "events-follow", "fault-qemu-done"}
PLAIN = {
    "query-status", "query-units", "query-iommu", "query-endpoints", "query-groups", "query-slots", "query-faults",
    "query-requests", "query-events", "query-pasid-set", "query-pasids", "query-pasid-audit", "query-fault-plan",
    "query-fault-actions",
}  # fmt: skip
CTL_S = 60.0
VM_S = 120.0
UNMAPPED = 0x7FFF_FFFF_F000  # beyond the input range of the machine


class Asker:
    """Asks the monitor what it has, the control socket the rest, and looks at each reply with the schema in hand."""

    def __init__(self, control: Control, monitor: QMPClient) -> None:
        self.control = control
        self.monitor = monitor
        self.asked: set[str] = set()

    async def __call__(self, name: str, **arguments: object) -> Any:
        if schema().commands[name].control_only:
            returned: Any = await self.control.execute(name, **arguments)
        else:
            returned = await self.monitor.execute(schema().prefix + name, arguments)
        check_return(schema().commands[name].returns, returned)
        self.asked.add(name)
        return returned


@contextlib.asynccontextmanager
async def asking(vm: RunningVm) -> AsyncIterator[Asker]:
    """An Asker with its connections."""
    monitor = QMPClient("asker")
    await monitor.connect(vm.monitor_path)
    try:
        async with Control.connected(vm.control_path) as control:
            yield Asker(control, monitor)
    finally:
        await monitor.disconnect()


async def ctl(path: str, *words: str) -> str:
    """What `vdev ctl` prints for a socket; its errors and another status than 0 fail the test."""
    return await run_ctl("--socket", path, *words)


async def ctl_pasid(path: str, *words: str) -> str:
    """The same of `vdev ctl pasid`."""
    return await run_ctl("pasid", *words, "--socket", path)


async def run_ctl(*words: str) -> str:
    """What it prints; its errors and another status than 0 fail the test."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vdev", "ctl", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(CTL_S):
        shown, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    return shown.decode()


async def look_around(ask: Asker) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every query once; the first mapping of the accelerator's domain, and what a read of it would meet."""
    for name in sorted(PLAIN):
        await ask(name)
    (domain,) = [found for found in (await ask("query-domains"))["domains"] if "accel0" in found["endpoints"]]
    page = await ask("query-mappings", domain=domain["id"])
    translation = await ask("translate", endpoint="accel0", iova=page["mappings"][0]["virt-start"])
    return page["mappings"][0], translation


async def steer(ask: Asker) -> list[bool]:
    """Every command that changes something; whether the unit bypasses after each of those that have to do with it."""
    await ask("trace-start", records=100, types=["MAP"])
    await ask("trace-note", text="a line of the test's")
    await ask("query-trace")
    await ask("trace-stop")
    await ask("freeze", by="a test")
    await ask("query-status")
    await ask("thaw")
    await ask("pasid-quota", quota=3, reason="a test's")
    await ask("pasid-reclaim", pasid=(await ask("query-pasids"))["pasids"][0]["pasid"])
    await inject(ask)
    seen = []
    for name, arguments in (("set-bypass", {"bypass": False}), ("set-bypass", {"bypass": True}), ("reset-unit", {})):
        await ask(name, **arguments)
        seen.append((await ask("query-units"))[0]["bypass"])
    return seen


async def inject(ask: Asker) -> None:
    """Every command about injected faults; nothing is left of them."""
    await ask("fault-seed", seed=7)
    rule = (
        await ask("fault-add", at="interrupt", do="delay", **{"with": {"seconds": 60}}, match={"function": "accel0"})
    )["id"]
    await ask("fault-load", plan={"rules": [{"at": "timer", "do": "spurious", "with": {"function": "accel0"}}]})
    await ask("fault-release", id=rule)
    await ask("query-fault-plan")
    await ask("query-fault-log", limit=10)
    await ask("fault-remove", id=rule, release=True)
    assert (await ask("fault-clear"))["removed"] == 1


def with_pasids() -> Config:
    """The machine, with an authority of its own, and a PASID of the host's on the accelerator."""
    config = override_vm(load_config(CONFIG), {"pasids": {"authority": "authority"}})
    endpoints = [
        msgspec.structs.replace(endpoint, kernel_pasid=endpoint.name == "accel0") for endpoint in config.endpoints
    ]
    return msgspec.structs.replace(config, endpoints=tuple(endpoints))


@pytest.mark.parametrize("attach", ATTACHMENTS)
async def test_every_reply_from_a_live_guest_is_as_described(attach: Attach) -> None:
    async with bring_up(with_pasids(), options(attach)) as vm, patience(vm, VM_S, "the commands"):
        messages = heard(vm)
        _, verdicts = await boot_once(messages)
        await messages.aclose()
        async with asking(vm) as ask:
            mapping, translation = await look_around(ask)
            refused = await ask("translate", endpoint="accel0", iova=UNMAPPED, access="write")
            shown = await ctl(
                vm.control_path, "translate", "--endpoint", "accel0", "--iova", hex(mapping["virt-start"])
            )
            units = await ctl(vm.monitor_path, "query-units")  # through the bridge
            pasids = await ctl_pasid(vm.control_path, "show")
            bypass = await steer(ask)
            orders = await ask("query-pasid-audit")
            left = (await ask("query-domains"))["domains"]

    assert verdicts == dict.fromkeys(CHECKS, True)
    assert translation["allowed"]
    assert [piece["gpa"] for piece in translation["pieces"]] == [mapping["phys-start"]]
    assert (refused["allowed"], refused["pieces"]) == (False, [])
    assert re.search(rf"^ +{mapping['virt-start']:#x} +{mapping['phys-start']:#x} +1 +ram$", shown, re.MULTILINE)
    assert f"attach:            {attach}\n" in units
    assert re.search(r"^0x1 +attached +host +accel0 as it is itself$", pasids, re.MULTILINE)
    assert [order["command"] for order in orders] == ["pasid-reclaim", "pasid-quota"]
    assert bypass == [False, True, True]
    assert ask.asked == {name for name, command in schema().commands.items() if not command.bridge_only} - ELSEWHERE
    assert left == []
