"""QMP `stop` and `cont` under load: nothing is lost, and with the VM stopped not one byte of guest RAM changes.

The guest maps, copies, verifies and unmaps without end (payload/load.py) while the host stops it through the user's
monitor, hashes all of its RAM twice and lets it go on. VDEV_TIER=soak does so 100 times. At the end the same is done
with the backend thawed: then the hash must change, or the test could not have failed. Over vhost-user it still must
not: there QEMU itself suspends the unit's rings, and its endpoints are held with them. There the control is a backend
that lacks this second hold (tests/support/unheld_backend.py).
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from qemu.qmp import QMPClient

from guest_tests.boot import Control
from guest_tests.payload import __path__ as payload_path
from guest_tests.payload.load import NCOPIES, OPENING
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from tests.booted.conftest import CONFIG
from tests.support.patience import heard, patience
from vdev.config import Config, load_config, parse_size
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROUNDS = 100 if os.environ.get("VDEV_TIER") == "soak" else 5
MOST_ROUNDS = ROUNDS + 50  # on a busy machine a handful of stops may all come between two rounds of copies
MEMORY = "256M"  # all of it is hashed twice a round
PROGRESS_S = 60.0
CONTROL_TRIES = 100
RAM_FILE = "memfd:memory-backend-memfd"
MAIN = b"""\
import sys
sys.path.insert(0, "/payload")
from guest_payload.load import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Stop:
    """What one stop looked like: RAM's hash at its beginning and end, and whether copies were under way."""

    before: int
    after: int
    working: bool


def is_working(registers: dict[str, Any]) -> bool:
    """Whether the accelerator has descriptors left to do."""
    return bool(registers["ring_head"] != registers["ring_tail"])


class Bench:
    """A loaded guest under our hands: its monitor, its backend, its RAM."""

    def __init__(self, vm: RunningVm, qmp: QMPClient, control: Control, ram: mmap.mmap) -> None:
        self.vm = vm
        self.qmp = qmp
        self.control = control
        self.ram = ram

    async def accelerator(self) -> dict[str, Any]:
        """The accelerator's registers as the backend has them."""
        (unit,) = await self.control.execute("query-iommu")
        registers: dict[str, Any] = unit["functions"]["accel0"]
        return registers

    async def make_progress(self) -> None:
        """Wait until another round's worth of copies is done and the next is under way."""
        target = (await self.accelerator())["completed"] + NCOPIES
        async with patience(self.vm, PROGRESS_S, "copies"):
            while (registers := await self.accelerator())["completed"] < target or not is_working(registers):
                pass

    async def hash(self) -> int:
        """All of RAM; in a thread, so that whatever could still write to it is not kept from it."""
        return await asyncio.to_thread(zlib.crc32, self.ram)

    async def stop(self) -> Stop:
        """Stop, look twice, go on. The first look begins when `stop` has returned."""
        await self.qmp.execute("stop")
        before = await self.hash()
        registers = await self.accelerator()
        frozen = "frozen" in await self.control.execute("query-status")
        after = await self.hash()
        assert frozen
        await self.qmp.execute("cont")
        return Stop(before, after, is_working(registers))

    async def stop_unguarded(self, *, held_by_rings: bool) -> bool:
        """Stop with copies under way and thaw the backend all the same; whether RAM changes then.

        `held_by_rings`: QEMU itself suspends the unit's rings, and the endpoints with them, so nothing will move.
        """
        for _ in range(CONTROL_TRIES):
            await self.qmp.execute("stop")
            registers = await self.accelerator()
            if is_working(registers):
                break
            await self.qmp.execute("cont")
            await self.make_progress()
        else:
            pytest.fail(f"none of {CONTROL_TRIES} stops came while copies were under way")
        before = await self.hash()
        await self.control.execute("thaw", by="the test, to see RAM change")
        async with patience(self.vm, PROGRESS_S, "copies of a thawed backend"):
            while not held_by_rings and (await self.accelerator())["completed"] == registers["completed"]:
                pass
        after = await self.hash()
        await self.qmp.execute("cont")
        return before != after


@contextmanager
def guest_ram(pid: int, nbytes: int) -> Iterator[mmap.mmap]:
    """All RAM of QEMU process `pid`, to be read."""
    directory = Path(f"/proc/{pid}/fd")
    (path, *_) = [entry for entry in directory.iterdir() if RAM_FILE in os.readlink(entry)]
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, nbytes, prot=mmap.PROT_READ) as ram:
            yield ram
    finally:
        os.close(fd)


@asynccontextmanager
async def bench(vm: RunningVm) -> AsyncIterator[Bench]:
    """Hands on `vm`, as its user would have them."""
    qmp = QMPClient("user")
    async with Control.connected(vm.control_path) as control:
        pid = (await control.execute("query-status"))["process"]["pid"]
        await qmp.connect(vm.monitor_path)
        try:
            with guest_ram(pid, parse_size(MEMORY)) as ram:
                yield Bench(vm, qmp, control, ram)
        finally:
            await qmp.disconnect()


def configuration() -> Config:
    """The demo's machine with less RAM."""
    config = load_config(CONFIG)
    return msgspec.structs.replace(config, vm=msgspec.structs.replace(config.vm, memory=MEMORY))


@pytest.mark.soak(count=ROUNDS, seed="none")
@pytest.mark.parametrize("attach", ATTACHMENTS)
async def test_under_load_nothing_is_lost_and_a_stopped_vms_ram_does_not_change(attach: Attach) -> None:
    files: dict[str, Path | bytes] = {"main.py": MAIN, "guest_payload": Path(payload_path[0])}
    async with bring_up(configuration(), Options(attach=attach, payload_files=files)) as vm:
        messages = heard(vm)
        opened = [await anext(messages) for _ in range(1 + len(OPENING))][1:]
        async with bench(vm) as hands:
            stops: list[Stop] = []
            while len(stops) < ROUNDS or (not any(stop.working for stop in stops) and len(stops) < MOST_ROUNDS):
                await hands.make_progress()
                stops.append(await hands.stop())
            changed_when_thawed = await hands.stop_unguarded(held_by_rings=attach == "vhost-user")
            await hands.make_progress()
        await vm.send({"enough": True})
        load, done = [await anext(messages) for _ in range(2)]
        async with Control.connected(vm.control_path) as control:
            faults = await control.execute("query-events", kinds=["FaultRaised"])
        await messages.aclose()

    assert [record["ok"] for record in opened] == [True] * len(OPENING)
    assert [stop for stop in stops if stop.before != stop.after] == []
    assert any(stop.working for stop in stops)
    assert changed_when_thawed == (attach == "vfio-user")
    assert done["ok"], load
    counts = load["load"]
    assert (counts["submitted"], counts["maps"]) == (counts["completed"], counts["unmaps"])
    assert (counts["refused"], faults) == (0, [])
    assert counts["rounds"] > ROUNDS


async def test_over_vhost_user_it_is_the_suspended_rings_that_hold_a_thawed_backend() -> None:
    files: dict[str, Path | bytes] = {"main.py": MAIN, "guest_payload": Path(payload_path[0])}
    unheld = (sys.executable, "-m", "tests.support.unheld_backend")
    options = Options(attach="vhost-user", payload_files=files, backend=unheld)
    async with bring_up(configuration(), options) as vm:
        messages = heard(vm)
        for _ in range(1 + len(OPENING)):
            await anext(messages)
        async with bench(vm) as hands:
            await hands.make_progress()
            changed_when_thawed = await hands.stop_unguarded(held_by_rings=False)
            await hands.make_progress()
        await messages.aclose()

    assert changed_when_thawed
