"""How pairs and PASIDs end with resets and with endpoints that go (docs/virtio-iommu-pasid.md, section 8)."""

from __future__ import annotations

import pytest

from tests.support.iommu_requests import READ
from tests.support.pasid_requests import (
    ACCEL,
    HOLED,
    UNMANAGED,
    Vm,
    alloc_request,
    attach_request,
)
from vdev.errors import TranslationFault
from vdev.iommu.events import PasidDetached
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire.viommu import S_DEVERR, S_NOENT, S_OK


@pytest.mark.parametrize("kind", ["device_reset", "system_reset", "host_reset"])
def test_p51_a_reset_detaches_all_pairs_and_frees_what_was_allocated_here(kind: str) -> None:
    vm = Vm()
    pasid = vm.attached()
    vm.mirror(ACCEL, vm.alloc())
    idle = vm.alloc()
    flight = vm.flying(pasid)

    getattr(vm.unit, kind)()

    assert flight.over
    assert (vm.unit.pasids.list_pairs(), vm.unit.table.npairs, vm.set.used) == ([], 0, 0)
    assert sorted(vm.allocator.released()) == [pasid, pasid + 1, idle]
    with pytest.raises(TranslationFault, match="pasid-not-attached"):
        vm.unit.translate(ACCEL, 0x1000, 1, READ, Tag(pasid))


def test_p51_pairs_of_another_unit_keep_a_freed_pasid_pending() -> None:
    vm = Vm(units=2)
    pasid = vm.attached()
    vm.attach(1, ACCEL, pasid, unit=vm.units[1])

    vm.unit.device_reset()

    assert (vm.set.used, vm.allocator.released()) == (1, [])
    with pytest.raises(TranslationFault, match="pasid-free-pending"):
        vm.units[1].translate(ACCEL, 0x1000, 1, READ, Tag(pasid))
    vm.detach(1, ACCEL, pasid, unit=vm.units[1])
    assert (vm.set.used, vm.allocator.released()) == (0, [pasid])


def test_p51_what_another_unit_allocated_stays_allocated() -> None:
    vm = Vm(units=2)
    pasid = vm.attached(unit=1)
    vm.attach(1, ACCEL, pasid)

    vm.unit.device_reset()

    assert vm.set.used == 1
    assert vm.reach(ACCEL, pasid, 0x1000, unit=vm.units[1]) == 0


def test_p51_unmanaged_the_pasids_of_a_reset_unit_end() -> None:
    vm = Vm(accept=UNMANAGED)
    for pasid in (5, 6):
        vm.attach(1, ACCEL, pasid)

    vm.unit.device_reset()

    assert (vm.set.used, sorted(vm.allocator.released())) == (0, [5, 6])


def test_p51_p35_what_is_granted_after_a_reset_goes_back() -> None:
    vm = Vm()
    vm.unit.handle(alloc_request(1, 9), 12)
    wait, vm.unit.wait = vm.unit.wait, None

    vm.unit.device_reset()
    vm.allocator.answer()

    assert (vm.set.used, vm.allocator.released()) == (0, [1])
    assert wait is not None
    assert (wait.answer() or b"")[-4] == S_DEVERR


def test_p52_nothing_that_a_reset_freed_waits_for_another_driver() -> None:
    vm = Vm()
    pasid = vm.attached()
    vm.free(pasid)

    vm.unit.device_reset()

    assert vm.allocator.released() == [pasid]


def test_a_unit_of_the_vm_that_is_reset_leaves_the_others_questions_alone() -> None:
    vm = Vm(units=2)
    vm.units[1].handle(alloc_request(1, 9), 12)
    wait, vm.units[1].wait = vm.units[1].wait, None

    vm.unit.device_reset()
    vm.allocator.answer()

    assert wait is not None
    assert (wait.answer() or b"")[-4] == S_OK
    assert vm.set.used == 1


def test_p54_an_endpoint_that_goes_takes_its_pairs_with_it() -> None:
    vm = Vm()
    pasid = vm.attached()
    vm.attach(1, HOLED, pasid)
    vm.mirror(ACCEL, vm.alloc())
    vm.free(1, 9)
    nevents = len(vm.events)

    vm.unit.remove_endpoint(ACCEL)

    gone = [event for event in vm.events[nevents:] if isinstance(event, PasidDetached)]
    assert gone == [PasidDetached("iommu0", ACCEL, pasid, 1), PasidDetached("iommu0", ACCEL, pasid + 1, None)]
    assert [row["endpoint"] for row in vm.unit.pasids.list_pairs()] == [HOLED]
    assert (vm.set.used, vm.unit.table.npairs) == (1, 1)


def test_p54_an_access_of_an_endpoint_that_goes_is_cancelled() -> None:
    vm = Vm()
    pasid = vm.attached()
    flight = vm.flying(pasid)
    vm.free(pasid)

    vm.unit.remove_endpoint(ACCEL)

    assert flight.over
    assert vm.set.used == 0


def test_a_grant_for_an_attach_to_an_endpoint_that_is_gone_goes_back() -> None:
    vm = Vm(accept=UNMANAGED)
    vm.unit.handle(attach_request(1, ACCEL, 5), 4)
    wait, vm.unit.wait = vm.unit.wait, None

    vm.unit.remove_endpoint(ACCEL)
    vm.allocator.answer()

    assert wait is not None
    assert wait.answer() == wire.TAILS[S_NOENT]
    assert (vm.set.used, vm.allocator.released()) == (0, [5])
