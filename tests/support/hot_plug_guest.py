"""A guest that says what it sees of a PCI function and works with it when told to: the guest's half of hot-plug tests.

`Plugged` is a booted VM and a client of the monitor that the bridge makes of QEMU's and vdev's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from guest_tests.payload import __path__ as payload_path
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from tests.support.patience import heard
from vdev.config import Config
from vdev.config.schema import Attach
from vdev.errors import VdevError

PREFIX = "__org.vdev_"
ANSWER_S = 60.0

PAYLOAD = b"""\
import contextlib, json, os, sys, time
sys.path.insert(0, "/payload")
from guest_payload import accel, checks_hwrng, checks_open, guest, vfio
from guest_payload.guest import Channel, KernelLog
from guest_payload.lab import RING_IOVA, SOURCE_IOVA, TARGET_IOVA, CheckFailed, copy, run_ok

DEVICES = guest.SYS / "bus/pci/devices"
GROUPS = guest.SYS / "kernel/iommu_groups"

def within(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)

def look(bdf):
    there = (DEVICES / bdf).exists()
    group = DEVICES / bdf / "iommu_group"
    grouped = group.is_symlink()
    return {
        "there": there,
        "driver": guest.link_name(DEVICES / bdf / "driver") if there else None,
        "ids": [guest.read_text(DEVICES / bdf / name) for name in ("vendor", "device")] if there else [],
        "members": os.listdir(group / "devices") if grouped else [],
        "reserved": guest.read_text(group / "reserved_regions").splitlines() if grouped else [],
        "groups": len(os.listdir(GROUPS)),
    }

def wait(bdf, there):
    within(30, lambda: (DEVICES / bdf).exists() == there)
    return look(bdf)

def opened_to_vfio(bdf):
    # The kernel shows a device before it offers it to drivers, and a driver before its probe is done.
    try:
        checks_open.bind_to_vfio(bdf)
        return os.path.exists("/dev/vfio/" + guest.link_name(DEVICES / bdf / "iommu_group"))
    except (OSError, TypeError, CheckFailed):
        return False

def dma(bdf):
    within(10, lambda: opened_to_vfio(bdf))
    number = int(guest.link_name(DEVICES / bdf / "iommu_group"))
    source, target, ring = vfio.Buffer(1 << 16), vfio.Buffer(1 << 16), vfio.Buffer(accel.MEMORY_NBYTES)
    source.memory[:] = os.urandom(source.nbytes)
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(contextlib.closing(vfio.Container(number)))
        device = stack.enter_context(contextlib.closing(vfio.Device(container, bdf)))
        device.set_command(on=vfio.COMMAND_MEMORY | vfio.COMMAND_BUS_MASTER)
        registers = stack.enter_context(contextlib.closing(device.bar(0)))
        devmem = device.region(2).nbytes
        if devmem:
            memory = stack.enter_context(contextlib.closing(device.bar(2)))
            memory.write32(devmem - 4, 0x5eed)
            assert memory.read32(devmem - 4) == 0x5eed
        for iova, buffer in ((RING_IOVA, ring), (SOURCE_IOVA, source), (TARGET_IOVA, target)):
            stack.enter_context(container.mapped(iova, buffer))
        engine = accel.Accelerator(registers, ring.memory, RING_IOVA)
        engine.start()
        run_ok(engine, copy(source.nbytes))
        same = bytes(source.memory) == bytes(target.memory)
        seen = {**look(bdf), "devmem": devmem}
        engine.reset()
    guest.unbind_driver(bdf)
    return {**seen, "copied": same}

def current():
    return guest.read_text(guest.SYS / checks_hwrng.RNG_CURRENT)

def hwrng(bdf):
    within(10, lambda: current().startswith("virtio_rng"))
    return {**look(bdf), "current": current(), "values": len(set(checks_hwrng.draw()))}

def kernel_lines(needle):
    return {"lines": log.find(needle)}

log = KernelLog()
for module in ("virtio-iommu", "vfio-pci", "vfio_iommu_type1", "virtio-rng"):
    guest.load_module(module)
channel = Channel()
channel.send({"hello": 1})
commands = {"look": look, "wait": wait, "dma": dma, "hwrng": hwrng, "kernel_lines": kernel_lines}
while True:
    asked = channel.receive(600)
    if asked is None:
        continue
    try:
        answer = commands[asked.pop("do")](**asked)
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    channel.send({"answer": answer})
"""


class Refused(VdevError):
    """QEMU or vdev refuses a command."""

    def __init__(self, error_class: str, desc: str) -> None:
        self.error_class = error_class
        super().__init__(desc)


class Control:
    """A client of the control socket for any number of tasks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    async def execute(self, command: str, arguments: Mapping[str, object]) -> Any:
        """What the command returns. Refused."""
        async with self._lock:
            self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = json.loads(await self._reader.readline())
        if "error" in answer:
            raise Refused(answer["error"]["class"], answer["error"]["desc"])
        return answer["return"]

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()


@dataclass
class Plugged:
    """A running VM, a client of its one monitor, and what the guest answers."""

    vm: RunningVm
    control: Control
    monitor: QMPClient
    messages: AsyncGenerator[dict[str, Any], None]
    events: list[str] = field(default_factory=list)  # on the monitor, by name

    @property
    def backend_pid(self) -> int:
        """vdev's process."""
        assert self.vm._backend is not None
        return self.vm._backend.pid

    @property
    def qemu_pid(self) -> int:
        """QEMU's process."""
        assert self.vm._qemu is not None
        return self.vm._qemu.pid

    async def guest(self, do: str, **arguments: object) -> dict[str, Any]:
        """What the guest answers to one command of its payload. AssertionError for a failure there."""
        await self.vm.send({"do": do, **arguments})
        answer: dict[str, Any] = (await anext(self.messages))["answer"]
        assert "failed" not in answer, answer["failed"]
        return answer

    async def vdev(self, command: str, arguments: Mapping[str, object]) -> Any:
        """A command of the control socket. Refused."""
        return await self.control.execute(command, arguments)

    async def qemu(self, command: str, arguments: Mapping[str, object]) -> Any:
        """A command on the monitor. Refused."""
        try:
            return await self.monitor.execute(command, dict(arguments))
        except ExecuteError as error:
            raise Refused(error.error_class, error.error.error.desc) from None

    async def plug(self, name: str, **arguments: object) -> dict[str, Any]:
        """endpoint-plug. Refused."""
        found: dict[str, Any] = await self.qemu(f"{PREFIX}endpoint-plug", {"name": name, **arguments})
        return found

    async def unplug(self, name: str, **arguments: object) -> None:
        """endpoint-unplug. Refused."""
        await self.qemu(f"{PREFIX}endpoint-unplug", {"name": name, **arguments})

    async def follow(self) -> None:
        """Note the monitor's events."""
        with self.monitor.listener() as listener:
            async for event in listener:
                self.events.append(str(event["event"]))


@asynccontextmanager
async def plugging(config: Config, attach: Attach) -> AsyncIterator[Plugged]:
    """`config` booted, its units attached as `attach` says, with a guest that waits for commands."""
    files: dict[str, Path | bytes] = {"main.py": PAYLOAD, "guest_payload": Path(payload_path[0])}
    async with bring_up(config, Options(attach=attach, payload_files=files)) as vm:
        messages = heard(vm, ANSWER_S)
        await anext(messages)
        control = Control(*await asyncio.open_unix_connection(vm.control_path, limit=1 << 22))
        monitor = QMPClient("hot-plug test")
        await monitor.connect(vm.monitor_path)
        plugged = Plugged(vm, control, monitor, messages)
        following = asyncio.create_task(plugged.follow())
        try:
            yield plugged
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            with contextlib.suppress(QMPError, EOFError):
                await monitor.disconnect()
            control.close()
            await messages.aclose()
