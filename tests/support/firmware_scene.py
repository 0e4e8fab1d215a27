"""A VM in which `guest_tests.bare_metal` is all the software after SeaBIOS, told to do what must not work.

The hashes are of every page of RAM. One set is taken with the VM stopped and all rings in place; the other when the
processor has read in the engine's registers that it has come to its end. Between the two the processor makes register
accesses alone: the program has no stack and no variables, and no interrupt is on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from guest_tests.bare_metal import boot_disk
from guest_tests.boot import Control, newest_records
from guest_tests.payload.direct import Access, Attach, Feature, Status, Viommu
from guest_tests.payload.direct.memory import DmaPool
from guest_tests.payload.direct.virtio import VirtioPci
from guest_tests.payload.direct.wire import ATTACH_BYPASS, BYPASS_OFFSET
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from tests.qtest.machine import Ram
from tests.support.bare_machine import BareMachine
from tests.support.firmware_dma import ELSEWHERE, OPERANDS, PAGE, PROGRAMS, Attacker, Outcome, Program, differing
from tests.support.firmware_session import type_in
from vdev.config import Attach as Attachment
from vdev.config import Config, EndpointConfig, Isolation, UnitConfig, VmConfig, parse_bdf
from vdev.trace.text import line

MEMORY = 128 << 20
UNIT_BDF, ENDPOINT_BDF = "00:10.0", "01:00.0"
ENDPOINT = parse_bdf(ENDPOINT_BDF)
RINGS = range(0x0280_0000, 0x02A0_0000)  # the IOMMU's own, once it has a driver
DOMAIN = 1
_REGISTERS = {"command-line": "info registers"}
_WAIT_S = 20.0
T = TypeVar("T")
Fault = tuple[str, int, int]  # reason, access, IOVA


@dataclass(frozen=True)
class Attempt:
    """What became of some programs: how the engine ended, which pages changed, what the backend reported."""

    outcomes: list[Outcome]
    changed: set[int]
    faults: list[Fault]


@dataclass
class Story:
    """What was seen of one VM, in the order of the fields."""

    by_hand: list[list[int]]  # the answers to the session of docs/firmware-dma.md
    firmware: Attempt
    records_due: list[
        tuple[str, list[str], int]
    ]  # of the faults before: reason, flags, address, as the driver will see
    elsewhere: Attempt | None = None  # under `required`
    bypass_bytes: list[int] = field(
        default_factory=list
    )  # at boot, after 1 was written unasked, after it was negotiated
    bypass_offered: bool = False
    bypass_domain: Status | int | None = None  # the answer to ATTACH with BYPASS
    beside_a_driver: Attempt | None = None  # which has not attached the endpoint
    operands: Attempt | None = None  # under `required`: of a domain with ring and records
    completions: Attempt | None = None  # of a domain with the ring alone
    left_alone: Attempt | None = None  # the driver detached it, and cleared the bypass byte where there is one
    after_reset: Attempt | None = None
    log: str = ""
    trace: list[str] = field(default_factory=list)  # its faults


class Scene:
    """The VM, the bare machine in it, its RAM, its backend."""

    def __init__(self, vm: RunningVm, machine: BareMachine, control: Control, ram: Ram) -> None:
        self.vm, self.machine, self.control = vm, machine, control
        self.pool = DmaPool(ram)
        self._ram = ram
        self._stamp = 0

    async def do(self, job: Callable[..., T], *arguments: object) -> T:
        """`job` in a thread: the machine's accesses wait for their answers."""
        return await asyncio.to_thread(job, *arguments)

    async def attempt(self, programs: Sequence[Program] = PROGRAMS, *, halt: bool = False) -> Attempt:
        """Prepare, hash, run, hash; `halt`: the processor stands in HLT for the second hash, and ever after."""
        self._stamp += 1
        attacker = await self.do(lambda: Attacker(self.machine.function(ENDPOINT_BDF), self.machine))
        await self.do(attacker.prepare, programs, self._stamp)
        await self.vm.qmp.execute("stop")
        before = await self._digests()
        await self.vm.qmp.execute("cont")
        since = await self._next_event()
        outcomes = [await self.do(attacker.run, program) for program in programs]
        if halt:
            await self._halt()
        after = await self._digests()
        return Attempt(outcomes, set(differing(before, after)), await self._faults(since))

    async def records_due(self) -> list[tuple[str, list[str], int]]:
        """The fault records that wait for a driver's buffers: reason, flags, address."""
        records = await self.control.execute("query-faults")
        return [(record["reason"], record["flags"], record["address"]) for record in records]

    async def reset(self) -> None:
        """Reset the machine; the program runs anew."""
        await self.vm.qmp.execute("set-action", {"reboot": "reset"})  # -no-reboot would end QEMU instead
        await self.vm.qmp.execute("system_reset")
        await self.do(self.machine.booted)

    async def _digests(self) -> list[bytes]:
        """Hashes of all pages, when QEMU has done what it was told of before, interrupts included."""
        for _ in range(2):
            await self.vm.qmp.execute("query-status")
        return await self.do(self._ram.digests)

    async def _halt(self) -> None:
        await self.do(self.machine.halt)
        async with asyncio.timeout(_WAIT_S):
            while "HLT=1" not in str(await self.vm.qmp.execute("human-monitor-command", _REGISTERS)):
                pass

    async def _next_event(self) -> int:
        newest = await self.control.execute("query-events", limit=1)
        return int(newest[0]["seq"]) + 1 if newest else 0

    async def _faults(self, since: int) -> list[Fault]:
        events = await self.control.execute("query-events", since=since, kinds=["FaultRaised"])
        assert {event["endpoint"] for event in events} <= {ENDPOINT}
        return [(event["reason"], event["access"], event["iova"]) for event in events]


@asynccontextmanager
async def scene(isolation: Isolation, attach: Attachment, directory: Path) -> AsyncIterator[Scene]:
    """A VM whose bare machine takes commands."""
    disk = directory / "stub.img"
    disk.write_bytes(boot_disk())
    config = Config(
        vm=VmConfig(memory=MEMORY, isolation=isolation, disk=str(disk), disk_format="raw"),
        units=(UnitConfig(name="iommu0", bdf=UNIT_BDF, attach=attach),),
        endpoints=(
            EndpointConfig(name="accel0", bdf=ENDPOINT_BDF),
            EndpointConfig(
                name="rng0", model="rng", bdf="02:00.0"
            ),  # as in configs/first-light.yaml: the BIOS places alike
        ),
    )
    loop = asyncio.get_running_loop()

    def type_in(data: bytes) -> None:
        asyncio.run_coroutine_threadsafe(vm.console.write(data), loop).result(_WAIT_S)

    machine = BareMachine(type_in)
    async with (
        bring_up(config, Options(payload=None, follow=machine.heard, trace="memory", timeout=120)) as vm,
        Control.connected(vm.control_path) as control,
    ):
        await asyncio.to_thread(machine.booted)
        pid = (await control.execute("query-status"))["process"]["pid"]
        yield Scene(vm, machine, control, Ram(pid, MEMORY, RINGS.start))


async def tell(isolation: Isolation, attach: Attachment, directory: Path) -> Story:
    """A VM from its firmware to its firmware after a reset."""
    async with scene(isolation, attach, directory) as machine:
        by_hand = await machine.do(type_in, machine.machine)
        story = Story(by_hand, await machine.attempt(), await machine.records_due())
        if isolation == "required":
            story.elsewhere = await machine.attempt(ELSEWHERE)
        await _with_a_driver(machine, story)
        await machine.reset()
        story.after_reset = await machine.attempt(halt=True)
        records = await newest_records(machine.control, 10_000)
        story.trace = [line(record) for record in records if record["kind"] == "fault"]
        story.log = (machine.vm.logs / "backend.log").read_text()
    return story


async def _with_a_driver(machine: Scene, story: Story) -> None:
    """The program becomes the IOMMU's driver, who asks for everything that is offered, and more."""
    transport = await machine.do(_write_bypass, machine.machine, story.bypass_bytes)
    viommu = await machine.do(_driver, transport, machine.pool)
    story.bypass_offered = bool(viommu.features & Feature.BYPASS_CONFIG)
    story.bypass_bytes.append(await machine.do(_set_bypass, viommu))
    story.bypass_domain = await machine.do(_attach_with_bypass, viommu)
    story.beside_a_driver = await machine.attempt()
    await machine.do(_map_ring, viommu)
    if not story.bypass_offered:
        story.operands = await machine.attempt([OPERANDS])
        await machine.do(_unmap_records, viommu)
        story.completions = await machine.attempt([OPERANDS])
    await machine.do(_leave_alone, viommu)
    story.left_alone = await machine.attempt()


def _write_bypass(machine: BareMachine, seen: list[int]) -> VirtioPci:
    """Write the byte by hand, without a word to the device before."""
    transport = VirtioPci(machine.function(UNIT_BDF))
    seen.append(transport.read_config(BYPASS_OFFSET, 1))
    transport.write_config(BYPASS_OFFSET, 1, 1)
    seen.append(transport.read_config(BYPASS_OFFSET, 1))
    return transport


def _driver(transport: VirtioPci, pool: DmaPool) -> Viommu:
    """No event buffers: the unit would store fault records in them, which is a change of RAM."""
    return Viommu.open(transport, pool, nevents=0)


def _set_bypass(viommu: Viommu) -> int:
    viommu.bypass = True
    return viommu.transport.read_config(BYPASS_OFFSET, 1)


def _leave_alone(viommu: Viommu) -> None:
    viommu.detach(domain=DOMAIN, endpoint=ENDPOINT)
    viommu.bypass = False


def _attach_with_bypass(viommu: Viommu) -> Status | int | None:
    """Into a domain that bypasses, and out again if that worked."""
    answer = viommu.send(Attach(domain=DOMAIN, endpoint=ENDPOINT, flags=ATTACH_BYPASS))
    if answer.ok:
        viommu.detach(domain=DOMAIN, endpoint=ENDPOINT)
    return answer.status


def _map_ring(viommu: Viommu) -> None:
    viommu.attach(domain=DOMAIN, endpoint=ENDPOINT)
    for gpa, access in ((OPERANDS.ring, Access.READ), (OPERANDS.completions, Access.WRITE)):
        viommu.map(domain=DOMAIN, iova=gpa, gpa=gpa, nbytes=PAGE, access=access)


def _unmap_records(viommu: Viommu) -> None:
    viommu.unmap(domain=DOMAIN, iova=OPERANDS.completions, nbytes=PAGE)
