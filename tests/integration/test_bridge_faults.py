"""The bridge and injected faults: QEMU's part of one is done on a real QEMU; rules and firings are on QMP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qmp_bridge.bridge.qemu_faults import EVENT, MAX_AT_ONCE, QemuFaults
from qmp_bridge.bridge.server import BridgeServer, Setup
from qmp_bridge.bridge.upstream import QemuGone, Upstream, connect
from qmp_bridge.errors import Refused
from tests.support.monitor_lab import client, lab
from tests.support.real_qemu import real_qemu
from tests.support.serve_process import ONE_UNIT, ServeProcess
from tests.support.vfio_scene import until

CONNECT_S = 10.0
WAIT_S = 20.0


class Scene:
    """The bridge's half between `qemu` and a vdev that notes what it is told."""

    def __init__(self, qemu: Any) -> None:
        self.told: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()
        self.faults = QemuFaults(qemu, self._vdev)

    async def _vdev(self, command: str, arguments: Mapping[str, object]) -> None:
        assert command == "fault-qemu-done"
        self.told.put_nowait(arguments)

    async def outcome(self, command: str) -> Mapping[str, object]:
        """What vdev is told after it wanted `command`."""
        self.faults.vdev_event(EVENT, {"rule": "r1", "n": 3, "command-line": command})
        async with asyncio.timeout(WAIT_S):
            return await self.told.get()


@asynccontextmanager
async def upstream(directory: Path) -> AsyncIterator[Upstream]:
    with real_qemu(directory, "qmp") as paths:
        qemu = await connect(paths["qmp"], lambda line, message: None, CONNECT_S)
        reading = asyncio.create_task(qemu.run())
        try:
            yield qemu
        finally:
            qemu.close()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_an_error_is_injected_at_a_port_and_vdev_told(tmp_path: Path) -> None:
    async with upstream(tmp_path) as qemu:
        scene = Scene(qemu.execute)

        told = [
            await scene.outcome(f"pcie_aer_inject_error {words}")
            for words in ("root1 UNSUP", "root1 BAD_TLP", "-a root1 COMP_TIME", "root1 0x100000", "-c root1 0x40")
        ]

    assert told == [{"rule": "r1", "n": 3}] * 5


async def test_what_qemu_says_instead_is_told(tmp_path: Path) -> None:
    async with upstream(tmp_path) as qemu:
        told = await Scene(qemu.execute).outcome("pcie_aer_inject_error nobody UNSUP")

    assert told["error"] == "QEMU says \"Error: device 'nobody' not found\""


async def untouched(command: str, arguments: Mapping[str, object]) -> Any:
    raise AssertionError(f"QEMU was asked for {command} {arguments}")


@pytest.mark.parametrize(
    "command",
    [
        "quit",
        "pcie_aer_inject_error",
        "pcie_aer_inject_error root1",
        "pcie_aer_inject_error root1 NOTHING",
        "pcie_aer_inject_error root1 64",
        "pcie_aer_inject_error -x root1 UNSUP",
        "pcie_aer_inject_error root1 UNSUP 0x1",
        "pcie_aer_inject_error root1 UNSUP\nquit",
        "pcie_aer_inject_error root1 UNSUP\n",
        "pcie_aer_inject_error root1;quit UNSUP",
        "pcie_aer_inject_error /machine/x UNSUP",
        " pcie_aer_inject_error root1 UNSUP",
        "",
    ],
)
async def test_nothing_else_that_a_backend_says_is_run(command: str) -> None:
    told = await Scene(untouched).outcome(command)

    assert str(told["error"]).startswith("a bridge does not run")


async def test_what_is_no_text_is_not_run_either() -> None:
    scene = Scene(untouched)

    scene.faults.vdev_event(EVENT, {"rule": "r1", "n": 1, "command-line": ["quit"]})

    assert "does not run" in str((await scene.told.get())["error"])


@pytest.mark.parametrize("error", [QemuGone("QEMU is gone"), Refused("GenericError", "QEMU is gone")])
async def test_a_qemu_that_is_gone_or_refuses_is_told(error: Exception) -> None:
    async def gone(command: str, arguments: Mapping[str, object]) -> Any:
        raise error

    told = await Scene(gone).outcome("pcie_aer_inject_error root1 UNSUP")

    assert told == {"rule": "r1", "n": 3, "error": "QEMU is gone"}


async def test_a_vdev_that_waits_no_longer_ends_nothing() -> None:
    asked = asyncio.Event()

    async def refuses(command: str, arguments: Mapping[str, object]) -> None:
        asked.set()
        raise Refused("GenericError", "nothing is asked")

    faults = QemuFaults(untouched, refuses)
    faults.vdev_event(EVENT, {"rule": "r1", "n": 1, "command-line": "quit"})

    async with asyncio.timeout(WAIT_S):
        await asked.wait()
    await faults.close()


async def test_no_more_are_under_way_than_vdev_waits_for() -> None:
    begun = 0

    async def slow(command: str, arguments: Mapping[str, object]) -> Any:
        nonlocal begun
        begun += 1
        await asyncio.sleep(WAIT_S)

    scene = Scene(slow)
    for number in range(MAX_AT_ONCE + 10):
        scene.faults.vdev_event(EVENT, {"rule": "r1", "n": number, "command-line": "pcie_aer_inject_error p UNSUP"})
    await asyncio.sleep(0)

    assert begun == MAX_AT_ONCE
    await scene.faults.close()


async def test_the_bridge_hears_of_it_and_answers_on_the_control_socket(tmp_path: Path) -> None:
    async with lab(tmp_path) as found, client(found.bridged) as person:
        await found.vdev.followed.wait()
        found.vdev.tell(EVENT, **{"rule": "r1", "n": 1, "command-line": "pcie_aer_inject_error root1 UNSUP"})
        told = await person.event(f"__org.vdev_{EVENT}")
        await until(lambda: "fault-qemu-done" in found.vdev.asked)

    assert told["data"]["command-line"] == "pcie_aer_inject_error root1 UNSUP"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rule r1, 1: drop at request", "injected: rule r1, 1: drop at request"),
        ("\x1b[2J", r"injected: '\x1b[2J'"),
        ("x" * 9999, "injected: " + "x" * 300),
    ],
)
async def test_firings_are_said_where_the_bridge_speaks(tmp_path: Path, text: str, line: str) -> None:
    async with lab(tmp_path) as found:
        await found.vdev.followed.wait()
        found.vdev.tell("FAULT_INJECTED", rule="r1", n=1, text=text)
        await until(lambda: bool(found.said))

    assert found.said == [line]


async def test_what_bridges_say_to_vdev_is_not_on_qmp(tmp_path: Path) -> None:
    async with lab(tmp_path) as found, client(found.bridged) as person:
        answer = await person.ask("__org.vdev_fault-qemu-done", rule="r1", n=1)

    assert answer["error"]["class"] == "CommandNotFound"


async def test_a_rule_added_on_the_monitor_is_told_there_when_it_fires(tmp_path: Path) -> None:
    serve = ServeProcess(ONE_UNIT, tmp_path / "vdev")
    try:
        with real_qemu(tmp_path, "qmp") as paths:
            server = BridgeServer(Setup(str(tmp_path / "monitor.sock"), paths["qmp"], serve.ready["control"]), print)
            await server.connect()
            running = asyncio.create_task(server.run())
            async with client(str(tmp_path / "monitor.sock")) as person:
                refused = await person.ask("__org.vdev_fault-add", at="timer", do="status")
                await person.ask("cont")  # nothing happens while the VM is stopped
                added = await person.ask("__org.vdev_fault-add", at="timer", do="config-change", when={"delay": 0.1})
                event = await person.event("__org.vdev_FAULT_INJECTED")
                cleared = await person.ask("__org.vdev_fault-clear")
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    finally:
        serve.kill()

    assert "'status' is no action at the point timer" in refused["error"]["desc"]
    assert added == {"return": {"id": "r1", "since": 0}}
    assert event["data"] == {
        "rule": "r1", "n": 1, "at": "timer", "do": "config-change", "suppressed": 0,
        "text": "rule r1, 1: config-change (function=iommu0) at timer",
    }  # fmt: skip
    assert cleared["return"]["removed"] == 1
