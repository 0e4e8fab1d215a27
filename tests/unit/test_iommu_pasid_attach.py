"""ATTACH_PASID and DETACH_PASID (docs/virtio-iommu-pasid.md, sections 4.1 and 4.2), as the engine answers them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import attach, map_, send
from tests.support.pasid_allocator import TERMS
from tests.support.pasid_requests import (
    ACCEL,
    BYPASS,
    HOLED,
    LOOSE,
    MIRROR,
    NARROW,
    UNIT,
    UNMANAGED,
    WITHOUT,
    Vm,
    attach_request,
    detach_request,
)
from vdev.iommu.events import PasidAttached, PasidDetached
from vdev.iommu.pasid_set import Refusal
from vdev.iommu.settings import Limits
from vdev.wire import viommu as wire
from vdev.wire.viommu import S_INVAL, S_NOENT, S_NOMEM, S_OK, S_RANGE, S_UNSUPP


@pytest.mark.parametrize("at", range(8))
def test_p14_reserved_bytes_of_attach_are_checked(at: int) -> None:
    vm = Vm()
    pasid = vm.alloc()
    reserved = bytearray(8)
    reserved[at] = 1

    assert vm.status(attach_request(1, ACCEL, pasid, 0, bytes(reserved))) == S_INVAL


@pytest.mark.parametrize("flags", [4, 1 << 31, MIRROR | 4, MIRROR | BYPASS])
def test_p14_undefined_flags_and_bypass_with_mirror_are_refused(flags: int) -> None:
    vm = Vm(LOOSE)
    pasid = vm.alloc()

    assert vm.attach(0, ACCEL, pasid, flags) == S_INVAL


def test_p14_bypass_is_undefined_until_bypass_config_is_accepted() -> None:
    vm = Vm(LOOSE, accept=~wire.F_BYPASS_CONFIG)
    pasid = vm.alloc()

    assert vm.attach(1, ACCEL, pasid, BYPASS) == S_INVAL


def test_p14_a_mirroring_pair_names_no_domain() -> None:
    vm = Vm()
    pasid = vm.alloc()

    assert vm.attach(1, ACCEL, pasid, MIRROR) == S_INVAL
    assert vm.attach(0, ACCEL, pasid, MIRROR) == S_OK


def test_p15_an_endpoint_that_is_unknown_or_has_no_pasids() -> None:
    vm = Vm()
    pasid = vm.alloc()

    assert vm.attach(1, 0x999, pasid) == S_NOENT
    assert vm.attach(1, WITHOUT, pasid) == S_UNSUPP


@pytest.mark.parametrize("pasid", [3, 4, 14, 15, 16, 0xFFFFF])
def test_p16_a_pasid_too_wide_for_the_endpoint_or_its_own_is_out_of_range(pasid: int) -> None:
    vm = Vm()
    assert vm.alloc(pasid, pasid) == pasid

    assert vm.attach(1, NARROW, pasid) == S_RANGE


@pytest.mark.parametrize("pasid", [1, 2, 5, 13])
def test_p16_the_other_ones_of_its_width_are_fine(pasid: int) -> None:
    vm = Vm()
    vm.alloc(pasid, pasid)

    assert vm.attach(1, NARROW, pasid) == S_OK


def test_p17_managed_only_a_pasid_that_was_allocated_can_be_attached() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)
    vm.free(pasid)

    assert vm.attach(1, ACCEL, 5) == S_NOENT
    assert vm.attach(2, ACCEL, pasid) == S_NOENT
    assert vm.allocator.waiting == []


def test_p18_unmanaged_the_first_attach_allocates() -> None:
    vm = Vm(accept=UNMANAGED)

    assert vm.attach(1, ACCEL, 0x123) == S_OK

    assert (vm.set.used, vm.allocator.granted) == (1, {0x123})
    assert vm.attach(1, HOLED, 0x123) == S_OK
    assert vm.set.used == 1


def test_p18_unmanaged_the_quota_and_the_supply_bound_it() -> None:
    vm = Vm(accept=UNMANAGED, terms=replace(TERMS, quota=2, first=2, stop=0x100))
    vm.attach(1, ACCEL, 2)
    vm.attach(1, ACCEL, 3)

    over_quota = vm.attach(1, ACCEL, 4)
    vm.allocator.change(quota=8)
    vm.allocator.refuse = Refusal.SUPPLY
    without_supply = vm.attach(1, ACCEL, 4)

    assert (over_quota, without_supply) == (S_NOMEM, S_NOMEM)
    assert [vm.attach(1, ACCEL, pasid) for pasid in (1, 0x100)] == [S_RANGE, S_RANGE]


def test_p18_p10_what_was_allocated_for_an_attach_that_is_refused_goes_back() -> None:
    vm = Vm(accept=UNMANAGED)
    map_domain(vm, 1, 0x8000)

    assert vm.attach(1, HOLED, 5) == S_UNSUPP

    assert (vm.set.used, vm.allocator.released()) == (0, [5])


def test_unmanaged_two_attaches_of_one_pasid_share_a_grant() -> None:
    vm = Vm(accept=UNMANAGED, terms=replace(TERMS, quota=1))

    vm.unit.handle(attach_request(1, ACCEL, 5), 4)
    first, vm.unit.wait = vm.unit.wait, None
    vm.unit.handle(attach_request(1, HOLED, 5), 4)
    second, vm.unit.wait = vm.unit.wait, None
    assert first is not None
    assert second is not None
    waiting = (first.is_over, second.is_over, len(vm.allocator.waiting))
    vm.allocator.answer()

    assert waiting == (False, False, 1)
    assert (first.answer(), second.answer()) == (wire.TAILS[S_OK], wire.TAILS[S_OK])
    assert vm.set.of_guest(5) is not None
    assert len(vm.unit.pasids.list_pairs()) == 2


def map_domain(vm: Vm, domain: int, first: int, gpa: int = 0x10_0000) -> None:
    """A domain of the RID of an endpoint without regions, with a page mapped."""
    assert attach(vm.unit, domain, ACCEL) == S_OK
    assert map_(vm.unit, domain, first, first + 0xFFF, gpa) == S_OK


def test_p19_the_domain_is_judged_as_by_attach() -> None:
    vm = Vm(replace(LOOSE, domain_start=1, domain_stop=8, limits=Limits(max_domains=3)))
    pasid, other = vm.alloc(), vm.alloc()
    map_domain(vm, 1, 0x8000)
    attach(vm.unit, 2, WITHOUT, wire.ATTACH_F_BYPASS)

    assert vm.attach(8, ACCEL, pasid) == S_RANGE
    assert vm.attach(0, ACCEL, pasid) == S_RANGE
    assert vm.attach(2, ACCEL, pasid) == S_INVAL
    assert vm.attach(1, ACCEL, pasid, BYPASS) == S_INVAL
    assert vm.attach(1, HOLED, pasid) == S_UNSUPP
    assert vm.attach(3, ACCEL, pasid) == S_OK
    assert vm.attach(4, ACCEL, other) == S_NOMEM
    assert vm.attach(4, ACCEL, pasid) == S_OK  # its domain ends, so that there is room


def test_p20_no_pasid_bypasses_unless_isolation_is_off() -> None:
    strict, loose = Vm(), Vm(LOOSE)
    for vm in (strict, loose):
        vm.alloc()
        attach(vm.unit, 2, WITHOUT, wire.ATTACH_F_BYPASS)

    refused = [strict.attach(1, ACCEL, 1, BYPASS), strict.attach(2, ACCEL, 1, BYPASS), strict.attach(2, ACCEL, 1)]

    assert refused == [S_UNSUPP] * 3
    assert [loose.attach(1, ACCEL, 1, BYPASS), loose.attach(2, ACCEL, 1, BYPASS)] == [S_OK] * 2


@pytest.mark.parametrize(("domain", "flags"), [(1, 0), (0, MIRROR)])
def test_p21_attaching_again_the_same_way_changes_nothing(domain: int, flags: int) -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(domain, ACCEL, pasid, flags)
    map_(vm.unit, 1, 0x1000, 0x1FFF)
    before, nevents = vm.state(), len(vm.events)

    assert vm.attach(domain, ACCEL, pasid, flags) == S_OK

    assert vm.state() == before
    assert not any(isinstance(event, PasidAttached) for event in vm.events[nevents:])


def test_p22_the_number_of_pairs_is_bounded() -> None:
    vm = Vm(replace(UNIT, limits=Limits(max_pairs=2)))
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)
    vm.attach(1, NARROW, pasid)

    assert vm.attach(1, HOLED, pasid) == S_NOMEM
    assert vm.attach(2, ACCEL, pasid) == S_OK
    vm.detach(1, NARROW, pasid)
    assert vm.attach(1, HOLED, pasid) == S_OK


def test_a_pair_that_moves_leaves_its_domain_and_both_are_told() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)
    nevents = len(vm.events)

    vm.attach(2, ACCEL, pasid)

    told = [event for event in vm.events[nevents:] if isinstance(event, PasidAttached | PasidDetached)]
    assert told == [PasidDetached("iommu0", ACCEL, pasid, 1), PasidAttached("iommu0", ACCEL, pasid, 2)]
    assert list(vm.unit.table.domains) == [2]


@pytest.mark.parametrize("steps", [((1, 0), (0, MIRROR)), ((0, MIRROR), (1, 0))])
def test_a_pair_moves_between_a_domain_and_its_rid(steps: tuple[tuple[int, int], ...]) -> None:
    vm = Vm()
    pasid = vm.alloc()

    for domain, flags in steps:
        assert vm.attach(domain, ACCEL, pasid, flags) == S_OK

    (pair,) = vm.unit.pasids.list_pairs()
    assert pair["mirrors"] == (steps[1][1] == MIRROR)
    assert len(vm.unit.table.domains) == (steps[1][1] != MIRROR)


def test_p24_a_domain_lives_as_long_as_a_pair_or_an_endpoint_is_in_it() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)
    map_(vm.unit, 1, 0x1000, 0x1FFF)
    attach(vm.unit, 1, WITHOUT)

    vm.detach(1, ACCEL, pasid)
    with_endpoint = 1 in vm.unit.table.domains
    vm.attach(1, ACCEL, pasid)
    send(vm.unit, wire.Detach(wire.T_DETACH, bytes(3), 1, WITHOUT).pack())
    with_pair = vm.unit.table.nmappings
    vm.detach(1, ACCEL, pasid)

    assert (with_endpoint, with_pair) == (True, 1)
    assert (vm.unit.table.domains, vm.unit.table.nmappings) == ({}, 0)


def test_p26_nothing_is_mapped_where_a_pairs_endpoint_has_a_region() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, HOLED, pasid)

    refused = map_(vm.unit, 1, 0x8000, 0x8FFF)
    vm.attach(1, ACCEL, pasid)
    vm.detach(1, HOLED, pasid)

    assert refused == S_INVAL
    assert map_(vm.unit, 1, 0x8000, 0x8FFF) == S_OK


# DETACH_PASID


def test_p27_reserved_bytes_of_detach_are_ignored() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)

    assert vm.status(detach_request(1, ACCEL, pasid, b"\xff" * 12)) == S_OK


def test_p28_only_a_pair_that_is_there_is_detached() -> None:
    vm = Vm()
    one, two = vm.alloc(), vm.alloc()
    vm.attach(1, ACCEL, one)
    vm.mirror(ACCEL, two)

    refused = [
        vm.detach(1, 0x999, one), vm.detach(2, ACCEL, one), vm.detach(0, ACCEL, one), vm.detach(1, ACCEL, two),
        vm.detach(1, HOLED, one), vm.detach(1, ACCEL, 9), vm.detach(1, WITHOUT, one),
    ]  # fmt: skip

    assert refused == [S_NOENT] + [S_INVAL] * 6
    assert [vm.detach(1, ACCEL, one), vm.detach(0, ACCEL, two)] == [S_OK, S_OK]
    assert vm.detach(1, ACCEL, one) == S_INVAL


def test_p30_the_last_pair_of_a_freed_pasid_ends_it() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)
    vm.attach(1, HOLED, pasid)
    vm.free(pasid)

    vm.detach(1, ACCEL, pasid)
    used_before = vm.set.used
    vm.detach(1, HOLED, pasid)

    assert (used_before, vm.set.used, vm.allocator.released()) == (1, 0, [pasid])


def test_p30_unmanaged_the_last_pair_of_any_pasid_ends_it() -> None:
    vm = Vm(accept=UNMANAGED)
    vm.attach(1, ACCEL, 5)
    vm.attach(1, HOLED, 5)

    vm.detach(1, ACCEL, 5)
    used_before = vm.set.used
    vm.detach(1, HOLED, 5)

    assert (used_before, vm.set.used, vm.allocator.released()) == (1, 0, [5])


def test_p30_managed_it_stays_for_the_next_attach() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)

    vm.detach(1, ACCEL, pasid)

    assert (vm.set.used, vm.attach(2, ACCEL, pasid)) == (1, S_OK)


def test_unmanaged_a_move_of_the_only_pair_does_not_end_the_pasid() -> None:
    vm = Vm(accept=UNMANAGED)
    vm.attach(1, ACCEL, 5)

    vm.attach(2, ACCEL, 5)

    assert (vm.set.used, vm.allocator.released()) == (1, [])
