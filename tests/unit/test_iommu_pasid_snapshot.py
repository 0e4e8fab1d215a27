"""Saved and restored: a unit's pairs, what was allocated through it, and the set they have to fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.iommu_requests import attach, map_
from tests.support.pasid_requests import ACCEL, HOLED, MIRROR, NARROW, NEITHER, UNMANAGED, Vm, alloc_request
from vdev.errors import TranslationFault
from vdev.iommu.events import Event
from vdev.iommu.pasid_held import Held
from vdev.iommu.pasid_set import Refusal
from vdev.iommu.snapshot import SnapshotError
from vdev.iommu.tag import Tag


def used(accept: int = -1) -> Vm:
    """A unit with pairs of each kind, mappings of a domain without an endpoint, and a PASID that is free-pending."""
    vm = Vm(accept=accept)
    if accept == -1:
        for _ in range(4):
            vm.alloc()
    vm.attach(1, ACCEL, 1)
    vm.attach(1, HOLED, 1)
    map_(vm.unit, 1, 0x1000, 0x1FFF, 0x10_0000)
    attach(vm.unit, 2, NARROW)
    vm.attach(2, ACCEL, 2)
    vm.mirror(NARROW, 1)
    if accept == -1:
        vm.free(2)
    vm.unit.fault(ACCEL, TranslationFault(0x40, "word", 0), 1, Tag(1))
    return vm


def saved(vm: Vm) -> dict[str, Any]:
    """As it comes back from a file."""
    state: dict[str, Any] = json.loads(json.dumps(vm.unit.snapshot()))
    return state


@pytest.mark.parametrize("accept", [-1, UNMANAGED])
def test_a_restore_of_what_there_is_changes_nothing(accept: int) -> None:
    vm = used(accept)
    before, ntold = vm.state(), len(vm.allocator.told)

    vm.unit.restore(saved(vm))

    assert vm.state() == before
    assert not [what for what, _ in vm.allocator.told[ntold:] if what != "attached"]
    assert vm.reach(ACCEL, 1, 0x1000) == 0x10_0000


@pytest.mark.parametrize("accept", [-1, UNMANAGED])
def test_a_set_as_new_takes_the_pasids_of_a_saved_unit(accept: int) -> None:
    old, new = used(accept), Vm(accept=0)

    new.unit.restore(saved(old))

    assert new.state() == old.state()
    assert new.reach(HOLED, 1, 0x1000) == 0x10_0000


def test_what_a_set_took_and_the_authority_does_not_hold_is_gone() -> None:
    new = Vm(accept=0)
    new.unit.restore(saved(used()))

    new.set.reconcile([1, 2, 3])

    assert [row["pasid"] for row in new.set.list_pasids()] == [1, 2, 3]


def test_a_unit_without_pasids_is_saved_as_ever() -> None:
    vm = Vm(accept=NEITHER)
    attach(vm.unit, 1, ACCEL)

    state = vm.unit.snapshot()

    assert (state["version"], sorted(state)) == (1, ["bypass", "domains", "features", "pending_faults", "version"])
    assert "pairs" not in state["domains"][0]


def test_what_came_after_the_state_was_saved_is_freed() -> None:
    vm = used()
    state = saved(vm)
    late = vm.alloc()
    vm.attach(1, ACCEL, late)
    vm.mirror(ACCEL, vm.alloc())

    vm.unit.restore(state)

    assert vm.unit.snapshot() == state
    assert sorted(vm.allocator.released()) == [late, late + 1]


def test_what_ended_since_the_state_was_saved_does_not_come_back() -> None:
    vm = used()
    state = saved(vm)
    vm.free(3)
    before = vm.state()

    with pytest.raises(SnapshotError, match="PASID 3 is not in the set any more"):
        vm.unit.restore(state)

    assert vm.state() == before


def test_what_was_freed_since_does_not_either() -> None:
    vm = used()
    state = saved(vm)
    vm.free(1)

    with pytest.raises(SnapshotError, match=r"PASID 1 .* was freed since"):
        vm.unit.restore(state)


def test_a_pair_of_a_pasid_that_only_an_access_in_flight_held_is_not_restored() -> None:
    vm = used()
    flight = vm.flying(1)
    vm.free(1)
    state = saved(vm)
    for domain, endpoint in ((1, ACCEL), (1, HOLED), (0, NARROW)):
        vm.detach(domain, endpoint, 1)
    assert not flight.over

    vm.unit.restore(state)

    assert flight.over
    assert [row["pasid"] for row in vm.unit.pasids.list_pairs()] == [2]
    assert [row["pasid"] for row in vm.set.list_pasids()] == [2, 3, 4]
    assert vm.unit.table.npairs == 1


def test_what_was_asked_for_before_a_restore_goes_back() -> None:
    vm = used()
    state = saved(vm)
    vm.unit.handle(alloc_request(1, 99), 12)
    vm.unit.wait = None

    vm.unit.restore(state)
    vm.allocator.answer()

    assert vm.unit.snapshot() == state
    assert vm.allocator.released() == [5]


def test_the_hosts_own_pair_is_no_state_and_survives() -> None:
    vm = Vm()
    found: list[Held | Refusal] = []
    vm.set.ask_for_host(found.append)
    vm.allocator.answer()
    vm.unit.host_attach_mirror(ACCEL, 1)
    state = saved(vm)

    vm.unit.restore(state)

    assert "pasids" not in state
    assert [(row["pasid"], row["owner"]) for row in vm.unit.pasids.list_pairs()] == [(1, "host")]
    assert vm.set.list_pasids()[0]["pairs"] == 1


def test_another_units_pasid_is_found_in_the_set() -> None:
    vm = Vm(units=2)
    pasid = vm.alloc(unit=vm.units[1])
    vm.attach(1, ACCEL, pasid)
    state = saved(vm)
    events: list[Event] = vm.events[:]

    vm.unit.restore(state)

    assert vm.unit.snapshot() == state
    assert vm.events == events
    vm.free(pasid)
    vm.detach(1, ACCEL, pasid)
    with pytest.raises(SnapshotError, match="is not in the set"):
        vm.unit.restore(state)


def drop_held(state: dict[str, Any]) -> None:
    del state["pasids"]["held"]


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no held": drop_held,
    "held twice": lambda state: state["pasids"]["held"].append(state["pasids"]["held"][0]),
    "pasid 0": lambda state: state["pasids"]["held"][0].update(pasid=0),
    "pasid too wide": lambda state: state["pasids"]["held"][0].update(pasid=1 << 20),
    "pasid of text": lambda state: state["pasids"]["held"][0].update(pasid="1"),
    "a pair of nobody's": lambda state: state["domains"][0]["pairs"].append([ACCEL, 99]),
    "a pair twice": lambda state: state["pasids"]["mirrors"].append([ACCEL, 1]),
    "a pair of an unknown endpoint": lambda state: state["domains"][0]["pairs"].append([0x999, 3]),
    "a pair the endpoint cannot have": lambda state: state["domains"][0]["pairs"].append([NARROW, 3]),
    "a pair that bypasses": lambda state: state["domains"].append(
        {"id": 9, "bypass": True, "endpoints": [], "mappings": [], "pairs": [[ACCEL, 3]]}
    ),
    "a fault of 30 bytes": lambda state: state["pending_faults"].append("00" * 30),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(what: str) -> None:
    vm = used()
    state = saved(vm)
    SPOILED[what](state)
    before = vm.state()

    with pytest.raises(SnapshotError):
        vm.unit.restore(state)

    assert vm.state() == before


def test_mirrors_and_domains_come_back_as_they_were() -> None:
    old, new = Vm(accept=UNMANAGED), Vm(accept=0)
    old.attach(0, ACCEL, 3, MIRROR)

    new.unit.restore(saved(old))

    assert new.unit.pasids.list_pairs() == old.unit.pasids.list_pairs()
