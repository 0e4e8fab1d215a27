"""PASIDs: features, configuration, properties and settings (docs/virtio-iommu-pasid.md, sections 2, 3 and 5)."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.support.iommu_requests import probe_request
from tests.support.pasid_allocator import TERMS
from tests.support.pasid_requests import (
    ACCEL,
    HOLED,
    NARROW,
    NEITHER,
    UNIT,
    UNMANAGED,
    Vm,
    alloc_request,
    attach_request,
    detach_request,
    free_request,
)
from vdev.errors import ConfigError
from vdev.iommu.engine import Engine
from vdev.iommu.settings import EndpointSettings, PasidSettings, UnitSettings
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire
from vdev.wire.viommu import S_NOMEM, S_OK, S_UNSUPP

ALL_REQUESTS = (
    attach_request(1, ACCEL, 1), detach_request(1, ACCEL, 1), alloc_request(1, 9), free_request(1, 9),
)  # fmt: skip


def test_p1_without_the_feature_there_are_no_requests_fields_or_properties() -> None:
    vm, stock = Vm(accept=NEITHER), Engine(replace(UNIT, pasids=False), ())

    answers = [vm.unit.handle(request, 12) for request in ALL_REQUESTS]

    assert answers == [wire.TAILS[S_UNSUPP]] * 4
    assert vm.unit.config_bytes() == stock.config_bytes()
    assert wire.PROBE_T_RESV_MEM in dict(wire.properties(probe(vm, HOLED)))
    assert pasid_wire.PROBE_T_PASID not in dict(wire.properties(probe(vm, HOLED)))


def test_p1_in_strict_mode_they_are_unknown_types() -> None:
    vm = Vm(replace(UNIT, mode="strict"), accept=NEITHER)

    answers = [vm.unit.handle(request, 12) for request in ALL_REQUESTS]

    assert answers == [b""] * 4


@pytest.mark.parametrize("missing", [wire.F_MAP_UNMAP, wire.F_PROBE, pasid_wire.F_PASID])
def test_p2_a_feature_without_what_it_depends_on_counts_as_not_accepted(missing: int) -> None:
    vm = Vm(accept=~missing)

    assert not vm.unit.takes_features(~missing)
    assert not vm.unit.pasids.is_accepted
    assert vm.send(alloc_request(1, 9), 12) == wire.TAILS[S_UNSUPP]


def test_p3_in_a_system_space_the_driver_allocates_or_does_without() -> None:
    system = replace(TERMS, space="system")
    unmanaged, managed = Vm(accept=UNMANAGED, terms=system), Vm(terms=system)

    assert not unmanaged.unit.takes_features(UNMANAGED)
    assert unmanaged.attach(1, ACCEL, 5) == S_UNSUPP
    assert managed.unit.takes_features(-1)
    assert managed.alloc() == 1


def test_p4_the_fields_are_zero_until_the_feature_is_accepted() -> None:
    vm = Vm(accept=NEITHER)

    before = vm.unit.config_bytes()[pasid_wire.CONFIG_OFFSET :]
    vm.unit.set_features(-1)
    after = vm.unit.config_bytes()[pasid_wire.CONFIG_OFFSET :]

    assert (before, len(after)) == (bytes(24), 24)
    assert struct.unpack("<IIIIB7x", after) == (8, 0, 1, 0xFFFFF, 1)


def test_p4_a_reset_makes_them_zero_again() -> None:
    vm = Vm()
    vm.alloc()

    vm.unit.device_reset()

    assert vm.unit.config_bytes()[pasid_wire.CONFIG_OFFSET :] == bytes(24)


def test_the_fields_tell_what_is_used_and_the_space() -> None:
    vm = Vm(terms=replace(TERMS, space="system", first=0x10, stop=0x20))
    vm.alloc()

    fields = pasid_wire.PasidConfig.parse(vm.unit.config_bytes(), pasid_wire.CONFIG_OFFSET)

    assert fields == pasid_wire.PasidConfig(8, 1, 0x10, 0x1F, pasid_wire.SPACE_SYSTEM)


def test_p5_a_change_of_the_quota_is_told_to_a_driver_that_knows_of_it() -> None:
    told, untold = Vm(), Vm(accept=NEITHER)
    heard: list[str] = []
    told.unit.config_changed = lambda: heard.append("told")
    untold.unit.config_changed = lambda: heard.append("untold")

    told.allocator.change(quota=9)
    told.allocator.change(quota=9)
    told.alloc()
    untold.allocator.change(quota=9)

    assert heard == ["told"]


def test_p6_a_quota_below_what_is_used_takes_nothing_away() -> None:
    vm = Vm()
    pasids = [vm.alloc() for _ in range(4)]

    vm.allocator.change(quota=2)

    assert vm.alloc() == -S_NOMEM
    assert [vm.attach(1, ACCEL, pasid) for pasid in pasids] == [S_OK] * 4
    assert pasid_wire.PasidConfig.parse(vm.unit.config_bytes(), pasid_wire.CONFIG_OFFSET).used == 4
    assert vm.free(1, 3) == (3, S_OK)


def probe(vm: Vm, endpoint: int) -> bytes:
    return vm.unit.handle(probe_request(endpoint), vm.unit.settings.probe_size + wire.TAIL_NBYTES)[: -wire.TAIL_NBYTES]


# PROBE


def test_p40_an_endpoint_with_pasids_has_one_property_of_them() -> None:
    only = EndpointSettings(0x200, "only", (), PasidSettings(16, execute=True, privileged=True, only=True))
    vm = Vm(endpoints=(only, EndpointSettings(0x208, "plain", (), PasidSettings(1)), EndpointSettings(0x210, "none")))

    told = {endpoint: list(wire.properties(probe(vm, endpoint))) for endpoint in (0x200, 0x208, 0x210)}

    assert told == {
        0x200: [(pasid_wire.PROBE_T_PASID, bytes([16, 7, 0, 0]))],
        0x208: [(pasid_wire.PROBE_T_PASID, bytes([1, 0, 0, 0]))],
        0x210: [],
    }


def test_p41_every_reserved_range_has_a_property() -> None:
    vm = Vm()

    told = list(wire.properties(probe(vm, NARROW)))

    assert told == [
        (pasid_wire.PROBE_T_PASID, bytes([4, 0, 0, 0])),
        (pasid_wire.PROBE_T_RESV_PASID, struct.pack("<II", 3, 4)),
        (pasid_wire.PROBE_T_RESV_PASID, struct.pack("<II", 14, 15)),
    ]


# settings


@pytest.mark.parametrize(
    "given",
    [
        PasidSettings(0), PasidSettings(21), PasidSettings(reserved=((0, 4),)), PasidSettings(reserved=((5, 5),)),
        PasidSettings(reserved=((1, 4), (3, 5))), PasidSettings(reserved=((1, (1 << 20) + 1),)),
    ],
)  # fmt: skip
def test_settings_that_properties_cannot_carry_are_an_error(given: PasidSettings) -> None:
    with pytest.raises(ConfigError, match=r"^endpoint accel: "):
        EndpointSettings(1, "accel", (), given)


def test_pasids_need_probe_and_a_set() -> None:
    with pytest.raises(ConfigError, match="PASIDs need PROBE"):
        UnitSettings("u", pasids=True, probe_size=0)
    with pytest.raises(ConfigError, match="no set"):
        Engine(UnitSettings("u", pasids=True), ())


def test_reserved_pasids_that_do_not_fit_probe_size_are_an_error() -> None:
    many = PasidSettings(reserved=tuple((2 * at, 2 * at + 1) for at in range(1, 50)))
    vm = Vm()

    with pytest.raises(ConfigError, match="raise the unit's probe_size"):
        vm.unit.add_endpoint(EndpointSettings(0x300, "many", (), many))
