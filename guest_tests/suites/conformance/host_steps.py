"""What tests of this directory have the host do: `host.step("name", ...)` runs `name` here, on the host."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from guest_tests.runner.steps import HostSide
from vdev.authority.admin_client import ask


async def authority_stops(vm: HostSide) -> int:
    """The VM's own PASID authority answers nobody until it goes on; its process."""
    pid = (await _ask_authority(vm, "query-pasid-host"))["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)
    return pid


async def authority_goes_on(vm: HostSide, pid: int) -> None:
    """It answers again."""
    os.kill(pid, signal.SIGCONT)


async def authority_has(vm: HostSide) -> int:
    """How many PASIDs the authority says that the VM has."""
    (known,) = await _ask_authority(vm, "query-pasid-vms")
    used = known["used"]
    assert isinstance(used, int)
    return used


async def _ask_authority(vm: HostSide, command: str) -> Any:
    where = (await vm.control("query-pasid-set"))["lease"]["authority"]
    return await ask(Path(where), command, {})
