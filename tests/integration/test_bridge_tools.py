"""The tools people have for QMP, unmodified, at the bridge's socket: qmp-shell, qmp-tui, QMPClient, and socat's way."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.support.monitor_lab import Lab, bridge_between, lab
from tests.support.real_qemu import real_qemu
from tests.support.terminal import terminal

TOOLS = Path(sys.executable).parent


@pytest.fixture
async def monitors(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path) as found:
        found.vdev.answers["query-units"] = {"return": [{"unit": "iommu0"}]}
        yield found


def with_qmp_shell(path: str, home: Path) -> None:
    with terminal([str(TOOLS / "qmp-shell"), path], {"HOME": str(home)}) as shell:
        shell.wait_for("Connected to QEMU 1")
        shell.wait_for("(QEMU) ")
        shell.type("query-blocks\t")  # one of QEMU's has this beginning
        shell.wait_for("query-blockstats")
        shell.type("\n")
        shell.wait_for('{"return": []}')
        shell.type("__org.vdev_query-uni\t")
        shell.wait_for("__org.vdev_query-units")
        shell.type("\n")
        shell.wait_for('"unit": "iommu0"')
        shell.type("__org.vdev_query-units colour=red\n")
        shell.wait_for("Parameter 'colour' is unexpected")
        shell.type("query-status colour=red\n")
        shell.wait_for("Parameter 'colour' is unexpected")
        shell.type("migrate uri=exec:cat\n")
        shell.wait_for("vdev refuses migrate")


async def test_qmp_shell_completes_both_kinds_of_commands_and_unknown_arguments_are_refused_by_name(
    monitors: Lab, tmp_path: Path
) -> None:
    await asyncio.to_thread(with_qmp_shell, monitors.bridged, tmp_path)


def with_qmp_tui(path: str, home: Path) -> str:
    """What is on the screen when it says that it is connected."""
    with terminal([str(TOOLS / "qmp-tui"), path], {"HOME": str(home)}) as tui:
        return tui.wait_for("[Connected", nudge=" ")  # it draws when a key is pressed


async def test_qmp_tui_connects_as_it_does_to_qemu(monitors: Lab, tmp_path: Path) -> None:
    ours = await asyncio.to_thread(with_qmp_tui, monitors.bridged, tmp_path)
    qemus = await asyncio.to_thread(with_qmp_tui, monitors.direct, tmp_path)
    for screen in (ours, qemus):
        assert '"qmp_capabilities"' in screen
        assert '"return": {}' in screen


async def script_for_plain_qemu(path: str) -> list[object]:
    """A script as people write them: start, stop, query, device_add, events; what it has seen."""
    seen: list[object] = []
    qmp = QMPClient("script")
    await qmp.connect(path)
    try:
        with qmp.listener(("STOP", "RESUME", "DEVICE_DELETED")) as events:
            for command in ("cont", "stop"):
                await qmp.execute(command)
                seen.append((await events.get())["event"])
                seen.append(await qmp.execute("query-status"))
            await qmp.execute("object-add", {"qom-type": "rng-random", "id": "rng0", "filename": "/dev/urandom"})
            device = {"driver": "virtio-rng-pci", "id": "rng", "rng": "rng0", "bus": "root1"}
            seen.append(await qmp.execute("device_add", device))
            with pytest.raises(ExecuteError) as twice:
                await qmp.execute("device_add", device)
            seen.append((str(twice.value.error_class), str(twice.value)))
            seen.append([bus["bus"] for bus in await qmp.execute("query-pci")])  # type: ignore[attr-defined]
            names = await asyncio.gather(*(qmp.execute("qom-get", {"path": "/machine", "property": "type"}),) * 20)
            seen.append(set(names))
            seen.append(await qmp.execute("query-yank", oob=False))
            seen.append(await qmp.execute("yank", {"instances": []}, oob=True))
    finally:
        await qmp.disconnect()
    return seen


async def test_a_script_for_plain_qemu_runs_unchanged(tmp_path: Path) -> None:
    with real_qemu(tmp_path, "qmp") as paths:
        expected = await script_for_plain_qemu(paths["qmp"])
    with real_qemu(tmp_path, "qmp") as paths:
        async with bridge_between(paths["qmp"], tmp_path) as found:
            seen = await script_for_plain_qemu(found.bridged)
    assert seen == expected


def as_socat_does(path: str, text: bytes) -> list[dict[str, object]]:
    """Send everything, close the sending side, read to the end: `socat - UNIX-CONNECT:path`."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(path)
        sock.sendall(text)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


async def test_a_pipe_through_socat_gets_every_answer(monitors: Lab) -> None:
    text = b'{"execute": "qmp_capabilities"}\n{"execute": "stop"}\n{"execute": "query-name", "id": 3}\n'
    greeting, *replies = await asyncio.to_thread(as_socat_does, monitors.bridged, text)
    assert "QMP" in greeting
    assert replies == [{"return": {}}, {"return": {}}, {"return": {}, "id": 3}]
