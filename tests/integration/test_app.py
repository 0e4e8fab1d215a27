"""The composition root: crashed workers come back with a reset, and a backend does not outlive its VM."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.vfio_scene import until
from vdev import app as app_module
from vdev.app import App
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.functions.base import Progress, Worker
from vdev.functions.virtio_pci import VirtioPciFunction

CONFIG = Config(units=(UnitConfig(name="iommu0"),), endpoints=(EndpointConfig(name="accel0"),))
CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"


@asynccontextmanager
async def running(directory: Path, *, leave_with_vm: bool = False) -> AsyncIterator[tuple[App, asyncio.Task[None]]]:
    """An app that listens, stopped and closed afterwards."""
    app = App(CONFIG, directory / "run", leave_with_vm=leave_with_vm)
    listens = asyncio.Event()
    task = asyncio.create_task(app.run(lambda line: listens.set()))
    try:
        await listens.wait()
        yield app, task
    finally:
        app.stopping.set()
        await task
        app.close()


def crash(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next slice of `worker` raise; the ones after it note that they ran."""
    slices = iter([ZeroDivisionError("a bug of ours")])

    def run_slice(now_ns: int) -> Progress:
        for error in slices:
            raise error
        return Progress.IDLE

    monkeypatch.setattr(worker, "run_slice", run_slice)


@pytest.mark.parametrize("how", ["DEVICE_RESET", "function-level reset"])
async def test_a_crashed_endpoint_runs_again_after_its_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with running(tmp_path) as (app, _):
        endpoint = app.machine.units["iommu0"].endpoints["accel0"]
        crash(endpoint, monkeypatch)
        app.scheduler.wake(endpoint)
        await until(lambda: bool(app.crashed))

        if how == "DEVICE_RESET":
            endpoint.reset()
        else:
            at = endpoint.config_read(0x34, 1)[0]  # the first capability is PCI Express; FLR is bit 15 of DEVCTL
            endpoint.config_write(at + 8, (1 << 15).to_bytes(2, "little"))

        before = app.scheduler.slices
        app.scheduler.wake(endpoint)
        await until(lambda: app.scheduler.slices > before)
        assert app.scheduler.describe()["crashed"] == []
        assert len(app.crashed) == 1


async def test_a_crashed_unit_runs_again_after_the_driver_reset_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (app, _):
        unit = app.machine.units["iommu0"]
        crash(unit.device, monkeypatch)
        app.scheduler.wake(unit.device)
        await until(lambda: bool(app.crashed))

        assert isinstance(unit.function, VirtioPciFunction)
        unit.function.bar_write(0, 0x14, b"\0")  # device_status = 0

        assert app.scheduler.describe()["crashed"] == []


async def test_a_backend_leaves_once_its_vm_is_proven_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "VM_LOOK_S", 0.02)
    async with running(tmp_path, leave_with_vm=True) as (app, task):
        path = str(app.servers["accel0"].path)
        vm = await asyncio.create_subprocess_exec(sys.executable, "-c", CONNECT, path, stdin=subprocess.PIPE)
        await until(lambda: app.vm.identity.pid == vm.pid)
        await asyncio.sleep(0.2)
        stayed = not task.done()
        vm.kill()
        await vm.wait()

        await until(task.done)

    assert stayed


async def test_a_backend_leaves_when_its_launcher_is_gone_before_there_was_a_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "VM_LOOK_S", 0.02)
    async with running(tmp_path, leave_with_vm=True) as (_, task):
        await asyncio.sleep(0.1)
        stayed = not task.done()
        monkeypatch.setattr("os.getppid", lambda: 1 << 22)

        await until(task.done)

    assert stayed
