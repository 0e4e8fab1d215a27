"""A guest that is reset while its accelerator works: the same vdev serves the machine that starts anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guest_tests.boot import Control
from guest_tests.conftest import CONFIG
from guest_tests.payload import __path__ as payload_path
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from vdev.config import load_config
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

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


async def boot_once(messages: Any) -> tuple[str, dict[str, bool]]:
    """The boot's id, and the checks' verdicts."""
    boot_id = (await anext(messages))["boot_id"]
    records = [await anext(messages) for _ in CHECKS]
    return boot_id, {record["check"]: record["ok"] for record in records}


async def _reset(vm: RunningVm) -> None:
    await vm.qmp.execute("set-action", {"reboot": "reset"})  # -no-reboot would end QEMU instead
    await vm.qmp.execute("system_reset")


def options(attach: Attach) -> Options:
    files: dict[str, Path | bytes] = {"main.py": PAYLOAD, "guest_payload": Path(payload_path[0])}
    return Options(config_path=CONFIG, attach=attach, payload_files=files)


@pytest.mark.parametrize("attach", ATTACHMENTS)
async def test_after_a_system_reset_the_driver_binds_again_and_dma_works(attach: Attach) -> None:
    async with bring_up(load_config(CONFIG), options(attach)) as vm:
        messages = vm.messages()
        first, before = await boot_once(messages)
        async with Control.connected(vm.control_path) as control:
            (used,) = await control.execute("query-iommu")
            since = (await control.execute("query-events", limit=1))[0]["seq"] + 1
            await _reset(vm)
            second, after = await boot_once(messages)
            resets = await control.execute("query-events", since=since, kinds=["UnitReset"])
            faults = await control.execute("query-events", since=since, kinds=["FaultRaised"])
        await messages.aclose()

    assert before == after == dict.fromkeys(CHECKS, True)
    assert first != second
    assert used["mappings"] > 0
    assert used["functions"]["accel0"]["running"]
    assert "system" in [event["kind"] for event in resets]
    assert faults == []
