"""vdev.host: who may have which PASID, and when it is free again."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from vdev.errors import ConfigError
from vdev.host.changes import Change, Granted, Owner
from vdev.host.policy import STOP_PASID, AllocationRefused, HostSettings, Policy, PolicyError

ALL = (1, STOP_PASID)
SOAK = os.environ.get("VDEV_TIER") == "soak"


def owner(pid: int) -> Owner:
    return Owner(pid, 1000 + pid, "boot")


def do(policy: Policy, changes: Iterable[Change]) -> list[Change]:
    done = list(changes)
    for change in done:
        policy.apply(change)
    return done


def opened(policy: Policy, name: str, quota: int | None = None) -> int:
    do(policy, policy.open(name, owner(len(policy.sets) + 100), quota))
    return policy.next_set_id - 1


def grant(policy: Policy, set_id: int, first: int = 1, stop: int = STOP_PASID) -> Granted:
    (granted,) = do(policy, policy.allocate(set_id, first, stop))
    assert isinstance(granted, Granted)
    return granted


def why(policy: Policy, set_id: int, first: int = 1, stop: int = STOP_PASID) -> str:
    with pytest.raises(AllocationRefused) as refused:
        policy.allocate(set_id, first, stop)
    return refused.value.why


def test_a_vm_gets_a_thousand_unless_it_is_given_another_quota() -> None:
    policy = Policy(HostSettings())
    usual, small = opened(policy, "usual"), opened(policy, "small", 2)

    for _ in range(1000):
        grant(policy, usual)
    for _ in range(2):
        grant(policy, small)

    assert why(policy, usual) == "quota"
    assert why(policy, small) == "quota"
    assert policy.used == 1002


def test_in_a_system_space_two_vms_never_have_the_same_number() -> None:
    policy = Policy(HostSettings(space="system"))
    first, second = opened(policy, "first"), opened(policy, "second")

    had = [grant(policy, which) for _ in range(50) for which in (first, second)]

    assert len({granted.guest for granted in had}) == 100
    assert all(granted.guest == granted.host for granted in had)


def test_in_a_space_per_vm_equal_numbers_are_backed_by_different_ones_of_the_host() -> None:
    policy = Policy(HostSettings(space="per-vm"))
    first, second = opened(policy, "first"), opened(policy, "second")

    one, other = grant(policy, first, 7, 8), grant(policy, second, 7, 8)

    assert one.guest == other.guest == 7
    assert one.host != other.host


def test_a_number_that_was_given_back_rests_while_there_are_others() -> None:
    policy = Policy(HostSettings(space="system"))
    vm = opened(policy, "vm")
    first = grant(policy, vm).guest
    do(policy, policy.release(vm, [first]))

    second = grant(policy, vm).guest
    only = grant(policy, vm, first, first + 1).guest

    assert second != first
    assert only == first


def test_reserved_numbers_of_the_host_are_granted_to_nobody() -> None:
    policy = Policy(HostSettings(space="system", reserved=((1, 16), (STOP_PASID - 4, STOP_PASID))))
    vm = opened(policy, "vm")

    granted = grant(policy, vm).guest

    assert granted == 16
    assert why(policy, vm, 1, 16) == "range"
    assert why(policy, vm, STOP_PASID - 4, STOP_PASID) == "range"


def test_a_quota_lowered_below_what_is_used_takes_nothing_and_refuses_new_ones() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm", 20)
    for _ in range(15):
        grant(policy, vm)

    do(policy, policy.set_quota(vm, 10))
    used, refused = policy.sets[vm].used, why(policy, vm)
    do(policy, policy.release(vm, list(policy.sets[vm].pasids)[:6]))
    grant(policy, vm)

    assert used == 15
    assert refused == "quota"
    assert policy.sets[vm].used == 10


def test_a_freed_pasid_that_is_in_use_counts_and_is_not_granted_again() -> None:
    policy = Policy(HostSettings(space="system"))
    vm, other = opened(policy, "vm", 1), opened(policy, "other")
    pasid = grant(policy, vm).guest
    do(policy, policy.attached(vm, pasid, True))

    do(policy, policy.free_pending(vm, [pasid]))

    assert policy.sets[vm].pasids[pasid].state == "free-pending"
    assert why(policy, vm) == "quota"
    assert why(policy, other, pasid, pasid + 1) == "range"


def test_what_was_freed_is_never_attached_or_allocated_again_by_a_message_that_comes_late() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm")
    pasid = grant(policy, vm).guest
    do(policy, policy.free_pending(vm, [pasid]))

    assert policy.attached(vm, pasid, True) == []
    assert policy.attached(vm, pasid, False) == []


def test_a_release_that_is_repeated_changes_nothing() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm")
    pasid = grant(policy, vm).guest

    first = do(policy, policy.release(vm, [pasid, pasid]))
    second = do(policy, policy.release(vm, [pasid]))

    assert len(first) == 1
    assert second == []
    assert policy.used == 0


def test_the_ceiling_holds_over_all_vms_and_lowering_it_takes_nothing() -> None:
    policy = Policy(HostSettings(ceiling=3))
    one, other = opened(policy, "one"), opened(policy, "other")
    grant(policy, one)
    grant(policy, other)
    grant(policy, one)

    full = why(policy, other)
    do(policy, policy.set_ceiling(1))

    assert full == "supply"
    assert policy.used == 3
    with pytest.raises(PolicyError, match=r"ceiling 1048576 is not within 0\.\.1048575"):
        policy.set_ceiling(STOP_PASID)


def test_reserved_quotas_cannot_be_promised_twice_and_come_back_with_their_set() -> None:
    policy = Policy(HostSettings(overcommit="reserve", ceiling=100, quota=60))
    one = opened(policy, "one")

    with pytest.raises(PolicyError, match="VM two: quota 60 is more than what is not reserved, 40"):
        policy.open("two", owner(7), None)
    do(policy, policy.end(one, "its QEMU ended"))
    two = opened(policy, "two")

    assert policy.sets[two].quota == 60


def test_where_quotas_are_reserved_one_can_be_raised_only_by_what_is_left() -> None:
    policy = Policy(HostSettings(overcommit="reserve", ceiling=100))
    one = opened(policy, "one", 40)
    opened(policy, "two", 50)

    do(policy, policy.set_quota(one, 50))

    with pytest.raises(PolicyError, match="quota 51 is more than what is not reserved, 50"):
        policy.set_quota(one, 51)


def test_shared_quotas_may_promise_more_than_there_is() -> None:
    policy = Policy(HostSettings(overcommit="share", ceiling=10))
    one, other = opened(policy, "one", 10), opened(policy, "other", 10)

    for _ in range(10):
        grant(policy, one)

    assert why(policy, other) == "supply"


def test_a_set_whose_backend_is_gone_keeps_all_and_gets_nothing_until_it_is_claimed() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm")
    pasid = grant(policy, vm).guest

    do(policy, policy.quarantine(vm))
    meanwhile = why(policy, vm)
    do(policy, policy.claim(vm))

    assert meanwhile == "fenced"
    assert list(policy.sets[vm].pasids) == [pasid]
    assert grant(policy, vm).guest != pasid


def test_the_death_of_its_qemu_frees_all_of_a_set() -> None:
    policy = Policy(HostSettings(space="system", ceiling=2))
    vm, other = opened(policy, "vm"), opened(policy, "other")
    had = [grant(policy, vm).guest for _ in range(2)]

    do(policy, policy.end(vm, "its QEMU ended"))

    assert {grant(policy, other, number, number + 1).guest for number in had} == set(had)
    assert vm not in policy.sets


def test_a_reclaimed_pasid_is_quarantined_until_its_backend_has_drained_it() -> None:
    policy = Policy(HostSettings(space="system"))
    vm, other = opened(policy, "vm"), opened(policy, "other")
    pasid = grant(policy, vm).guest

    do(policy, policy.reclaim(vm, [pasid], force=False))
    state, refused = policy.sets[vm].pasids[pasid].state, why(policy, other, pasid, pasid + 1)
    do(policy, policy.release(vm, [pasid]))

    assert state == "quarantined"
    assert refused == "range"
    assert grant(policy, other, pasid, pasid + 1).guest == pasid


def test_a_pasid_nobody_has_cannot_be_reclaimed() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm")

    with pytest.raises(PolicyError, match="VM vm has no PASID 0x9"):
        policy.reclaim(vm, [9], force=True)


def test_a_fenced_set_gets_nothing_more_and_can_be_drained() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm")
    pasid = grant(policy, vm).guest

    do(policy, policy.fence(vm, force=False))
    refused, claimed = why(policy, vm), policy.claim(vm)
    do(policy, policy.release(vm, [pasid]))

    assert refused == "fenced"
    assert claimed == []
    assert policy.used == 0


def test_a_set_without_backend_is_taken_away_by_force_only() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm")
    grant(policy, vm)
    do(policy, policy.quarantine(vm))

    with pytest.raises(PolicyError, match="pid 100 is not known to be dead; use force"):
        policy.fence(vm, force=False)
    do(policy, policy.fence(vm, force=True))

    assert policy.used == 0
    assert policy.sets[vm].state == "fenced"


def test_a_vm_is_named_by_its_name_where_there_is_one_alone_else_by_its_number() -> None:
    policy = Policy(HostSettings())
    one, twin = opened(policy, "twin"), opened(policy, "twin")

    with pytest.raises(PolicyError, match=f"VM 'twin' is one of sets {one}, {twin}: say which"):
        policy.named("twin")
    with pytest.raises(PolicyError, match="there is no VM 'none'"):
        policy.named("none")

    assert policy.named(str(twin)).id == twin


def test_one_process_has_one_set() -> None:
    policy = Policy(HostSettings())
    do(policy, policy.open("vm", owner(5), None))

    with pytest.raises(PolicyError, match="VM again: pid 5 has a set already"):
        policy.open("again", owner(5), None)


def test_a_decision_alone_changes_nothing() -> None:
    policy = Policy(HostSettings())
    vm = opened(policy, "vm")
    grant(policy, vm)
    before = list(policy.dump())

    policy.allocate(vm, *ALL)
    policy.open("other", owner(9), None)
    policy.set_quota(vm, 5)
    policy.fence(vm, force=True)

    assert list(policy.dump()) == before


def test_what_is_dumped_makes_the_same_state_again() -> None:
    policy = Policy(HostSettings(space="system"))
    one, other = opened(policy, "one"), opened(policy, "other", 5)
    pasids = [grant(policy, one).guest for _ in range(4)]
    grant(policy, other)
    do(policy, policy.attached(one, pasids[0], True))
    do(policy, policy.free_pending(one, pasids[1:2]))
    do(policy, policy.reclaim(one, pasids[2:3], force=False))
    do(policy, policy.quarantine(other))
    do(policy, policy.set_ceiling(1000))

    again = Policy(policy.settings)
    for change in policy.dump():
        again.apply(change)

    assert list(again.dump()) == list(policy.dump())
    assert again.describe() == policy.describe()
    assert {known.describe()["set"]: known.describe() for known in again.sets.values()} == {
        known.describe()["set"]: known.describe() for known in policy.sets.values()
    }


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"reserved": ((0, 4),)}, "reserved: 0x0..0x3 is empty or not within 0x1..0xfffff"),
        ({"reserved": ((9, 9),)}, "reserved: 0x9..0x8 is empty"),
        ({"ceiling": -1}, "ceiling: -1 is not within 0..1048575"),
        ({"quota": 1 << 20}, "quota: 1048576 is not within 0..1048575"),
        ({"quota": 10, "max_quota": 5}, "quota: 10 is above max_quota, 5"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        HostSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.soak(count=STOP_PASID - 1 if SOAK else 4000, seed=0)
def test_every_pasid_of_the_host_is_granted_once_and_then_none() -> None:
    """In both numbers of a system space, by two guests in turn; given back, all are there again."""
    npasids = STOP_PASID - 1 if SOAK else 4000
    reserved = () if SOAK else ((npasids + 1, STOP_PASID),)
    policy = Policy(HostSettings(space="system", reserved=reserved, quota=STOP_PASID - 1))
    vms = [opened(policy, "one"), opened(policy, "other")]

    had = {grant(policy, vms[number % 2]).guest for number in range(npasids)}

    assert had == set(range(1, npasids + 1))
    assert [why(policy, vm) for vm in vms] == ["supply", "supply"]
    for vm in vms:
        do(policy, policy.end(vm, "its QEMU ended"))
    assert policy.supply == npasids
    assert policy.used == 0
