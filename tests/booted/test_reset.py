"""A guest that is reset, or resets itself, while its accelerator works: the same vdev serves it when it starts anew.

One VM for each attachment starts three times: switched on, reset by QMP, rebooted by its own kernel.

It unmaps strictly: a kernel that reboots with an UNMAP put off hangs (docs/stock-linux.md, "Resets, reboots, pauses").
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guest_tests.boot import Control
from guest_tests.payload import __path__ as payload_path
from qmp_bridge.plan import Options
from tests.booted.conftest import CONFIG, DEFAULT_KERNEL
from tests.support.patience import heard, watched
from vdev.config import load_config
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

STRICT = "iommu.strict=1"
VM_S = 180.0  # three starts take 25 s on a quiet machine
CHECKS = ["driver-bound", "own-group", "opens-through-vfio", "copy"]
# Leaves everything open and mapped, with the engine running, and waits to be reset.
PAYLOAD = b"""\
import sys, time
sys.path.insert(0, "/payload")
from guest_payload.checks import chosen
from guest_payload.guest import Channel, KernelLog
from guest_payload.lab import Lab
from guest_payload.main import run_check

channel, lab = Channel(), Lab(KernelLog())
channel.send({"hello": 1, "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip()})
for check in chosen(["driver-bound", "own-group", "opens-through-vfio", "copy"], 1):
    channel.send(run_check(check, lab))
time.sleep(600)
"""


# The same, and resets itself by reboot(2) when it is told to.
REBOOT = PAYLOAD.replace(
    b"time.sleep(600)",
    b"""\
import ctypes
while channel.receive(600) != {"reboot": True}:
    pass
RB_AUTOBOOT = 0x01234567
ctypes.CDLL(None).reboot(RB_AUTOBOOT)
time.sleep(600)
""",
)
NEWEST = "cloud-backports"
KERNELS = [DEFAULT_KERNEL, NEWEST] if os.environ.get("VDEV_TIER") == "soak" else [DEFAULT_KERNEL]
MACHINES = [(attach, kernel) for kernel in KERNELS for attach in ATTACHMENTS]


async def boot_once(messages: Any) -> tuple[str, dict[str, bool]]:
    """The boot's id, and the checks' verdicts."""
    boot_id = (await anext(messages))["boot_id"]
    records = [await anext(messages) for _ in CHECKS]
    return boot_id, {record["check"]: record["ok"] for record in records}


@dataclass(frozen=True)
class Start:
    """One start of the machine after the first, with what vdev saw of it and of the end of the one before."""

    boot_id: str
    verdicts: dict[str, bool]
    used: dict[str, Any]  # the unit at the end of the one before
    resets: list[str]
    faults: list[Any]


async def _start_anew(control: Control, messages: Any, how: Callable[[], Awaitable[Any]]) -> Start:
    """Have the machine reset by `how`, and follow it until its checks are done."""
    (used,) = await control.execute("query-iommu")
    since = (await control.execute("query-events", limit=1))[0]["seq"] + 1
    await how()
    boot_id, verdicts = await boot_once(messages)
    resets = await control.execute("query-events", since=since, kinds=["UnitReset"])
    faults = await control.execute("query-events", since=since, kinds=["FaultRaised"])
    return Start(boot_id, verdicts, used, [event["kind"] for event in resets], faults)


def options(attach: Attach) -> Options:
    files: dict[str, Path | bytes] = {"main.py": PAYLOAD, "guest_payload": Path(payload_path[0])}
    return Options(config_path=CONFIG, attach=attach, payload_files=files)


@pytest.mark.parametrize(("attach", "kernel"), MACHINES)
async def test_after_a_system_reset_and_after_its_own_reboot_the_driver_binds_again_and_dma_works(
    attach: Attach, kernel: str
) -> None:
    files: dict[str, Path | bytes] = {**(options(attach).payload_files or {}), "main.py": REBOOT}
    machine = dataclasses.replace(options(attach), payload_files=files, kernel=kernel, append=STRICT)
    async with watched(load_config(CONFIG), machine, VM_S) as vm:
        messages = heard(vm)
        first, before = await boot_once(messages)
        await vm.qmp.execute("set-action", {"reboot": "reset"})  # -no-reboot would end QEMU instead
        async with Control.connected(vm.control_path) as control:
            starts = [
                await _start_anew(control, messages, lambda: vm.qmp.execute("system_reset")),
                await _start_anew(control, messages, lambda: vm.send({"reboot": True})),
            ]
        await messages.aclose()

    assert before == dict.fromkeys(CHECKS, True)
    assert len({first, *(start.boot_id for start in starts)}) == 3
    for start in starts:
        assert start.verdicts == dict.fromkeys(CHECKS, True)
        assert start.used["mappings"] > 0
        assert start.used["functions"]["accel0"]["running"]
        assert "system" in start.resets
        assert start.faults == []
