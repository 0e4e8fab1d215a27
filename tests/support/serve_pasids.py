"""A served machine with PASIDs, its own PASID authority, `vdev ctl pasid`, and the requests of a guest's driver."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.support.authority import kill_authority
from tests.support.pasid_requests import alloc_request, attach_request, free_request
from tests.support.serve_guest import GuestUnit, Ram
from tests.support.serve_process import ServeProcess, serving
from tests.support.serve_scene import Scene
from vdev.authority.admin_client import ask
from vdev.wire import viommu
from vdev.wire.viommu_pasid import PASID_LAST, PasidConfig, PasidFreed, PasidGranted

CTL_S = 30.0
AUTHORITY = "authority"  # relative to the VM's runtime directory, and so the test's own
QUOTA = 4
PASIDS = f"""
vm: {{name: vm1, pasids: {{authority: {AUTHORITY}, quota: {QUOTA}}}}}
units:
  - name: iommu0
endpoints:
  - name: accel0
"""
# Whose set is there from the start, and lives as long as vdev: no process is looked for.
UNCHECKED = PASIDS.replace("name: vm1,", "name: vm1, identity: unchecked,")
KERNEL = PASIDS.replace("- name: accel0", "- {name: accel0, dma: pasid_only, kernel_pasid: true}")


@contextlib.contextmanager
def serving_pasids(text: str, directory: Path) -> Iterator[ServeProcess]:
    """`vdev serve` and the authority it starts, for the length of the block."""
    try:
        with serving(text, directory) as process:
            yield process
    finally:
        if (directory / AUTHORITY / "lock").exists():
            kill_authority(directory / AUTHORITY)


@contextlib.asynccontextmanager
async def guest_of(process: ServeProcess) -> AsyncIterator[Scene]:
    """This process is the VM's QEMU: its unit's driver accepts all that is offered, and is told of changes."""
    async with AsyncExitStack() as stack:
        scene = await Scene.enter(stack, process.directory, stack.enter_context(Ram()))
        await scene.unit.set_common("config_msix_vector", 0)
        yield scene


async def config_of(unit: GuestUnit) -> PasidConfig:
    """The extension's fields of the configuration."""
    return PasidConfig.parse((await unit.unit_config()).extension)


async def alloc(unit: GuestUnit, first: int = 1, last: int = PASID_LAST) -> int:
    """The PASID, or minus the status."""
    (answer,) = await unit.ask(alloc_request(first, last), writable_nbytes=12)
    return -answer[8] if answer[8] else PasidGranted.parse(answer).pasid


async def allocs(unit: GuestUnit, count: int) -> list[int]:
    """So many in a row."""
    return [await alloc(unit) for _ in range(count)]


async def free(unit: GuestUnit, pasid: int) -> tuple[int, int]:
    """How many were freed, status."""
    (answer,) = await unit.ask(free_request(pasid, pasid), writable_nbytes=12)
    return PasidFreed.parse(answer).freed, answer[8]


async def attach_pasid(unit: GuestUnit, domain: int, endpoint: int, pasid: int) -> int:
    """The status."""
    return await unit.status_of(attach_request(domain, endpoint, pasid))


async def ctl(*words: str) -> str:
    """What `vdev ctl pasid` prints; AssertionError for another exit status than 0."""
    status, shown, errors = await try_ctl(*words)
    assert (status, errors) == (0, "")
    return shown


async def try_ctl(*words: str) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vdev", "ctl", "pasid", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(CTL_S):
        shown, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, shown.decode(), errors.decode()


async def ctl_json(*words: str) -> Any:
    """The same, decoded."""
    return json.loads(await ctl(*words, "--json"))


async def audit(process: ServeProcess) -> list[dict[str, Any]]:
    """The authority's record of orders, the latest first."""
    found: list[dict[str, Any]] = await ask(process.directory / AUTHORITY, "query-pasid-audit", {})
    return found


OK, NOENT, NOMEM, DEVERR = viommu.S_OK, viommu.S_NOENT, viommu.S_NOMEM, viommu.S_DEVERR
