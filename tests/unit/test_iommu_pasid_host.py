"""The host's own PASIDs, and those it takes away (docs/virtio-iommu-pasid.md, section 9)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import attach, detach, map_, unmap
from tests.support.pasid_allocator import TERMS
from tests.support.pasid_requests import (
    ACCEL,
    HOLED,
    MIRROR,
    NARROW,
    NEITHER,
    UNMANAGED,
    WITHOUT,
    Vm,
)
from vdev.errors import TranslationFault
from vdev.iommu.events import PasidAttached, PasidDetached, PasidEnded
from vdev.iommu.pasid_held import Held
from vdev.iommu.pasid_set import Refusal
from vdev.iommu.settings import EndpointSettings, PasidSettings
from vdev.wire.viommu import S_INVAL, S_NOENT, S_OK


def with_kernel_pasid(vm: Vm, endpoint: int = ACCEL) -> int:
    found: list[Held | Refusal] = []
    vm.set.ask_for_host(found.append)
    vm.allocator.answer()
    (held,) = found
    assert isinstance(held, Held)
    vm.unit.host_attach_mirror(endpoint, held.pasid)
    return held.pasid


def test_p55_the_hosts_pasid_answers_as_one_that_is_not_there() -> None:
    vm, unmanaged = Vm(), Vm(accept=UNMANAGED)
    pasid = with_kernel_pasid(vm)
    assert with_kernel_pasid(unmanaged) == pasid

    answers = [
        vm.attach(1, ACCEL, pasid), vm.attach(0, ACCEL, pasid, MIRROR), vm.attach(1, HOLED, pasid),
        vm.detach(0, ACCEL, pasid), *vm.free(pasid), unmanaged.attach(1, ACCEL, pasid),
    ]  # fmt: skip

    assert answers == [S_NOENT, S_NOENT, S_NOENT, S_INVAL, 0, S_OK, S_NOENT]
    assert (vm.set.used, vm.alloc_answer()[1]) == (1, TERMS.quota - 2)


def test_p56_a_pair_of_the_hosts_follows_the_rid() -> None:
    vm = Vm(accept=NEITHER)
    pasid = with_kernel_pasid(vm)
    attach(vm.unit, 1, ACCEL)
    map_(vm.unit, 1, 0x1000, 0x1FFF, 0x10_0000)

    reached = vm.reach(ACCEL, pasid, 0x1000)
    unmap(vm.unit, 1, 0x1000, 0x1FFF)

    assert reached == 0x10_0000
    with pytest.raises(TranslationFault, match="not-mapped"):
        vm.reach(ACCEL, pasid, 0x1000)


@pytest.mark.parametrize("kind", ["device_reset", "system_reset", "host_reset"])
def test_a_pair_of_the_hosts_survives_resets(kind: str) -> None:
    vm = Vm()
    pasid = with_kernel_pasid(vm)
    mine = vm.attached()

    getattr(vm.unit, kind)()
    attach(vm.unit, 1, ACCEL)
    map_(vm.unit, 1, 0x1000, 0x1FFF, 0x10_0000)

    assert vm.reach(ACCEL, pasid, 0x1000) == 0x10_0000
    assert vm.allocator.released() == [mine]


def test_a_pair_of_the_hosts_ends_with_its_endpoint() -> None:
    vm = Vm()
    pasid = with_kernel_pasid(vm)

    vm.unit.remove_endpoint(ACCEL)

    assert (vm.set.used, vm.allocator.released()) == (0, [pasid])


def test_the_host_attaches_only_what_is_its_own_and_fits() -> None:
    vm = Vm()
    guests = vm.alloc(9, 9)
    pasid = with_kernel_pasid(vm)
    vm.unit.add_endpoint(EndpointSettings(0x300, "late", (), PasidSettings(reserved=((pasid, pasid + 1),))))

    for endpoint, number in ((ACCEL, guests), (ACCEL, 0x99), (WITHOUT, pasid), (0x300, pasid)):
        with pytest.raises(ValueError, match="is not the host's, or nothing that"):
            vm.unit.host_attach_mirror(endpoint, number)
    vm.unit.host_attach_mirror(ACCEL, pasid)

    assert [event for event in vm.events if isinstance(event, PasidAttached)] == [
        PasidAttached("iommu0", ACCEL, pasid, None)
    ]


def test_the_host_is_refused_as_anybody() -> None:
    vm = Vm(terms=replace(TERMS, quota=0))
    found: list[Held | Refusal] = []

    vm.set.ask_for_host(found.append)

    assert found == [Refusal.QUOTA]


# what the host takes away


def test_what_the_host_revokes_is_detached_and_lands_nowhere() -> None:
    vm = Vm(units=2)
    pasid, other = vm.attached(), vm.attached(2)
    vm.attach(1, ACCEL, pasid, unit=vm.units[1])
    flight = vm.flying(pasid)
    nevents = len(vm.events)

    vm.set.revoke([pasid, 0x999])

    assert flight.over
    assert [row["pasid"] for row in vm.unit.pasids.list_pairs()] == [other]
    assert vm.units[1].pasids.list_pairs() == []
    assert (vm.set.used, vm.allocator.released()) == (1, [])
    assert vm.events[-1] == PasidEnded((pasid,))
    assert sum(isinstance(event, PasidDetached) for event in vm.events[nevents:]) == 2
    assert vm.attach(1, ACCEL, pasid) == S_NOENT


def test_reconciled_the_set_and_the_authority_hold_the_same() -> None:
    vm = Vm()
    kept, lost = vm.attached(), vm.attached(2, NARROW)

    vm.set.reconcile([kept, 0x70, 0x71])

    assert [row["pasid"] for row in vm.set.list_pasids()] == [kept]
    assert vm.allocator.told[-1] == ("release", (0x70, 0x71))
    assert lost not in vm.allocator.released()


def test_reconciling_what_agrees_changes_nothing() -> None:
    vm = Vm()
    pasid = vm.attached()
    before, ntold = vm.state(), len(vm.allocator.told)

    vm.set.reconcile([pasid])

    assert (vm.state(), len(vm.allocator.told)) == (before, ntold)


def test_the_allocator_is_told_of_the_first_and_the_last_pair_only() -> None:
    vm = Vm()
    pasid = vm.alloc()

    vm.attach(1, ACCEL, pasid)
    vm.attach(1, HOLED, pasid)
    vm.attach(2, ACCEL, pasid)
    vm.detach(1, HOLED, pasid)
    vm.detach(2, ACCEL, pasid)

    assert vm.allocator.told == [("attached", (pasid,)), ("detached", (pasid,))]


def test_what_is_used_moves_the_configuration_of_units_whose_driver_reads_it() -> None:
    vm = Vm(units=2)
    vm.units[1].device_reset()
    moved: list[int] = []
    for number, unit in enumerate(vm.units):
        unit.config_moved = lambda number=number: moved.append(number)  # type: ignore[misc]

    vm.alloc()
    vm.free(1)
    detach(vm.unit, 1, ACCEL)

    assert moved == [0, 0]
