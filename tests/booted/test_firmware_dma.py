"""DMA from before any driver exists: under `isolation: required` no byte of RAM changes, under `preferred` it lands.

A boot sector (guest_tests/bare_metal.py) is all the software there is after SeaBIOS. Its processor finds the
accelerator, stores rings in RAM, and starts the engine. The hashes are of every page of RAM: one set is taken with the
VM stopped and all rings in place, the other when the engine has come to its end, which the processor has read in the
engine's registers, and stands in HLT. In between it makes register accesses alone; the program has no stack. That the
hashes can differ is what `preferred` shows: by the very same steps exactly the pages named change.

Blocked, the engine gets no further than its first access, the fetch of a descriptor, and that is all that can be tried
without a driver: there is no memory it may read a descriptor from. So the program then becomes a driver, maps a ring
and nothing else, and tries the other accesses one by one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from guest_tests.bare_metal import boot_disk
from guest_tests.boot import Control, newest_records
from guest_tests.payload.direct import READ, WRITE, RequestRefused, Viommu
from guest_tests.payload.direct.memory import DmaPool
from guest_tests.payload.direct.virtio import DeviceStatus
from guest_tests.payload.direct.wire import ATTACH_BYPASS, BYPASS_OFFSET, Feature
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from tests.qtest.machine import Ram
from tests.support.bare_machine import BareMachine
from tests.support.firmware_dma import ELSEWHERE, FAR, HIGH, LOW, PAGE, PROGRAMS, SECRET, Attacker, Outcome, differing
from vdev.config import Config, EndpointConfig, Isolation, UnitConfig, VmConfig
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MEMORY = 128 << 20
UNIT, ENDPOINT = "00:10.0", "01:00.0"
POOL = 0x0500_0000  # where the driver's rings are; nothing else is there
DOMAIN = 1
HALTED = re.compile(r"\bHLT=1\b")
T = TypeVar("T")
Fault = tuple[str, int, int]  # reason, access, IOVA


@dataclass(frozen=True)
class Attempt:
    """What became of one go at all programs."""

    outcomes: list[Outcome]
    changed: set[int]  # addresses of pages
    faults: list[Fault]


@dataclass
class Story:
    """One VM's life: what was seen of it."""

    at_start: dict[str, Any]  # the unit before the guest did anything to it
    attempts: dict[str, Attempt] = field(default_factory=dict)
    halted: bool = False
    offered: bool = False  # BYPASS_CONFIG
    bypass: list[bool] = field(default_factory=list)  # the byte after each attempt to write it
    mapped: list[str] = field(default_factory=list)  # completions, in words
    bypass_domain: str = "OK"
    log: str = ""
    trace: list[str] = field(default_factory=list)


class Scene:
    """A running VM: the bare machine in it, its RAM, its backend."""

    def __init__(self, vm: RunningVm, machine: BareMachine, control: Control, ram: Ram) -> None:
        self.vm, self.machine, self.control, self.ram = vm, machine, control, ram
        self.pool = DmaPool(ram)
        self._stamp = 0

    async def do(self, job: Callable[..., T], *arguments: Any) -> T:
        """`job` in a thread: the machine's accesses wait for their answers."""
        return await asyncio.to_thread(job, *arguments)

    async def digests(self) -> list[bytes]:
        """Hashes of all pages, once QEMU has done all it was told of before, interrupts included."""
        for _ in range(2):
            await self.vm.qmp.execute("query-status")
        return await self.do(self.ram.digests)

    async def attempt(self, programs: Sequence[Program] = PROGRAMS, *, halt: bool = False) -> Attempt:
        """Prepare, hash, run, hash."""
        self._stamp += 1
        attacker = Attacker(self.machine, ENDPOINT)
        await self.do(attacker.prepare, programs, self._stamp)
        await self.vm.qmp.execute("stop")
        before = await self.digests()
        await self.vm.qmp.execute("cont")
        since = await self.next_event()
        outcomes = [await self.do(attacker.run, program) for program in programs]
        if halt:
            await self.halt()
        after = await self.digests()
        return Attempt(outcomes, set(differing(before, after)), await self.faults(since))

    async def halt(self) -> None:
        """The processor stops. TimeoutError when it does not."""
        await self.do(self.machine.halt)
        async with asyncio.timeout(20):
            while not HALTED.search(await self.vm.qmp.execute("human-monitor-command", {"command-line": "info registers"})):
                await asyncio.sleep(0.01)

    async def next_event(self) -> int:
        """The number of the event to come."""
        newest = await self.control.execute("query-events", limit=1)
        return newest[0]["seq"] + 1 if newest else 0

    async def faults(self, since: int) -> list[Fault]:
        """Those from event `since` on."""
        events = await self.control.execute("query-events", since=since, kinds=["FaultRaised"])
        assert {event["endpoint"] for event in events} <= {0x100}
        return [(event["reason"], event["access"], event["iova"]) for event in events]

    async def reset(self) -> None:
        """Reset the machine; the program runs anew."""
        await self.vm.qmp.execute("set-action", {"reboot": "reset"})  # -no-reboot would end QEMU instead
        await self.vm.qmp.execute("system_reset")
        await self.do(self.machine.booted)


@asynccontextmanager
async def scene(isolation: Isolation, attach: Attach, directory: Path) -> AsyncIterator[Scene]:
    """A VM whose bare machine takes commands."""
    disk = directory / "stub.img"
    disk.write_bytes(boot_disk())
    config = Config(
        vm=VmConfig(memory=MEMORY, isolation=isolation, disk=str(disk), disk_format="raw"),
        units=(UnitConfig(name="iommu0", bdf=UNIT, attach=attach),),
        endpoints=(EndpointConfig(name="accel0", bdf=ENDPOINT),),
    )
    loop = asyncio.get_running_loop()

    def type_in(data: bytes) -> None:
        asyncio.run_coroutine_threadsafe(vm.console.write(data), loop).result(20)

    machine = BareMachine(type_in)
    async with bring_up(config, Options(payload=None, follow=machine.heard, trace="memory", timeout=120)) as vm:
        async with Control.connected(vm.control_path) as control:
            await asyncio.to_thread(machine.booted)
            pid = (await control.execute("query-status"))["process"]["pid"]
            yield Scene(vm, machine, control, Ram(pid, MEMORY, POOL))


async def as_driver(scene: Scene, story: Story) -> None:
    """The program becomes a driver of the IOMMU; it gives the endpoint its ring, then takes everything back."""
    function = scene.machine.function
    transport = await scene.do(lambda: VirtioPci(function(UNIT)))
    await scene.do(transport.write_config, BYPASS_OFFSET, 1, 1)
    await scene.do(transport.negotiate, transport.offered())
    await scene.do(transport.write_config, BYPASS_OFFSET, 1, 1)

    viommu = await scene.do(lambda: Viommu.open(transport, scene.pool, nevents=0))
    story.offered = bool(viommu.features & Feature.BYPASS_CONFIG)
    try:
        await scene.do(lambda: viommu.attach(domain=DOMAIN, endpoint=ENDPOINT_ID, flags=ATTACH_BYPASS))
        await scene.do(lambda: viommu.detach(domain=DOMAIN, endpoint=ENDPOINT_ID))
    except RequestRefused as refused:
        story.bypass_domain = refused.answer.status.name
    viommu.bypass
