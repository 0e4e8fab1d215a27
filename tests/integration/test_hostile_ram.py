"""A RAM file that is truncated under a real `vdev serve`: who lives and who dies, by `vm.unsealed_ram`."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.serve_guest import Ram
from tests.support.serve_process import ONE_UNIT, WAIT_S, serving
from tests.support.serve_scene import Scene
from tests.support.vfio_client import VfioClient
from vdev.wire.virtio_pci import CfgType

ALLOW = "vm: {unsealed_ram: allow}\n" + ONE_UNIT


async def test_unsealed_ram_is_refused_without_an_error_and_may_be_truncated(tmp_path: Path) -> None:
    with serving(ONE_UNIT, tmp_path / "run") as process, Ram(sealed=False) as ram:
        client = await VfioClient.connect(process.path("iommu0"))
        await client.negotiate()
        for gpa in (0, ram.nbytes):  # the main RAM twice, as an alias
            await client.dma_map(gpa, ram.nbytes, ram.fd)
        connection = process.function("iommu0")["connection"]
        os.ftruncate(ram.fd, 0)

        answered = await client.device_info()
        client.close()

        assert answered.num_regions == 9
        assert (connection["dma_able_nbytes"], connection["unreachable_nbytes"]) == (0, 2 * ram.nbytes)
        (line,) = [line for line in process.log.read_text().splitlines() if "not sealed" in line]
        assert "memory-backend-memfd" in line
        assert "vm.unsealed_ram: allow" in line
        assert process.ask("query-status")["process"]["unsealed_ram"] == "refuse"


async def test_sealed_ram_cannot_be_truncated_and_serves(tmp_path: Path) -> None:
    with serving(ONE_UNIT, tmp_path / "run") as process:
        async with AsyncExitStack() as stack:
            scene = await Scene.enter(stack, process.directory, stack.enter_context(Ram()))
            try:
                os.ftruncate(scene.ram.fd, 0)
                truncated = True
            except PermissionError:
                truncated = False

            assert not truncated
            assert await scene.attach() == 1
            assert process.ask("query-status")["process"]["ram"][0]["sealed"] is True


async def test_unsealed_ram_that_was_allowed_and_is_truncated_ends_the_process_as_warned(tmp_path: Path) -> None:
    with serving(ALLOW, tmp_path / "run") as process:
        async with AsyncExitStack() as stack:
            scene = await Scene.enter(stack, process.directory, stack.enter_context(Ram(sealed=False)))
            sealed = [file["sealed"] for file in process.ask("query-status")["process"]["ram"]]
            policy = process.ask("query-status")["process"]["unsealed_ram"]
            os.ftruncate(scene.ram.fd, 0)
            # From here on nobody in this process may touch the RAM either.
            doorbells = scene.unit.structures[CfgType.NOTIFY]
            scene.unit.client.post_write(doorbells.bar, doorbells.offset, bytes(2))
            status = process.popen.wait(WAIT_S)

        assert (sealed, policy) == ([False], "allow")
        assert status == -signal.SIGBUS
        log = process.log.read_text()
        assert "a RAM file that shrinks while it is mapped kills this process" in log
        assert "not sealed; if the file shrinks, this process dies" in log
        assert "Fatal Python error: Bus error" in log
