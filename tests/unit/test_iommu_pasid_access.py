"""Accesses with a PASID, what refuses them, and their faults (docs/virtio-iommu-pasid.md, sections 4.1, 6 and 7)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import READ, WRITE, attach, detach, map_, unmap
from tests.support.pasid_requests import ACCEL, BYPASS, HOLED, LOOSE, NEITHER, UNIT, WITHOUT, Vm
from vdev.errors import TranslationFault
from vdev.iommu.events import FaultRaised
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

PASID_FAULT, MAPPING_FAULT = pasid_wire.FAULT_R_PASID, wire.FAULT_R_MAPPING


def attached(vm: Vm, domain: int = 1, endpoint: int = ACCEL) -> int:
    """A PASID in a domain of its own with a page at IOVA 0x1000, at 0x10_0000 times the domain."""
    pasid = vm.alloc()
    vm.attach(domain, endpoint, pasid)
    map_(vm.unit, domain, 0x1000, 0x1FFF, domain * 0x10_0000)
    return pasid


def refusal(vm: Vm, pasid: int, iova: int = 0x1000, access: int = READ, **bits: bool) -> tuple[int, str, int]:
    """Wire reason, word and address of an access of one byte that is refused."""
    with pytest.raises(TranslationFault) as caught:
        vm.unit.translate(ACCEL, iova, 1, access, Tag(pasid, **bits))
    return caught.value.fault_reason, caught.value.reason, caught.value.iova


def test_an_access_with_a_pasid_is_translated_by_its_domain() -> None:
    vm = Vm()
    pasid = attached(vm)
    map_(vm.unit, 1, 0x2000, 0x2FFF, 0x50_0000, READ)

    assert vm.unit.translate(ACCEL, 0x1FF0, 0x20, READ, Tag(pasid)) == [(0x10_0FF0, 0x10), (0x50_0000, 0x10)]
    assert vm.unit.translate(ACCEL, 0x1010, 0x20, WRITE, Tag(pasid)) == [(0x10_0010, 0x20)]
    assert vm.unit.translate(ACCEL, 0x9000, 0, WRITE, Tag(pasid)) == []
    assert refusal(vm, pasid, 0x2000, WRITE) == (MAPPING_FAULT, "no-write", 0x2000)
    assert refusal(vm, pasid, 0x3000) == (MAPPING_FAULT, "not-mapped", 0x3000)


def test_p23_a_pair_reaches_its_domain_only() -> None:
    vm = Vm()
    one = attached(vm, 1)
    two = attached(vm, 2)
    vm.attach(3, HOLED, one)
    attach(vm.unit, 4, ACCEL)
    map_(vm.unit, 4, 0x7000, 0x7FFF, 0x70_0000)

    assert (vm.reach(ACCEL, one, 0x1000), vm.reach(ACCEL, two, 0x1000)) == (0x10_0000, 0x20_0000)
    assert refusal(vm, one, 0x7000) == (MAPPING_FAULT, "not-mapped", 0x7000)
    with pytest.raises(TranslationFault):
        vm.unit.translate(HOLED, 0x1000, 1, READ, Tag(one))
    with pytest.raises(TranslationFault):
        vm.unit.translate(ACCEL, 0x1000, 1, READ)


def test_p24_map_and_unmap_act_on_endpoints_and_pairs_alike() -> None:
    vm = Vm()
    pasid = attached(vm)
    vm.attach(1, HOLED, pasid)
    attach(vm.unit, 1, WITHOUT)

    before = {
        vm.reach(ACCEL, pasid, 0x1000),
        vm.reach(HOLED, pasid, 0x1000),
        vm.unit.translate(WITHOUT, 0x1000, 1, 1)[0][0],
    }
    unmap(vm.unit, 1, 0x1000, 0x1FFF)

    assert before == {0x10_0000}
    assert refusal(vm, pasid) == (MAPPING_FAULT, "not-mapped", 0x1000)
    with pytest.raises(TranslationFault):
        vm.unit.translate(WITHOUT, 0x1000, 1, READ)


def test_p25_a_mirroring_pair_follows_every_step_of_its_rid() -> None:
    vm = Vm()
    vm.unit.set_bypass(False)
    pasid = vm.alloc()
    vm.mirror(ACCEL, pasid)

    unattached = refusal(vm, pasid)
    attach(vm.unit, 1, ACCEL)
    without_mapping = refusal(vm, pasid)
    map_(vm.unit, 1, 0x1000, 0x1FFF, 0x10_0000, READ)
    first, read_only = vm.reach(ACCEL, pasid, 0x1000), refusal(vm, pasid, access=WRITE)
    attach(vm.unit, 2, ACCEL)
    moved = refusal(vm, pasid)
    map_(vm.unit, 2, 0x1000, 0x1FFF, 0x20_0000)
    second = vm.reach(ACCEL, pasid, 0x1000, WRITE)
    unmap(vm.unit, 2, 0x1000, 0x1FFF)
    unmapped = refusal(vm, pasid)
    detach(vm.unit, 2, ACCEL)
    detached = refusal(vm, pasid)

    assert (first, second) == (0x10_0000, 0x20_0000)
    assert unattached == detached == (PASID_FAULT, "pasid-rid-unattached", 0x1000)
    assert without_mapping == moved == unmapped == (MAPPING_FAULT, "not-mapped", 0x1000)
    assert read_only == (MAPPING_FAULT, "no-write", 0x1000)


@pytest.mark.parametrize("attaches", [False, True])
def test_p25_of_a_rid_that_bypasses_there_is_nothing_to_reach(attaches: bool) -> None:
    vm, loose = Vm(), Vm(LOOSE)
    for each in (vm, loose):
        each.mirror(ACCEL, each.alloc())
        if attaches:
            attach(each.unit, 2, ACCEL, wire.ATTACH_F_BYPASS)

    assert refusal(vm, 1) == (PASID_FAULT, "pasid-rid-bypasses", 0x1000)
    assert loose.reach(ACCEL, 1, 0x1234) == 0x1234


def test_p25_with_isolation_off_an_unattached_rid_without_bypass_gives_nothing_either() -> None:
    vm = Vm(LOOSE)
    vm.mirror(ACCEL, vm.alloc())
    vm.unit.set_bypass(False)

    assert refusal(vm, 1) == (PASID_FAULT, "pasid-rid-unattached", 0x1000)


@pytest.mark.parametrize("domain", [1, None])
@pytest.mark.parametrize(
    ("iova", "access"), [(0xFEE0_1000, WRITE), (0xFEE0_1000, READ), (0x8000, WRITE), (0x9FFF, READ)]
)
def test_p26_no_access_with_a_pasid_passes_a_reserved_region(domain: int | None, iova: int, access: int) -> None:
    """Of a pair that is attached, and of one that bypasses."""
    vm = Vm(LOOSE)
    pasid = vm.alloc()
    vm.attach(domain or 2, HOLED, pasid, 0 if domain else BYPASS)

    with pytest.raises(TranslationFault) as caught:
        vm.unit.translate(HOLED, iova, 4, access, Tag(pasid))

    assert (caught.value.fault_reason, caught.value.reason, caught.value.iova) == (MAPPING_FAULT, "reserved", iova)


def test_p26_an_access_into_a_region_is_refused_where_that_begins() -> None:
    vm = Vm(LOOSE)
    pasid = vm.alloc()
    vm.attach(2, HOLED, pasid, BYPASS)

    with pytest.raises(TranslationFault) as caught:
        vm.unit.translate(HOLED, 0x7FF0, 0x20, WRITE, Tag(pasid))

    assert caught.value.iova == 0x8000


def test_p38_a_freed_pasid_is_refused_although_it_is_attached() -> None:
    vm = Vm()
    pasid = attached(vm)
    vm.free(pasid)

    assert refusal(vm, pasid) == (PASID_FAULT, "pasid-free-pending", 0x1000)


def test_p11_a_free_pending_pasid_is_not_told_from_one_that_never_was() -> None:
    vm = Vm()
    pending, never = attached(vm), 0x999
    vm.free(pending)

    attaches = [vm.attach(2, ACCEL, pasid) for pasid in (pending, never)]
    faults = [refusal(vm, pasid)[0] for pasid in (pending, never)]

    assert attaches == [wire.S_NOENT, wire.S_NOENT]
    assert faults[0] == faults[1]


def test_p42_a_pair_that_is_not_attached_reaches_nothing_whatever_bypass_says() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.unit.set_bypass(True)

    assert refusal(vm, pasid) == (PASID_FAULT, "pasid-not-attached", 0x1000)
    assert refusal(vm, 0x999) == (PASID_FAULT, "pasid-not-attached", 0x1000)
    assert vm.unit.translate(ACCEL, 0x1000, 1, READ) == [(0x1000, 1)]


def test_an_unknown_endpoint_is_unknown_with_a_pasid_as_without() -> None:
    vm = Vm()

    with pytest.raises(TranslationFault) as caught:
        vm.unit.translate(0x999, 0x1000, 1, READ, Tag(1))

    assert (caught.value.fault_reason, caught.value.reason) == (wire.FAULT_R_UNKNOWN, "unknown-endpoint")


@pytest.mark.parametrize(("iova", "nbytes"), [((1 << 64) - 1, 2), (-1, 1), (-1, 2)])
def test_an_access_that_leaves_the_address_space_is_refused(iova: int, nbytes: int) -> None:
    vm = Vm(LOOSE)
    vm.attach(2, ACCEL, vm.alloc(), BYPASS)

    with pytest.raises(TranslationFault) as caught:
        vm.unit.translate(ACCEL, iova, nbytes, READ, Tag(1))

    assert caught.value.reason == "outside-address-space"


def test_p44_a_mapping_lets_no_execution_pass() -> None:
    vm = Vm()
    pasid = attached(vm)

    assert refusal(vm, pasid, execute=True) == (MAPPING_FAULT, "no-execute", 0x1000)


def test_p44_what_would_be_refused_without_it_is_refused_for_that() -> None:
    vm = Vm()
    pasid = attached(vm)
    map_(vm.unit, 1, 0x2000, 0x2FFF, 0, WRITE)

    assert refusal(vm, pasid, 0x3000, execute=True) == (MAPPING_FAULT, "not-mapped", 0x3000)
    assert refusal(vm, pasid, 0x2000, execute=True) == (MAPPING_FAULT, "no-read", 0x2000)


def test_p44_execution_passes_in_a_bypass_domain() -> None:
    vm = Vm(LOOSE)
    vm.attach(2, ACCEL, vm.alloc(), BYPASS)

    assert vm.unit.translate(ACCEL, 0x4000, 8, READ, Tag(1, execute=True)) == [(0x4000, 8)]


def test_p45_privilege_opens_nothing_and_closes_nothing() -> None:
    vm = Vm()
    pasid = attached(vm)

    assert vm.unit.translate(ACCEL, 0x1000, 8, READ, Tag(pasid, privileged=True)) == [(0x10_0000, 8)]
    assert refusal(vm, pasid, 0x3000, privileged=True) == (MAPPING_FAULT, "not-mapped", 0x3000)


def test_an_identity_of_a_pair_ends_with_the_aperture() -> None:
    vm = Vm(replace(LOOSE, force_aperture=True, input_stop=1 << 32))
    vm.attach(2, ACCEL, vm.alloc(), BYPASS)

    assert vm.reach(ACCEL, 1, (1 << 32) - 1) == (1 << 32) - 1
    assert refusal(vm, 1, 1 << 32) == (MAPPING_FAULT, "outside-input-range", 1 << 32)


# faults


def fault_of(vm: Vm, tag: Tag | None, reason: int = PASID_FAULT, access: int = READ) -> bytes:
    vm.unit.fault(ACCEL, TranslationFault(reason, "word", 0x1234), access, tag)
    return vm.unit.pending_faults.popleft()


@pytest.mark.parametrize(
    ("tag", "access", "flags"),
    [
        (Tag(7), READ, 0x301),
        (Tag(7), WRITE, 0x302),
        (Tag(7, execute=True), READ, 0x305),
        (Tag(7, privileged=True), WRITE, 0x30A),
        (Tag(0xFFFFF, execute=True, privileged=True), READ, 0x30D),
    ],
)
def test_p48_p49_a_fault_tells_the_pasid_and_what_was_requested(tag: Tag, access: int, flags: int) -> None:
    vm = Vm()

    told = vm.unit.told_fault(fault_of(vm, tag, access=access), 48)

    expected = pasid_wire.FaultPasid(PASID_FAULT, bytes(3), flags, ACCEL, tag.pasid, 0x1234)
    assert told == expected.pack()
    assert vm.events[-1] == FaultRaised("iommu0", ACCEL, "word", access, 0x1234, tag.pasid)


def test_p48_a_fault_of_an_access_without_a_pasid_has_no_pasid() -> None:
    vm = Vm()

    told = vm.unit.told_fault(fault_of(vm, None, pasid_wire.FAULT_R_PASID_REQUIRED), 48)

    assert told == pasid_wire.FaultPasid(pasid_wire.FAULT_R_PASID_REQUIRED, bytes(3), 0x101, ACCEL, 0, 0x1234).pack()


@pytest.mark.parametrize(("room", "nbytes"), [(24, 24), (25, 24), (47, 24), (48, 48), (4096, 48)])
@pytest.mark.parametrize("tag", [None, Tag(7)])
def test_p50_a_fault_is_48_bytes_or_the_first_24_of_them(room: int, nbytes: int, tag: Tag | None) -> None:
    vm = Vm()
    record = fault_of(vm, tag)

    told = vm.unit.told_fault(record, room)

    assert told == vm.unit.told_fault(record, 48)[:nbytes]


@pytest.mark.parametrize("reason", [PASID_FAULT, pasid_wire.FAULT_R_PASID_DISABLED, pasid_wire.FAULT_R_PASID_REQUIRED])
@pytest.mark.parametrize("tag", [None, Tag(7, execute=True, privileged=True)])
def test_p1_a_driver_that_has_not_accepted_it_is_told_the_old_record(reason: int, tag: Tag | None) -> None:
    vm = Vm(accept=NEITHER)

    told = vm.unit.told_fault(fault_of(vm, tag, reason), 48)

    assert told == wire.Fault(wire.FAULT_R_DOMAIN, bytes(3), 0x101, ACCEL, 0, 0x1234).pack()


@pytest.mark.parametrize("reason", [wire.FAULT_R_UNKNOWN, wire.FAULT_R_DOMAIN, wire.FAULT_R_MAPPING])
def test_p1_the_old_reasons_stay_as_they_are(reason: int) -> None:
    vm = Vm(accept=NEITHER)

    told = vm.unit.told_fault(fault_of(vm, Tag(7), reason, WRITE), 48)

    assert told == wire.Fault(reason, bytes(3), 0x102, ACCEL, 0, 0x1234).pack()


def test_a_unit_without_pasids_refuses_them_all() -> None:
    vm = Vm(replace(UNIT, pasids=False))

    assert vm.attach(1, ACCEL, 1) == wire.S_UNSUPP
    assert refusal(vm, 1) == (PASID_FAULT, "pasid-not-attached", 0x1000)
