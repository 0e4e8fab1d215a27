"""What a person does to a VM at the wrong moment: stops while it boots, a reset of a stopped VM, a kernel by kexec."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from guest_tests.boot import Control
from qmp_bridge.plan import find_parts
from qmp_bridge.up import RunningVm
from tests.booted.conftest import CONFIG
from tests.booted.test_reset import CHECKS, PAYLOAD, STRICT, boot_once, options
from tests.support.patience import heard, watched
from vdev.config import load_config
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

SOAK = os.environ.get("VDEV_TIER") == "soak"
WORKS = dict.fromkeys(CHECKS, True)
VM_S = 150.0  # two starts take 20 s on a quiet machine, and with stops in the first one
BETWEEN_STOPS_S = 0.3  # some twenty of them in a boot, at other moments each time
# Goes over to the kernel and the initrd among its files, with everything open, mapped and running. Like a reboot, that
# hangs where an UNMAP was put off, so this kernel unmaps strictly.
KEXEC = PAYLOAD.replace(
    b"time.sleep(600)",
    b"""\
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
kernel, initrd = (os.open(f"/payload/{name}", os.O_RDONLY) for name in ("kernel", "initrd"))
command_line = open("/proc/cmdline", "rb").read().strip() + b"\\0"
KEXEC_FILE_LOAD, REBOOT = 320, 169  # x86-64
failed = libc.syscall(KEXEC_FILE_LOAD, kernel, initrd, len(command_line), command_line, 0)
channel.send({"kexec": ctypes.get_errno() if failed else 0})
libc.syscall(REBOOT, 0xFEE1DEAD, 672274793, 0x45584543, None)
time.sleep(600)
""",
)


async def counters(control: Control) -> dict[str, Any]:
    """What the unit's carrier counted; nothing of it over vfio-user."""
    status = await control.execute("query-status")
    assert status["crashed"] == []
    functions = {function["function"]: function for function in status["functions"]}
    connection: dict[str, Any] = functions["iommu0"]["connection"]
    return {name: connection.get(name) for name in ("rings", "new_drivers", "machine_resets")}


async def stop_and_continue(vm: RunningVm) -> None:
    """For ever."""
    while True:
        await asyncio.sleep(BETWEEN_STOPS_S)
        await vm.qmp.execute("stop")
        await vm.qmp.execute("cont")


@pytest.mark.parametrize("attach", ATTACHMENTS)
async def test_stops_while_it_boots_and_a_reset_while_it_is_stopped(attach: Attach) -> None:
    async with watched(load_config(CONFIG), options(attach), VM_S) as vm:
        messages = heard(vm)
        stopping = asyncio.create_task(stop_and_continue(vm))
        first, before = await boot_once(messages)
        stopping.cancel()
        await asyncio.wait([stopping])
        async with Control.connected(vm.control_path) as control:
            await vm.qmp.execute("set-action", {"reboot": "reset"})  # -no-reboot would end QEMU instead
            await vm.qmp.execute("stop")
            await vm.qmp.execute("system_reset")
            await vm.qmp.execute("query-status")
            while (await control.execute("query-iommu"))[0]["mappings"]:
                pass  # QEMU answers system_reset before it resets
            frozen = "frozen" in await control.execute("query-status")
            await vm.qmp.execute("cont")
            second, after = await boot_once(messages)
            faults = await control.execute("query-events", kinds=["FaultRaised"])
            counted = await counters(control)
        await messages.aclose()

    assert before == after == WORKS
    assert first != second
    assert frozen
    assert faults == []
    assert attach == "vfio-user" or counted == {"rings": "running", "new_drivers": 0, "machine_resets": 1}


@pytest.mark.parametrize("attach", ATTACHMENTS if SOAK else ["vhost-user"])  # where nobody tells the unit of it
async def test_a_kernel_started_by_kexec_finds_a_fresh_device(attach: Attach) -> None:
    config = load_config(CONFIG)
    parts = find_parts(config, options(attach))
    assert parts.kernel is not None
    assert parts.initrd is not None
    files: dict[str, Path | bytes] = {**(options(attach).payload_files or {}), "main.py": KEXEC}
    files |= {"kernel": Path(parts.kernel), "initrd": Path(parts.initrd)}
    machine = dataclasses.replace(options(attach), payload_files=files, append=STRICT)
    async with watched(config, machine, VM_S) as vm:
        messages = heard(vm)
        first, before = await boot_once(messages)
        kexec = await anext(messages)
        second, after = await boot_once(messages)
        async with Control.connected(vm.control_path) as control:
            resets = await control.execute("query-events", kinds=["UnitReset"])
            faults = await control.execute("query-events", kinds=["FaultRaised"])
            counted = await counters(control)
        await messages.aclose()

    assert kexec == {"kexec": 0}
    assert before == after == WORKS
    assert first != second
    assert faults == []
    assert resets[-1]["kind"] == "device"
    assert attach == "vfio-user" or counted == {"rings": "running", "new_drivers": 1, "machine_resets": 0}
