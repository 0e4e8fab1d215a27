"""Config to cores: every value arrives, every part knows its neighbours, and what cannot be built says why."""

from __future__ import annotations

import pytest

from tests.support.pasid_allocator import PlainAllocator
from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, Limits, PasidsConfig, Reserved, SlotConfig, UnitConfig, VmConfig
from vdev.endpoints.rng import Rng
from vdev.errors import ConfigError, TranslationFault
from vdev.functions.base import Worker
from vdev.functions.vhost import VhostCarrier
from vdev.functions.virtio_pci import VirtioPciFunction
from vdev.iommu.events import Event, FaultRaised
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.settings import PasidSettings
from vdev.virtio.ordering import NoOrdering
from vdev.wire import pci, viommu
from vdev.wire.accelerator import Register
from vdev.wire.viommu_pasid import FEATURES

BEHIND_TWO = Config(
    units=(UnitConfig(name="iommu0"), UnitConfig(name="iommu1", bdf="00:11.0")),
    endpoints=(
        EndpointConfig(name="accel0"),
        EndpointConfig(name="accel1", unit="iommu1", bdf="02:00.0"),
        EndpointConfig(name="accel2", bdf="00:12.0"),
    ),
)


class Built:
    """A machine, and what it told the world."""

    def __init__(self, config: Config, pasids: PasidSet | None = None) -> None:
        self.events: list[Event] = []
        self.woken: list[str] = []
        self.alarms: list[tuple[str, int]] = []
        self.machine = Machine(
            config,
            emit=self.events.append,
            wake=self._wake,
            wake_at=self._wake_at,
            ordering=NoOrdering(),
            pasids=pasids,
        )

    def _wake(self, worker: Worker) -> None:
        self.woken.append(worker.name)

    def _wake_at(self, worker: Worker, when_ns: int) -> None:
        self.alarms.append((worker.name, when_ns))


def one(unit: UnitConfig, *endpoints: EndpointConfig) -> Built:
    return Built(Config(units=(unit,), endpoints=endpoints))


def test_functions_are_units_then_endpoints_by_their_names() -> None:
    built = Built(BEHIND_TWO)

    assert list(built.machine.functions) == ["iommu0", "iommu1", "accel0", "accel2", "accel1"]
    assert [function.name for function in built.machine.functions.values()] == list(built.machine.functions)


def test_each_endpoint_is_known_by_its_address_at_its_own_unit() -> None:
    units = Built(BEHIND_TWO).machine.units

    found = {
        name: {door.endpoint_id: endpoint for endpoint, door in unit.doors.items()} for name, unit in units.items()
    }
    assert found == {"iommu0": {0x100: "accel0", 0x12 << 3: "accel2"}, "iommu1": {0x200: "accel1"}}
    known = {name: {end["id"] for end in unit.engine.describe()["endpoints"]} for name, unit in units.items()}
    assert known == {"iommu0": {0x100, 0x12 << 3}, "iommu1": {0x200}}


def test_every_setting_of_a_unit_arrives() -> None:
    limits = Limits(
        max_domains=3,
        max_mappings_per_domain=5,
        max_mappings=6,
        max_pairs=11,
        max_pending_faults=7,
        max_request_nbytes=800,
    )
    unit = UnitConfig(
        name="iommu0",
        mode="strict",
        granule="64K",
        input_range=(0x1_0000, 0xFFFF_FFFF),
        domain_range=(2, 9),
        bypass="off",
        mmio=False,
        probe_size=128,
        limits=limits,
    )

    settings = one(unit).machine.units["iommu0"].engine.settings

    assert (settings.name, settings.mode, settings.probe_size, settings.mmio) == ("iommu0", "strict", 128, False)
    assert settings.page_size_mask == (1 << 64) - (1 << 16)
    # inclusive in the configuration, half-open inside
    assert (settings.input_start, settings.input_stop) == (0x1_0000, 1 << 32)
    assert (settings.domain_start, settings.domain_stop) == (2, 10)
    assert (settings.bypass_offered, settings.boot_bypass) == (True, False)
    assert {name: getattr(settings.limits, name) for name in limits.__struct_fields__} == {
        name: getattr(limits, name) for name in limits.__struct_fields__
    }


@pytest.mark.parametrize(
    ("bypass", "offered", "at_boot"), [("on", True, True), ("off", True, False), ("not-offered", False, False)]
)
def test_bypass_is_offered_and_set_as_configured(bypass: str, offered: bool, at_boot: bool) -> None:
    unit = one(UnitConfig(name="iommu0", bypass=bypass)).machine.units["iommu0"]  # type: ignore[arg-type]

    assert bool(unit.device.offered_features & viommu.F_BYPASS_CONFIG) == offered
    assert unit.engine.bypass == at_boot


def test_a_granule_of_one_byte_is_all_ones() -> None:
    assert one(UnitConfig(name="iommu0", granule=1)).machine.units["iommu0"].engine.settings.page_size_mask == 2**64 - 1


def test_regions_of_the_unit_and_of_the_endpoint_are_reserved_for_it_alone() -> None:
    built = one(
        UnitConfig(name="iommu0"),
        EndpointConfig(name="accel0", reserved=(Reserved(start=0x1000, end=0x1FFF),)),
        EndpointConfig(name="accel1", bdf="02:00.0"),
    )
    unit = built.machine.units["iommu0"]
    request = [viommu.Probe(viommu.T_PROBE, bytes(3), endpoint).pack() for endpoint in (0x100, 0x200)]

    answers = [unit.engine.handle(probe, 516) for probe in request]

    msi = viommu.resv_mem(0xFEE0_0000, 0xFEF0_0000, is_msi=True)
    assert answers[0].startswith(msi + viommu.resv_mem(0x1000, 0x2000, is_msi=False) + bytes(4))
    assert answers[1].startswith(msi + bytes(4))


def test_a_fault_is_recorded_and_wakes_the_unit_it_belongs_to() -> None:
    built = Built(BEHIND_TWO)
    unit = built.machine.units["iommu1"]
    unit.engine.write_bypass(0)
    unit.endpoints["accel1"].config_write(pci.COMMAND, pci.Command.BUS_MASTER.to_bytes(2, "little"))
    built.woken.clear()
    built.events.clear()

    with pytest.raises(TranslationFault):
        unit.doors["accel1"].read(0x5000, 4)

    assert built.events == [FaultRaised("iommu1", 0x200, "no-domain", 1, 0x5000)]
    assert built.woken == ["iommu1"]
    assert unit.describe()["functions"]["accel1"]["refused"] == {"no-domain": 1}


def test_a_reset_of_one_unit_stops_its_own_endpoints_only() -> None:
    machine = Built(BEHIND_TWO).machine
    for unit in machine.units.values():
        for endpoint in unit.endpoints.values():
            endpoint.config_write(pci.COMMAND, pci.Command.BUS_MASTER.to_bytes(2, "little"))
            endpoint.bar_write(0, 0x20, (2).to_bytes(4, "little"))
            endpoint.bar_write(0, 0x10, (1).to_bytes(4, "little"))

    machine.units["iommu0"].function.reset()

    running = {
        name: endpoint.describe()["running"]
        for unit in machine.units.values()
        for name, endpoint in unit.endpoints.items()
    }
    assert running == {"accel0": False, "accel1": True, "accel2": False}


def test_a_unit_describes_itself_and_all_behind_it_in_plain_data() -> None:
    found = Built(BEHIND_TWO).machine.units["iommu0"].describe()

    assert (found["unit"], found["bdf"], found["mappings"]) == ("iommu0", "00:10.0", 0)
    assert set(found["functions"]) == {"accel0", "accel2"}
    assert found["functions"]["accel0"]["endpoint"] == 0x100


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"endpoints\[accel0\]\.model.*'nic'.*accelerator"):
        one(UnitConfig(name="iommu0"), EndpointConfig(name="accel0", model="nic"))


def test_a_wrong_option_names_the_endpoint_and_the_key() -> None:
    with pytest.raises(ConfigError, match=r"endpoints\[accel0\]\.options\.devmen.*devmem"):
        one(UnitConfig(name="iommu0"), EndpointConfig(name="accel0", options={"devmen": "1M"}))


def test_an_endpoint_shows_its_domain_and_the_mappings_in_it() -> None:
    unit = Built(BEHIND_TWO).machine.units["iommu0"]
    requests = [
        viommu.Attach(viommu.T_ATTACH, bytes(3), 5, 0x100).pack(),
        viommu.Map(viommu.T_MAP, bytes(3), 5, 0x1000, 0x1FFF, 0, viommu.MAP_F_READ).pack(),
    ]
    for request in requests:
        assert unit.engine.handle(request, 4) == viommu.TAILS[viommu.S_OK]

    functions = unit.describe()["functions"]

    assert (functions["accel0"]["domain"], functions["accel0"]["mappings"]) == (5, 1)
    assert (functions["accel2"]["domain"], functions["accel2"]["mappings"]) == (None, 0)


def test_an_rng_is_built_with_its_options_and_asks_the_machine_for_time() -> None:
    options: dict[str, int | str | bool] = {"source": "seed:3", "max_bytes": 64}
    built = one(UnitConfig(name="iommu0"), EndpointConfig(name="rng0", model="rng", options=options))
    function = built.machine.units["iommu0"].endpoints["rng0"]
    assert isinstance(function, Rng)

    function.wake_device_at(77)
    function.wake_device(function)

    assert built.alarms == [("rng0", 77)]
    assert built.woken == ["rng0"]
    assert not function.describe()["driver-ok"]


def test_a_unit_is_carried_as_its_configuration_says() -> None:
    built = Built(
        Config(units=(UnitConfig(name="iommu0", attach="vhost-user"), UnitConfig(name="iommu1", bdf="00:11.0")))
    )

    assert isinstance(built.machine.units["iommu0"].function, VhostCarrier)
    assert isinstance(built.machine.units["iommu1"].function, VirtioPciFunction)


def test_dma_is_held_until_its_last_holder_lets_go() -> None:
    unit = one(UnitConfig(name="iommu0"), EndpointConfig(name="accel0")).machine.units["iommu0"]
    door, states = unit.doors["accel0"], []

    for holder, held in (("a", True), ("b", True), ("a", False), ("b", False)):
        unit.freezer.set(holder, held)
        states.append(door.frozen)

    assert states == [True, True, True, False]


def test_only_the_reset_qemu_asks_for_counts_as_the_machines() -> None:
    seen: list[str] = []
    unit = one(UnitConfig(name="iommu0"), EndpointConfig(name="accel0")).machine.units["iommu0"]
    endpoint = unit.endpoints["accel0"]
    endpoint.was_device_reset = lambda: seen.append("device reset")
    pcie = endpoint.config_read(0x34, 1)[0]

    endpoint.config_write(pcie + 8, (1 << 15).to_bytes(2, "little"))  # FLR
    endpoint.disconnected()
    before = list(seen)
    endpoint.reset()

    assert (before, seen) == ([], ["device reset"])


PASIDS = VmConfig(pasids=PasidsConfig())


def with_pasids(*endpoints: EndpointConfig) -> tuple[Built, PlainAllocator]:
    allocator = PlainAllocator()
    config = Config(vm=PASIDS, units=(UnitConfig(name="iommu0"),), endpoints=endpoints)
    return Built(config, PasidSet(allocator)), allocator


def test_pasids_are_offered_by_every_unit_of_a_vm_with_a_set_and_by_no_other() -> None:
    units = (UnitConfig(name="iommu0"), UnitConfig(name="iommu1", bdf="00:11.0"))
    pasids = PasidSet(PlainAllocator())
    with_set = Built(Config(vm=PASIDS, units=units), pasids).machine
    without = Built(Config(units=units)).machine

    assert [unit.engine.offered_features & FEATURES for unit in with_set.units.values()] == [FEATURES] * 2
    assert [unit.engine.offered_features & FEATURES for unit in without.units.values()] == [0] * 2
    assert {unit.engine.pasids.set for unit in with_set.units.values()} == {pasids}
    assert without.kernel_pasids is None


def test_what_an_endpoints_capability_and_configuration_say_of_pasids_arrives_at_its_unit() -> None:
    options: dict[str, int | str | bool] = {"pasid_bits": 9, "pasid_execute": True}
    built, _ = with_pasids(
        EndpointConfig(name="a", bdf="01:00.0", dma="pasid_only", reserved_pasids=("0x10..0x1f",), options=options),
        EndpointConfig(name="b", bdf="02:00.0", options={"pasid_privileged": True}),
        EndpointConfig(name="c", bdf="03:00.0", options={"pasid_bits": 0}),
        EndpointConfig(name="d", bdf="04:00.0", model="rng"),
    )

    unit = built.machine.units["iommu0"]
    known = [unit.engine.table.endpoints[number].pasid for number in (0x100, 0x200, 0x300, 0x400)]

    assert known == [
        PasidSettings(9, execute=True, only=True, reserved=((0x10, 0x20),)), PasidSettings(20, privileged=True), None,
        None,
    ]  # fmt: skip
    assert [door.pasid_only for door in unit.doors.values()] == [True, False, False, False]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (EndpointConfig(name="e", model="rng", kernel_pasid=True), "kernel_pasid"),
        (EndpointConfig(name="e", dma="pasid_only", options={"pasid_bits": 0}), "dma"),
        (EndpointConfig(name="e", model="rng", reserved_pasids=(5,)), "reserved_pasids"),
    ],
)
def test_keys_that_need_a_pasid_capability_are_refused_where_there_is_none(given: EndpointConfig, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_pasids(given)

    assert str(caught.value).startswith(f"endpoints[e].{key}: e has no PASID capability (leave it out; ")


def test_a_kernel_pasid_is_shown_by_its_endpoint_those_that_come_later_included() -> None:
    slots = (SlotConfig(bdf="02:00.0"),)
    endpoints = (EndpointConfig(name="a", bdf="01:00.0", kernel_pasid=True),)
    allocator = PlainAllocator()
    config = Config(vm=PASIDS, units=(UnitConfig(name="iommu0"),), endpoints=endpoints, slots=slots)
    machine = Built(config, PasidSet(allocator)).machine
    assert machine.kernel_pasids is not None
    machine.kernel_pasids.open()
    machine.add_endpoint(EndpointConfig(name="b", bdf="02:00.0", kernel_pasid=True))
    allocator.answer()

    functions = machine.units["iommu0"].endpoints
    shown = [functions[name].bar_read(0, Register.KERNEL_PASID, 4) for name in ("a", "b")]
    machine.remove_endpoint("b")

    assert shown == [b"\1\0\0\0", b"\2\0\0\0"]
    assert allocator.released() == [2]
    assert machine.kernel_pasids.describe() == [{"endpoint": "a", "pasid": 1}]
