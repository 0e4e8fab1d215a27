"""What an endpoint's accesses are refused for: each reason counts once, under the word the schema has, in every query.

The same in a booted guest: guest_tests/suites/direct/test_refusals.py.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import vdev
from tests.support.iommu_requests import attach, map_
from vdev.app import App
from vdev.config import Config, EndpointConfig, Isolation, Reserved, UnitConfig, VmConfig
from vdev.endpoints.accelerator import Accelerator
from vdev.errors import DmaError
from vdev.functions.dma import DmaDoor
from vdev.memory import Region
from vdev.qapi.check import check_return
from vdev.qapi.model import Enum
from vdev.qapi.schema import schema
from vdev.trace.filter import DMA_REASONS
from vdev.wire import pci, viommu
from vdev.wire.accelerator import Control, Register

ACCEL, PAGE, DOMAIN = 0x100, 4096, 1
INPUT_STOP = 1 << 32
RAM, HOLE = 0x10_0000, 0x8000
MAPPED, NO_RAM, READ_ONLY, WRITE_ONLY = 0x1_0000, 0x2_0000, 0x3_0000, 0x4_0000
RING = MAPPED
READ, WRITE = viommu.MAP_F_READ, viommu.MAP_F_WRITE


class Rig:
    """An app that does not listen: one accelerator in a domain with four mapped pages, RAM behind three of them."""

    def __init__(self, directory: Path, isolation: Isolation = "preferred", *, forced: bool | None = None) -> None:
        unit = UnitConfig(name="iommu0", input_range=(0, INPUT_STOP - 1), force_aperture=forced)
        hole = Reserved(start=HOLE, end=HOLE + PAGE - 1)
        endpoint = EndpointConfig(name="accel0", reserved=(hole,))
        self.app = App(Config(vm=VmConfig(isolation=isolation), units=(unit,), endpoints=(endpoint,)), directory)
        self.unit = self.app.machine.units["iommu0"]
        self.unit.engine.set_features(-1)
        self.door = self.unit.doors["accel0"]
        found = self.unit.endpoints["accel0"]
        assert isinstance(found, Accelerator)
        self.accel = found
        self.accel.memory.add(Region(RAM, 4 * PAGE, memoryview(bytearray(4 * PAGE))))
        self.bus_master(True)

    def attach(self) -> None:
        engine = self.unit.engine
        attach(engine, DOMAIN, ACCEL)
        for number, (iova, flags) in enumerate(((MAPPED, 3), (READ_ONLY, READ), (WRITE_ONLY, WRITE))):
            map_(engine, DOMAIN, iova, iova + PAGE - 1, RAM + number * PAGE, flags)
        map_(engine, DOMAIN, NO_RAM, NO_RAM + PAGE - 1, RAM + 8 * PAGE)

    def bus_master(self, enabled: bool) -> None:
        value = pci.Command.BUS_MASTER if enabled else pci.Command(0)
        self.accel.config_write(pci.COMMAND, value.to_bytes(2, "little"))

    def ask(self, command: str, **arguments: Any) -> Any:
        reply = msgspec.to_builtins(self.app.commands()[command].answer(**arguments))
        check_return(schema().commands[command].returns, reply)
        return reply

    def counts(self) -> dict[str, int]:
        """Of the endpoint, as query-endpoints shows them."""
        (found,) = self.ask("query-endpoints", endpoint="accel0")
        return {count["name"]: count["count"] for count in found["dma-refused"]}

    def faults(self) -> dict[str, int]:
        """Of the unit, as query-units shows them."""
        (found,) = self.ask("query-units")
        return {count["name"]: count["count"] for count in found["counters"]["faults"]}

    def register(self, at: Register, value: int) -> None:
        self.accel.write_register(0, at, value.to_bytes(4, "little"))

    def start_with_work(self) -> None:
        """The engine runs and has one descriptor to fetch; nobody gives it a slice."""
        self.register(Register.RING_BASE, RING)
        self.register(Register.RING_SIZE, 8)
        self.register(Register.COMPLETION_BASE, RING + PAGE // 2)
        self.register(Register.CONTROL, Control.ENABLE)
        self.register(Register.RING_TAIL, 1)


@pytest.fixture
async def rig(tmp_path: Path) -> Any:
    made = Rig(tmp_path / "run")
    yield made
    made.app.close()


def read(iova: int) -> Callable[[Rig], None]:
    return lambda rig: _refused(lambda: rig.door.read(iova, 8))


def write(iova: int) -> Callable[[Rig], None]:
    return lambda rig: _refused(lambda: rig.door.write(iova, bytes(8)))


def _refused(access: Callable[[], object]) -> None:
    with pytest.raises(DmaError):
        access()


def frozen(rig: Rig) -> None:
    rig.unit.freezer.set("a test", True)
    read(MAPPED)(rig)


def without_bus_master(rig: Rig) -> None:
    rig.bus_master(False)
    read(MAPPED)(rig)


def unattached(rig: Rig) -> None:
    rig.unit.engine.table.detach(DOMAIN, ACCEL)
    rig.unit.engine.write_bypass(0)
    read(MAPPED)(rig)


# reason: what provokes it, and the reason of the fault record, None for those without one
PROVOKED: dict[str, tuple[Callable[[Rig], None], int | None]] = {
    "no-domain": (unattached, viommu.FAULT_R_DOMAIN),
    "outside-input-range": (read(INPUT_STOP), viommu.FAULT_R_MAPPING),
    "not-mapped": (read(0x70_0000), viommu.FAULT_R_MAPPING),
    "no-read": (read(WRITE_ONLY), viommu.FAULT_R_MAPPING),
    "no-write": (write(READ_ONLY), viommu.FAULT_R_MAPPING),
    "reserved": (read(HOLE), viommu.FAULT_R_MAPPING),
    "outside-address-space": (read((1 << 64) - 4), viommu.FAULT_R_MAPPING),
    "unsupported-request": (read(NO_RAM), None),
    "bus-master-off": (without_bus_master, None),
    "frozen": (frozen, None),
}


@pytest.mark.parametrize("reason", PROVOKED)
async def test_a_refused_access_counts_once_under_its_reason(rig: Rig, reason: str) -> None:
    provoke, fault = PROVOKED[reason]
    rig.attach()

    provoke(rig)

    assert rig.counts() == {reason: 1}
    assert rig.faults() == ({} if fault is None else {reason: 1})
    assert [viommu.Fault.parse(record).reason for record in rig.unit.engine.pending_faults] == (
        [] if fault is None else [fault]
    )


async def test_an_endpoint_the_unit_does_not_have_counts_at_its_door_and_at_the_unit(rig: Rig) -> None:
    door = DmaDoor(rig.unit.engine, 0x999, rig.accel)

    with pytest.raises(DmaError):
        door.read(MAPPED, 8)

    assert door.refused == rig.faults() == {"unknown-endpoint": 1}


async def test_work_that_is_held_counts_once_for_each_hold_and_is_done_afterwards(rig: Rig) -> None:
    rig.attach()
    rig.start_with_work()

    for _ in range(2):
        rig.unit.freezer.set("VM stopped", True)
        rig.accel.run_slice(0)
        rig.unit.freezer.set("VM stopped", False)

    assert rig.counts() == {"frozen": 2}
    rig.accel.run_slice(0)
    assert rig.accel.describe()["completed"] == 1
    assert rig.counts() == {"frozen": 2}


async def test_work_that_comes_while_dma_is_held_counts_once(rig: Rig) -> None:
    rig.attach()
    rig.unit.freezer.set("VM stopped", True)

    rig.start_with_work()
    rig.register(Register.RING_TAIL, 2)

    assert rig.counts() == {"frozen": 1}


async def test_a_hold_of_an_idle_endpoint_counts_nothing(rig: Rig) -> None:
    rig.attach()

    rig.unit.freezer.set("VM stopped", True)
    rig.bus_master(False)

    assert rig.counts() == {}


async def test_work_that_bus_master_off_ends_counts_once(rig: Rig) -> None:
    rig.attach()
    rig.start_with_work()

    rig.bus_master(False)

    assert rig.counts() == {"bus-master-off": 1}


def _raised_words() -> Iterator[str]:
    """The reasons that `vdev` raises by name: the first argument of DmaError, the second of TranslationFault."""
    places = {"DmaError": 0, "TranslationFault": 1, "count_untried": 0}
    for path in Path(vdev.__file__).parent.rglob("*.py"):
        if path.parent.name == "transports":
            continue  # messages to QEMU, which are not accesses of an endpoint's door
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in places:
                    argument = node.args[places[name]]
                    yield from (str(each.value) for each in ast.walk(argument) if isinstance(each, ast.Constant))


def test_reasons_that_are_raised_are_the_words_of_the_schema_and_of_the_traces_filter() -> None:
    reasons = schema().types["RefusalReason"]
    assert isinstance(reasons, Enum)

    raised = set(_raised_words())

    assert raised >= PROVOKED.keys()
    assert raised == {value.name for value in reasons.values} == set(DMA_REASONS)


@pytest.mark.parametrize(
    ("isolation", "bypass", "forced"), [("required", False, True), ("preferred", True, False), ("off", True, False)]
)
async def test_every_query_shows_the_policy(tmp_path: Path, isolation: Isolation, bypass: bool, forced: bool) -> None:
    rig = Rig(tmp_path / "run", isolation)

    (unit,), (endpoint,), (state,) = rig.ask("query-units"), rig.ask("query-endpoints"), rig.ask("query-iommu")
    status = rig.ask("query-status")
    rig.app.close()

    required = isolation == "required"
    assert {shown["isolation"] for shown in (unit, endpoint, state, status)} == {isolation}
    assert (unit["bypass"], unit["bypass-offered"]) == (bypass, not required)
    assert (unit["force-aperture"], state["force-aperture"]) == (forced, forced)
    assert (unit["revalidate"], state["revalidate"]) == (required, required)
    assert endpoint["path"] == ("untranslated" if bypass else "blocked")


async def test_the_path_of_an_endpoint_follows_its_domain(rig: Rig) -> None:
    engine, seen = rig.unit.engine, []
    for domain, flags in ((1, 0), (2, viommu.ATTACH_F_BYPASS)):
        attach(engine, domain, ACCEL, flags)
        seen.append(rig.ask("query-endpoints")[0]["path"])
    engine.table.detach(2, ACCEL)
    engine.write_bypass(0)

    assert [*seen, rig.ask("query-endpoints")[0]["path"]] == ["translated", "untranslated", "blocked"]


async def test_regions_that_force_aperture_adds_are_shown_with_the_endpoint_and_its_group(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "run", forced=True)

    (endpoint,), (group,) = rig.ask("query-endpoints"), rig.ask("query-groups")
    rig.app.close()

    outside = {"start": INPUT_STOP, "end": (1 << 64) - 1, "kind": "reserved"}
    assert endpoint["reserved"] == group["reserved"]
    assert endpoint["reserved"][-1] == outside
    assert endpoint["probe"].endswith(viommu.resv_mem(INPUT_STOP, 1 << 64, is_msi=False).hex())
