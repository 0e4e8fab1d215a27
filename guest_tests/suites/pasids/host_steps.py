"""What tests of this directory have the host do: `host.step("name", ...)` runs `name` here, on the host."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
from pathlib import Path

from guest_tests.runner.steps import HostSide

LOW_RAM = ((0, 0xA0000), (0xC0000, 0x40000))  # RAM regions below 1 MiB: gpa, nbytes
CTL_S = 60.0


async def vdev_ctl_pasid_quota(vm: HostSide, quota: int) -> str:
    """As an administrator types it; what it prints."""
    argv = [sys.executable, "-m", "vdev", "ctl", "pasid", "quota", "--socket", vm.vm.control_path, str(quota)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), CTL_S)
    text = output.decode()
    assert process.returncode == 0, text
    return text


async def sha256_of_low_ram(vm: HostSide) -> str:
    """The digest of the RAM regions below 1 MiB as QEMU sees them; no kernel writes there once it is up."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "memory"
        for gpa, nbytes in LOW_RAM:
            await vm.qmp("pmemsave", val=gpa, size=nbytes, filename=str(path))
            digest.update(path.read_bytes())
    return digest.hexdigest()
