"""The commands about the IOMMU on a machine without sockets: replies are as the schema says, errors have cures."""

from __future__ import annotations

import gc
from typing import Any

import msgspec
import pytest

from tests.support.iommu_requests import attach, map_
from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, Isolation, UnitConfig, VmConfig
from vdev.control.iommu_actions import iommu_actions
from vdev.control.iommu_queries import iommu_queries
from vdev.control.iommu_units import MAX_LIMIT
from vdev.errors import ConfigError, TranslationFault
from vdev.iommu.events import BypassChanged, UnitReset
from vdev.memory import Region
from vdev.qapi.check import check_arguments, check_return
from vdev.qapi.schema import schema
from vdev.virtio.ordering import NoOrdering
from vdev.wire import pci, viommu

ONE = Config(
    units=(UnitConfig(name="iommu0"),),
    endpoints=(EndpointConfig(name="accel0"), EndpointConfig(name="accel1", bdf="02:00.0")),
)
TWO = Config(
    units=(UnitConfig(name="iommu0"), UnitConfig(name="iommu1", bdf="00:11.0", attach="vhost-user")),
    endpoints=(EndpointConfig(name="accel0"), EndpointConfig(name="accel1", unit="iommu1", bdf="02:00.0")),
)
ACCEL0, ACCEL1 = 0x100, 0x200
PAGE = 4096
BIG = 100_000  # mappings


class Rig:
    """A machine and its commands; `ask` checks arguments and reply against the schema."""

    def __init__(self, config: Config = ONE) -> None:
        self.events: list[object] = []
        self.config_changes: list[str] = []
        self.machine = Machine(
            config,
            emit=self.events.append,
            wake=lambda worker: None,
            wake_at=lambda worker, when_ns: None,
            ordering=NoOrdering(),
        )
        self.commands = {**iommu_queries(self.machine.units), **iommu_actions(self.machine.units)}
        for name, unit in self.machine.units.items():
            unit.engine.set_features(-1)
            changes = lambda name=name: self.config_changes.append(name)  # noqa: E731
            unit.function.config_changed = changes  # type: ignore[method-assign]

    def ask(self, command: str, **arguments: Any) -> Any:
        described = schema().commands[command]
        given = {name.rstrip("_").replace("_", "-"): value for name, value in arguments.items()}
        reply = msgspec.to_builtins(self.commands[command].answer(**check_arguments(described, given)))
        check_return(described.returns, reply)
        return reply

    def bus_master(self, endpoint: str) -> None:
        unit = next(unit for unit in self.machine.units.values() if endpoint in unit.endpoints)
        unit.endpoints[endpoint].config_write(pci.COMMAND, pci.Command.BUS_MASTER.to_bytes(2, "little"))


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def mapped(rig: Rig) -> Rig:
    """accel0 in domain 7 with ten pages, every other one mapped, to RAM at 0x10000."""
    unit = rig.machine.units["iommu0"]
    attach(unit.engine, 7, ACCEL0)
    for page in range(0, 20, 2):
        map_(unit.engine, 7, page * PAGE, (page + 1) * PAGE - 1, 0x10000 + page * PAGE, 1 + page % 3)
    unit.endpoints["accel0"].memory.add(Region(0x10000, 20 * PAGE, memoryview(bytearray(20 * PAGE))))
    rig.bus_master("accel0")
    return rig


def test_units_tell_what_they_offer_and_count(mapped: Rig) -> None:
    unit = mapped.machine.units["iommu0"]
    unit.device.dropped_faults = 2
    attach(unit.engine, 7, 0x999)  # NOENT

    (found,) = mapped.ask("query-units")

    assert (found["unit"], found["bdf"], found["attach"], found["mode"]) == ("iommu0", "00:10.0", "vfio-user", "compat")
    assert (found["granule"], found["input-end"], found["domain-end"]) == (4096, (1 << 39) - 1, (1 << 32) - 1)
    assert (found["domains"], found["mappings"], found["endpoints"]) == (1, 10, 2)
    assert found["features-accepted"] == found["features-offered"] == unit.engine.offered_features
    counters = found["counters"]
    assert {"name": "MAP", "count": 10} in counters["requests"]
    assert counters["refused"] == [{"name": "NOENT", "count": 1}]
    assert counters["faults-dropped"] == 2


def test_one_unit_of_two_can_be_asked_for() -> None:
    rig = Rig(TWO)

    assert [unit["unit"] for unit in rig.ask("query-units")] == ["iommu0", "iommu1"]
    assert [unit["attach"] for unit in rig.ask("query-units", unit="iommu1")] == ["vhost-user"]


def test_domains_come_by_rising_id_a_page_at_a_time(rig: Rig) -> None:
    engine = rig.machine.units["iommu0"].engine
    attach(engine, 9, ACCEL0)
    attach(engine, 4, ACCEL1, viommu.ATTACH_F_BYPASS)

    first = rig.ask("query-domains", limit=1)
    second = rig.ask("query-domains", from_=first["next"], limit=1)

    assert first["domains"] == [{"id": 4, "bypass": True, "endpoints": ["accel1"], "pairs": 0, "mappings": 0}]
    assert second == {"domains": [{"id": 9, "bypass": False, "endpoints": ["accel0"], "pairs": 0, "mappings": 0}]}


def test_pages_of_mappings_make_up_all_of_them(mapped: Rig) -> None:
    pages, start = [], 0
    while True:
        page = mapped.ask("query-mappings", domain=7, from_=start, limit=3)
        pages.append(page["mappings"])
        if "next" not in page:
            break
        start = page["next"]

    assert [len(page) for page in pages] == [3, 3, 3, 1]
    found = [mapping for page in pages for mapping in page]
    assert [mapping["virt-start"] for mapping in found] == [page * PAGE for page in range(0, 20, 2)]
    assert found[1] == {"virt-start": 0x2000, "virt-end": 0x2FFF, "phys-start": 0x12000, "flags": ["read", "write"]}
    assert [found[0]["flags"], found[2]["flags"]] == [["read"], ["write"]]
    assert page["total"] == 10


@pytest.mark.parametrize(("start", "first"), [(0x2FFF, 0x2000), (0x3000, 0x4000), (0x1FFF, 0x2000)])
def test_a_page_begins_with_the_mapping_that_contains_the_address_or_the_next(
    mapped: Rig, start: int, first: int
) -> None:
    assert mapped.ask("query-mappings", domain=7, from_=start, limit=1)["mappings"][0]["virt-start"] == first


def test_a_page_from_behind_the_last_mapping_is_empty_and_the_last(mapped: Rig) -> None:
    assert mapped.ask("query-mappings", domain=7, from_=1 << 40) == {"mappings": [], "total": 10}


def test_a_page_of_very_many_mappings_looks_at_few_of_them(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rig.machine.units["iommu0"].engine
    attach(engine, 7, ACCEL0)
    for page in range(BIG):
        engine.table.map(7, page * PAGE, (page + 1) * PAGE, 0, 3)
    monkeypatch.setattr("vdev.iommu.intervals.IntervalMap.__iter__", None)  # nobody walks all of them

    page = rig.ask("query-mappings", domain=7, from_=77_777 * PAGE, limit=2)

    assert [mapping["virt-start"] // PAGE for mapping in page["mappings"]] == [77_777, 77_778]
    assert (page["next"], page["total"]) == (77_779 * PAGE, BIG)


def test_the_largest_pages_do_not_start_the_garbage_collector(rig: Rig) -> None:
    engine = rig.machine.units["iommu0"].engine
    attach(engine, 7, ACCEL0)
    for page in range(MAX_LIMIT):
        engine.table.map(7, page * PAGE, (page + 1) * PAGE, 0, 3)
    answer = rig.commands["query-mappings"].answer
    gc.collect()
    before = gc.get_count()[0]

    found: Any = answer(domain=7, limit=MAX_LIMIT)

    assert gc.get_count()[0] - before < 100
    assert len(found["mappings"]) == MAX_LIMIT


def test_waiting_faults_are_shown_oldest_first_with_names(rig: Rig) -> None:
    engine = rig.machine.units["iommu0"].engine
    for number, iova in ((ACCEL0, 0x1000), (ACCEL1, 0x2000), (0x999, 0x3000)):
        engine.fault(number, TranslationFault(viommu.FAULT_R_MAPPING, "not-mapped", iova), 2)

    found = rig.ask("query-faults")

    assert [fault["address"] for fault in found] == [0x1000, 0x2000, 0x3000]
    assert [fault.get("endpoint") for fault in found] == ["accel0", "accel1", None]
    assert found[0] == {
        "unit": "iommu0", "reason": "mapping", "id": ACCEL0, "endpoint": "accel0", "flags": ["write"],
        "address": 0x1000,
    }  # fmt: skip
    assert rig.ask("query-faults", limit=1) == found[:1]
    assert len(engine.pending_faults) == 3


def test_requests_of_a_unit_without_a_driver_are_out_of_reach(rig: Rig) -> None:
    assert rig.ask("query-requests") == [{"unit": "iommu0", "held": 0}]


def test_translate_shows_each_step_and_where_it_leads(mapped: Rig) -> None:
    told = mapped.ask("translate", endpoint="accel0", iova=0x2010, nbytes=16, access="write")

    assert [step["step"] for step in told["steps"]] == [
        "endpoint", "bus-master", "frozen", "domain", "mapping", "permission", "memory",
    ]  # fmt: skip
    assert told["pieces"] == [{"iova": 0x2010, "gpa": 0x12010, "nbytes": 16, "memory": "ram"}]
    assert told["allowed"]
    assert "reason" not in told


def test_translate_tells_the_reason_and_the_fault(mapped: Rig) -> None:
    told = mapped.ask("translate", endpoint="accel0", iova=0x2FFF, nbytes=2)

    assert (told["allowed"], told["reason"], told["fault"]) == (False, "not-mapped", "mapping")
    assert told["steps"][-1] == {"step": "mapping", "ok": False, "text": "no mapping contains 0x3000"}
    assert told["pieces"] == [{"iova": 0x2FFF, "gpa": 0x12FFF, "nbytes": 1, "memory": "ram"}]


def test_translate_says_who_holds_the_dma(mapped: Rig) -> None:
    mapped.machine.units["iommu0"].freezer.set("VM stopped", True)

    told = mapped.ask("translate", endpoint="accel0", iova=0x2000)

    assert (told["reason"], told["steps"][-1]["text"]) == ("frozen", "its DMA is held (VM stopped)")
    assert "fault" not in told


def test_translate_begins_at_the_bus(rig: Rig) -> None:
    told = rig.ask("translate", endpoint="accel1", iova=0)

    assert (told["reason"], [step["step"] for step in told["steps"]]) == ("bus-master-off", ["endpoint", "bus-master"])


def test_bypass_is_set_and_the_driver_told_once() -> None:
    rig = Rig(TWO)

    for _ in range(2):
        assert rig.ask("set-bypass", bypass=False, unit="iommu1") == {}

    assert [rig.machine.units[name].engine.bypass for name in ("iommu0", "iommu1")] == [True, False]
    assert rig.config_changes == ["iommu1"]
    assert rig.events == [BypassChanged("iommu1", False)]


def test_a_drivers_write_of_bypass_is_the_same_event(rig: Rig) -> None:
    engine = rig.machine.units["iommu0"].engine
    for value in (0, 0, 7, 1):
        engine.write_bypass(value)

    assert rig.events == [BypassChanged("iommu0", False), BypassChanged("iommu0", True)]


def test_reset_unit_stops_dma_first_and_leaves_nothing_but_features(mapped: Rig) -> None:
    unit = mapped.machine.units["iommu0"]
    engine = unit.engine
    engine.fault(ACCEL0, TranslationFault(viommu.FAULT_R_MAPPING, "not-mapped", 0), 2)
    order: list[object] = []
    unit.endpoints["accel0"].quiesce = lambda: order.append(len(engine.table.domains))  # type: ignore[method-assign]
    mapped.ask("set-bypass", bypass=False)
    mapped.config_changes.clear()

    assert mapped.ask("reset-unit") == {}

    (after,) = mapped.ask("query-units")
    assert order == [1]
    assert (after["domains"], after["mappings"], after["pending-faults"], after["bypass"]) == (0, 0, 0, True)
    assert after["features-accepted"] == engine.offered_features
    assert mapped.events[-1] == UnitReset("iommu0", "host")
    assert mapped.config_changes == ["iommu0"]  # bypass has another value
    assert map_(engine, 7, 0, PAGE - 1) == viommu.S_NOENT


def test_reset_unit_can_tell_the_driver_over_vfio_user(rig: Rig) -> None:
    rig.ask("reset-unit", needs_reset=True)

    function = rig.machine.units["iommu0"].function
    assert function.status & 0x40  # type: ignore[union-attr]
    assert rig.config_changes == ["iommu0"]


TWICE = "there are 2 of them (name one: iommu0, iommu1)"
ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("query-units", {"unit": "x"}, "unit: there is no unit 'x' (known: iommu0, iommu1)"),
    ("query-domains", {}, f"unit: {TWICE}"),
    ("query-domains", {"unit": "iommu0", "limit": 0}, "limit: 0 is not in 1..4096"),
    ("query-domains", {"unit": "x"}, "unit: there is no unit 'x' (known: iommu0, iommu1)"),
    ("query-mappings", {"domain": 7}, f"unit: {TWICE}"),
    ("query-mappings", {"domain": 7, "unit": "iommu0", "limit": 4097}, "limit: 4097 is not in 1..4096"),
    (
        "query-mappings", {"domain": 7, "unit": "iommu0"},
        "domain: iommu0 has no domain 7 (query-domains lists them)",
    ),
    ("query-faults", {"unit": "x"}, "unit: there is no unit 'x' (known: iommu0, iommu1)"),
    ("query-faults", {"limit": -1}, "limit: -1 is not in 1..4096"),
    ("query-requests", {"unit": "x"}, "unit: there is no unit 'x' (known: iommu0, iommu1)"),
    (
        "translate", {"endpoint": "iommu0", "iova": 0},
        "endpoint: there is no endpoint 'iommu0' (known: accel0, accel1)",
    ),
    ("translate", {"endpoint": "accel0", "iova": 0, "nbytes": 0}, "nbytes: 0 is not in 1..1048576"),
    ("translate", {"endpoint": "accel0", "iova": 0, "nbytes": 1048577}, "nbytes: 1048577 is not in 1..1048576"),
    ("set-bypass", {"bypass": True}, f"unit: {TWICE}"),
    ("reset-unit", {}, f"unit: {TWICE}"),
    (
        "reset-unit", {"unit": "iommu1", "needs_reset": True},
        "needs-reset: iommu1 is attached by vhost-user, which cannot tell a driver DEVICE_NEEDS_RESET (leave it out)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("command", "arguments", "text"), ERRORS)
def test_what_cannot_be_is_refused_with_the_cure(command: str, arguments: dict[str, Any], text: str) -> None:
    rig = Rig(TWO)

    with pytest.raises(ConfigError) as caught:
        rig.ask(command, **arguments)

    assert str(caught.value) == text
    assert rig.events == []


def test_bypass_that_is_not_offered_cannot_be_set() -> None:
    rig = Rig(Config(units=(UnitConfig(name="iommu0", bypass="not-offered"),), endpoints=ONE.endpoints))

    with pytest.raises(ConfigError, match=r"does not offer BYPASS_CONFIG.*set units\[\]\.bypass to on or off"):
        rig.ask("set-bypass", bypass=True)

    assert not rig.machine.units["iommu0"].engine.bypass


@pytest.mark.parametrize(
    ("isolation", "bypass", "text"),
    [
        (
            "required", True,
            "bypass: iommu0 does not offer BYPASS_CONFIG, so endpoints without a domain never bypass "
            "(set vm.isolation to preferred in the configuration)",
        ),
        (
            "off", False,
            "bypass: false contradicts vm.isolation: off, which isolates nothing "
            "(set vm.isolation to preferred in the configuration)",
        ),
    ],
)  # fmt: skip
def test_bypass_is_not_set_against_the_policy(isolation: Isolation, bypass: bool, text: str) -> None:
    rig = Rig(Config(vm=VmConfig(isolation=isolation), units=ONE.units, endpoints=ONE.endpoints))

    with pytest.raises(ConfigError) as caught:
        rig.ask("set-bypass", bypass=bypass)

    assert str(caught.value) == text
    assert rig.machine.units["iommu0"].engine.bypass is not bypass
