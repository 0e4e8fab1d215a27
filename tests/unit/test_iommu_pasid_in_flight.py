"""Accesses with a PASID in flight, and who waits for them (docs/virtio-iommu-pasid.md, P29, P37, P38)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import READ, attach, map_
from tests.support.pasid_requests import (
    ACCEL,
    HOLED,
    UNIT,
    UNMANAGED,
    Vm,
    attach_request,
    detach_request,
    free_request,
)
from vdev.wire import viommu as wire
from vdev.wire.viommu import S_NOENT, S_OK


@pytest.mark.parametrize("make", [lambda p: detach_request(1, ACCEL, p), lambda p: attach_request(2, ACCEL, p)])
def test_p29_a_pair_that_moves_waits_for_its_accesses(make: type) -> None:
    vm = Vm()
    pasid = vm.attached()
    flight = vm.flying(pasid)

    wait = vm.waits(make(pasid))
    assert wait is not None
    before = wait.is_over
    vm.unit.in_flight.end(flight)

    assert (before, wait.is_over) == (False, True)


def test_p29_accesses_of_other_pairs_and_of_the_rid_are_not_waited_for() -> None:
    vm = Vm()
    pasid, other = vm.attached(), vm.attached(2)
    attach(vm.unit, 2, ACCEL)
    vm.flying(other)
    vm.attach(1, HOLED, pasid)
    vm.flying(pasid, HOLED)
    vm.unit.begin(ACCEL, 0x1000, 8, READ)

    assert vm.waits(detach_request(1, ACCEL, pasid)) is None


def test_unmap_waits_for_the_accesses_of_pairs_in_its_domain() -> None:
    vm = Vm()
    pasid, other = vm.attached(), vm.attached(2)
    flight, elsewhere = vm.flying(pasid), vm.flying(other)

    wait = vm.waits(wire.Unmap(wire.T_UNMAP, bytes(3), 1, 0x1000, 0x1FFF).pack())

    assert wait is not None
    assert wait.flights == [flight]
    assert elsewhere not in wait.flights


@pytest.mark.parametrize("request_", ["unmap", "detach", "attach"])
def test_what_takes_the_rids_mappings_away_waits_for_accesses_of_pairs_that_mirror(request_: str) -> None:
    vm = Vm()
    attach(vm.unit, 1, ACCEL)
    map_(vm.unit, 1, 0x1000, 0x1FFF)
    pasid = vm.alloc()
    vm.mirror(ACCEL, pasid)
    flight = vm.flying(pasid)

    wait = vm.waits(
        {
            "unmap": wire.Unmap(wire.T_UNMAP, bytes(3), 1, 0x1000, 0x1FFF),
            "detach": wire.Detach(wire.T_DETACH, bytes(3), 1, ACCEL),
            "attach": wire.Attach(wire.T_ATTACH, bytes(3), 2, ACCEL),
        }[request_].pack(),
    )

    assert wait is not None
    assert wait.flights == [flight]


def test_p38_free_waits_for_accesses_under_way_of_whichever_unit() -> None:
    vm = Vm(units=2)
    pasid = vm.attached()
    vm.attach(1, ACCEL, pasid, unit=vm.units[1])
    map_(vm.units[1], 1, 0x1000, 0x1FFF)
    here, there = vm.flying(pasid), vm.flying(pasid, unit=1)
    woken: list[str] = []
    vm.unit.in_flight.ended = lambda: woken.append("first")

    wait = vm.waits(free_request(1, 9), 12)
    assert wait is not None
    vm.unit.in_flight.end(here)
    half = wait.is_over
    woken.clear()
    vm.units[1].in_flight.end(there)

    assert (half, wait.is_over) == (False, True)
    assert woken != []


def test_p37_the_last_access_of_a_freed_pasid_ends_it() -> None:
    vm = Vm()
    pasid = vm.attached()
    flight = vm.flying(pasid)
    vm.free(pasid)
    vm.waits(detach_request(1, ACCEL, pasid))

    before = (vm.set.used, vm.allocator.released())
    vm.unit.in_flight.end(flight)

    assert before == (1, [])
    assert (vm.set.used, vm.allocator.released()) == (0, [pasid])


def test_unmanaged_a_detached_pasid_ends_when_its_last_access_has() -> None:
    vm = Vm(accept=UNMANAGED)
    vm.attach(1, ACCEL, 5)
    map_(vm.unit, 1, 0x1000, 0x1FFF)
    flight = vm.flying(5)

    vm.waits(detach_request(1, ACCEL, 5))
    meanwhile = (vm.set.used, vm.attach(1, ACCEL, 5))
    vm.unit.in_flight.end(flight)

    assert meanwhile == (1, S_NOENT)
    assert vm.allocator.told[-2:] == [("free-pending", (5,)), ("release", (5,))]
    assert vm.attach(1, ACCEL, 5) == S_OK


def test_bypass_switched_off_cancels_what_bypassed_with_a_pasid() -> None:
    vm = Vm(replace(UNIT, isolation="off"))
    vm.mirror(ACCEL, vm.alloc())
    flight = vm.flying(1)

    vm.unit.set_bypass(False)

    assert flight.over
