"""PASID_ALLOC and PASID_FREE (docs/virtio-iommu-pasid.md, sections 4.3 and 4.4), as the engine answers them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.pasid_allocator import TERMS
from tests.support.pasid_requests import (
    ACCEL,
    UNMANAGED,
    Vm,
    alloc_request,
    free_request,
)
from vdev.iommu.events import PasidQuotaExceeded, PasidRefused
from vdev.iommu.pasid_set import Refusal
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire
from vdev.wire.viommu import S_DEVERR, S_INVAL, S_NOMEM, S_OK, S_RANGE


@pytest.mark.parametrize("make", [alloc_request, free_request])
@pytest.mark.parametrize("at", range(8))
def test_p31_reserved_bytes_of_alloc_and_free_are_checked(make: type, at: int) -> None:
    vm = Vm()
    vm.alloc()
    reserved = bytearray(8)
    reserved[at] = 1

    assert vm.send(make(1, 9, bytes(reserved)), 12) == bytes(8) + wire.TAILS[S_INVAL]


@pytest.mark.parametrize("make", [alloc_request, free_request])
def test_p31_a_range_that_ends_before_it_begins_is_out_of_range(make: type) -> None:
    vm = Vm()

    assert vm.send(make(9, 8), 12) == bytes(8) + wire.TAILS[S_RANGE]


def test_p32_a_granted_pasid_lies_in_both_ranges_and_in_no_set() -> None:
    vm = Vm(terms=replace(TERMS, first=0x10, stop=0x14))
    vm.allocator.granted.add(0x11)

    assert [vm.alloc(1, 0xFFFFF), vm.alloc(0x11, 0x12), vm.alloc(0x13, 0x13)] == [0x10, 0x12, 0x13]


def test_p32_the_allocator_is_asked_for_what_lies_in_both() -> None:
    vm = Vm(terms=replace(TERMS, first=0x10, stop=0x14))

    vm.unit.handle(alloc_request(1, 0xFFFFF), 12)
    vm.unit.handle(alloc_request(0x11, 0x12), 12)

    assert [span[:2] for span in vm.allocator.waiting] == [(0x10, 0x14), (0x11, 0x13)]


def test_p32_a_free_pending_pasid_is_granted_to_nobody() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)
    vm.free(pasid)

    assert vm.alloc(pasid, pasid) == -S_NOMEM
    vm.detach(1, ACCEL, pasid)
    assert vm.alloc(pasid, pasid) == pasid


@pytest.mark.parametrize("granted", [0x11, 0x13])
def test_p32_a_grant_that_breaks_it_is_none(granted: int) -> None:
    """A bug of the host's: one that the VM has, one that was not asked for."""
    vm = Vm()
    vm.alloc(0x11, 0x11)
    vm.unit.handle(alloc_request(0x10, 0x12), 12)
    wait, vm.unit.wait = vm.unit.wait, None
    (_, _, answer) = vm.allocator.waiting.pop()

    answer(granted)

    assert wait is not None
    assert wait.answer() == bytes(8) + wire.TAILS[S_DEVERR]
    assert [row["pasid"] for row in vm.set.list_pasids()] == [0x11]


def test_p33_quota_supply_and_range_are_told_apart_by_nothing() -> None:
    quota, supply, none_left = Vm(terms=replace(TERMS, quota=0)), Vm(), Vm(terms=replace(TERMS, stop=0x10))
    supply.allocator.refuse = Refusal.SUPPLY

    answers = [quota.alloc_answer(), supply.alloc_answer(), none_left.alloc_answer(0x10, 0xFFFFF)]

    assert answers == [(0, 0, S_NOMEM)] * 3
    told = [event.why for vm in (quota, supply, none_left) for event in vm.events if isinstance(event, PasidRefused)]
    assert told == ["quota", "supply", "range"]


def test_p34_remaining_is_what_the_quota_leaves() -> None:
    vm = Vm(terms=replace(TERMS, quota=3))

    answers = [vm.alloc_answer() for _ in range(4)]

    assert answers == [(1, 2, S_OK), (2, 1, S_OK), (3, 0, S_OK), (0, 0, S_NOMEM)]


def test_p34_a_quota_that_was_lowered_leaves_nothing() -> None:
    vm = Vm(terms=replace(TERMS, quota=3))
    vm.alloc()
    vm.alloc()
    vm.unit.handle(alloc_request(1, 9), 12)
    wait, vm.unit.wait = vm.unit.wait, None
    (first, _, answer) = vm.allocator.waiting.pop()
    vm.allocator.change(quota=1)

    answer(first + 5)

    assert wait is not None
    assert wait.answer() == pasid_wire.PasidGranted(6, 0).pack() + wire.TAILS[S_OK]


def test_p35_without_the_hosts_allocator_the_answer_is_deverr() -> None:
    managed, unmanaged = Vm(), Vm(accept=UNMANAGED)
    for vm in (managed, unmanaged):
        vm.allocator.refuse = Refusal.UNREACHABLE

    assert managed.alloc_answer() == (0, 0, S_DEVERR)
    assert unmanaged.attach(1, ACCEL, 5) == S_DEVERR


def test_the_quota_is_exceeded_once_until_one_is_granted_or_it_changes() -> None:
    vm = Vm(terms=replace(TERMS, quota=1))
    vm.alloc()

    vm.alloc()
    vm.alloc()
    vm.free(1)
    vm.alloc()
    vm.alloc()
    vm.allocator.change(quota=0)
    vm.alloc()

    told = [event for event in vm.events if isinstance(event, PasidQuotaExceeded)]
    assert told == [PasidQuotaExceeded(1, 1), PasidQuotaExceeded(1, 1), PasidQuotaExceeded(0, 1)]


def test_what_is_asked_for_counts_when_the_next_is_asked_for() -> None:
    vm = Vm(terms=replace(TERMS, quota=1))
    vm.unit.handle(alloc_request(1, 9), 12)
    vm.unit.wait = None

    assert vm.unit.handle(alloc_request(1, 9), 12) == bytes(8) + wire.TAILS[S_NOMEM]
    assert len(vm.allocator.waiting) == 1


# PASID_FREE


def test_p36_freeing_succeeds_whatever_is_in_the_range() -> None:
    vm = Vm()
    vm.alloc(5, 5)
    vm.alloc(7, 7)

    assert vm.free(1, 0xFFFFF) == (2, S_OK)
    assert vm.free(1, 0xFFFFF) == (0, S_OK)
    assert vm.set.used == 0


def test_p36_only_the_range_is_freed() -> None:
    vm = Vm()
    for pasid in (4, 5, 6, 7):
        vm.alloc(pasid, pasid)

    assert vm.free(5, 6) == (2, S_OK)
    assert [row["pasid"] for row in vm.set.list_pasids()] == [4, 7]


def test_p36_of_a_range_larger_than_the_set_as_well() -> None:
    vm = Vm()
    for pasid in (4, 5, 6, 7):
        vm.alloc(pasid, pasid)

    assert vm.free(1, 5) == (2, S_OK)
    assert [row["pasid"] for row in vm.set.list_pasids()] == [6, 7]


def test_p37_what_is_attached_becomes_free_pending_and_counts_as_used() -> None:
    vm = Vm()
    attached, idle = vm.alloc(), vm.alloc()
    vm.attach(1, ACCEL, attached)

    assert vm.free(1, 9) == (2, S_OK)

    assert vm.set.used == 1
    assert vm.allocator.told[-2:] == [("free-pending", (attached,)), ("release", (idle,))]
    assert vm.free(1, 9) == (0, S_OK)


def test_p39_freeing_needs_no_allocator_and_gives_up_nothing_that_is_in_use() -> None:
    vm = Vm()
    pasid = vm.alloc()
    vm.attach(1, ACCEL, pasid)
    vm.allocator.refuse = Refusal.UNREACHABLE

    assert vm.free(pasid) == (1, S_OK)

    assert vm.allocator.released() == []
    vm.detach(1, ACCEL, pasid)
    assert vm.allocator.released() == [pasid]


def test_a_pasid_of_another_unit_of_the_vm_is_attached_and_freed_here() -> None:
    vm = Vm(units=2)
    pasid = vm.alloc()

    assert vm.attach(1, ACCEL, pasid, unit=vm.units[1]) == S_OK
    assert vm.free(pasid, unit=vm.units[1]) == (1, S_OK)
    assert vm.detach(1, ACCEL, pasid, unit=vm.units[1]) == S_OK
    assert vm.set.used == 0
