"""What all requests of the PASID extension share (docs/virtio-iommu-pasid.md, section 4)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import attach, map_
from tests.support.pasid_allocator import TERMS
from tests.support.pasid_requests import (
    ACCEL,
    BYPASS,
    HOLED,
    LOOSE,
    MIRROR,
    NARROW,
    UNMANAGED,
    WITHOUT,
    Vm,
    alloc_request,
    attach_request,
    detach_request,
    free_request,
)
from vdev.wire import viommu as wire
from vdev.wire.viommu import S_INVAL, S_OK, S_RANGE, S_UNSUPP

ALL_REQUESTS = (
    attach_request(1, ACCEL, 1), detach_request(1, ACCEL, 1), alloc_request(1, 9), free_request(1, 9),
)  # fmt: skip
TOO_WIDE = 1 << 20


@pytest.mark.parametrize(
    ("request_", "room"),
    [
        (attach_request(1, ACCEL, 0), 4),
        (attach_request(0, ACCEL, 0, MIRROR), 4),
        (detach_request(1, ACCEL, 0), 4),
        (alloc_request(0, 9), 12),
        (alloc_request(0, 0), 12),
        (alloc_request(9, 0), 12),
        (free_request(0, 9), 12),
        (free_request(0, 0), 12),
    ],
)
def test_p8_pasid_0_is_refused_wherever_it_is_named(request_: bytes, room: int) -> None:
    vm = Vm()

    assert vm.status(request_, room) == S_INVAL


@pytest.mark.parametrize(
    ("request_", "room"),
    [
        (attach_request(1, ACCEL, TOO_WIDE), 4),
        (attach_request(1, ACCEL, 0xFFFFFFFF), 4),
        (attach_request(1, NARROW, TOO_WIDE | 1), 4),
        (detach_request(1, ACCEL, TOO_WIDE), 4),
        (alloc_request(1, TOO_WIDE), 12),
        (alloc_request(TOO_WIDE, 0xFFFFFFFF), 12),
        (free_request(1, TOO_WIDE), 12),
    ],
)
def test_p9_more_than_20_bits_are_out_of_range(request_: bytes, room: int) -> None:
    vm = Vm()

    assert vm.status(request_, room) == S_RANGE


def test_p10_a_refused_request_changes_nothing() -> None:
    vm = Vm(LOOSE)
    pasid = vm.alloc()
    assert vm.attach(1, ACCEL, pasid) == S_OK
    map_(vm.unit, 1, 0x8000, 0x8FFF)
    attach(vm.unit, 2, WITHOUT, wire.ATTACH_F_BYPASS)
    before = vm.state()

    refused = [
        vm.attach(1, HOLED, pasid), vm.attach(2, ACCEL, pasid), vm.attach(1, ACCEL, pasid, BYPASS),
        vm.attach(1, ACCEL, pasid + 1), vm.attach(1, WITHOUT, pasid), vm.attach(1, 0x999, pasid),
        vm.attach(1, ACCEL, pasid, MIRROR), vm.detach(3, ACCEL, pasid), vm.alloc_answer(9, 1)[2], vm.free(9, 1)[1],
    ]  # fmt: skip

    assert S_OK not in refused
    assert vm.state() == before


def test_p11_foreign_freed_and_never_allocated_pasids_answer_alike() -> None:
    """Another VM's is one that the allocator has given away, and this set has not."""
    vm = Vm(terms=replace(TERMS, space="system"))
    freed = vm.alloc()
    vm.free(freed)
    vm.allocator.granted.add(7)

    answers = [
        (vm.attach(1, ACCEL, pasid), vm.detach(1, ACCEL, pasid), vm.free(pasid)) for pasid in (7, freed + 1, freed)
    ]

    assert answers[0] == answers[1] == answers[2]


def test_p12_unmanaged_there_is_no_alloc_and_no_free() -> None:
    vm = Vm(accept=UNMANAGED)

    assert vm.send(alloc_request(1, 9), 12) == wire.TAILS[S_UNSUPP]
    assert vm.send(free_request(1, 9), 12) == wire.TAILS[S_UNSUPP]
    assert vm.attach(1, ACCEL, 5) == S_OK


@pytest.mark.parametrize("request_", ALL_REQUESTS)
def test_p13_a_readable_part_that_is_too_short_is_invalid(request_: bytes) -> None:
    vm = Vm()
    before = vm.state()

    reply = vm.unit.handle(request_[:-1], 12)

    assert reply[-4:] == wire.TAILS[S_INVAL]
    assert vm.state() == before


@pytest.mark.parametrize("request_", ALL_REQUESTS[2:])
def test_p13_without_room_for_the_answer_nothing_is_done(request_: bytes) -> None:
    vm = Vm()
    before = vm.state()

    reply = vm.unit.handle(request_, 11)

    assert reply == bytes(7) + wire.TAILS[S_INVAL]
    assert (vm.unit.wait, vm.allocator.waiting) == (None, [])
    assert vm.state() == before
