"""PASIDs the host attaches itself: when they are asked for, what they reach, and what becomes of them."""

from __future__ import annotations

import pytest

from tests.support.iommu_requests import attach, map_
from tests.support.pasid_requests import ACCEL, NARROW, SMALL, WIDE, Vm
from vdev.errors import TranslationFault
from vdev.functions.kernel_pasid import KernelPasids
from vdev.iommu.pasid_set import Refusal, Terms
from vdev.iommu.settings import PasidSettings

NOT_YET = "the host has not answered yet"


class Rig(Vm):
    """A VM whose first endpoint is to have a kernel PASID; `shown` is what the endpoint was told."""

    def __init__(self, *, quota: int = 8) -> None:
        super().__init__(terms=Terms("per-vm", quota, 1, 1 << 20))
        self.kernel = KernelPasids(self.set)
        self.shown: list[int] = []
        self.kernel.add(self.unit, ACCEL, WIDE, self.shown.append)

    def open(self) -> None:
        self.kernel.open()
        self.allocator.answer()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_it_is_asked_for_when_the_host_has_a_set_and_not_before(rig: Rig) -> None:
    before = list(rig.allocator.waiting)
    rig.open()

    assert before == []
    assert rig.shown == [1]
    assert rig.kernel.describe() == [{"endpoint": "accel", "pasid": 1}]
    assert (rig.kernel.of(ACCEL), rig.set.used) == (1, 1)


def test_it_is_asked_for_once_however_often_the_set_is_there_again(rig: Rig) -> None:
    rig.kernel.open()
    rig.kernel.open()
    rig.allocator.answer()
    rig.kernel.open()

    assert (rig.allocator.waiting, rig.allocator.granted, rig.shown) == ([], {1}, [1])


def test_it_reaches_what_is_mapped_for_the_endpoint_and_no_more(rig: Rig) -> None:
    rig.open()
    with pytest.raises(TranslationFault) as unattached:
        rig.reach(ACCEL, 1, 0x1000)
    attach(rig.unit, 5, ACCEL)
    map_(rig.unit, 5, 0x1000, 0x1FFF, 0x7000)

    assert unattached.value.reason in ("pasid-rid-unattached", "pasid-rid-bypasses")
    assert rig.reach(ACCEL, 1, 0x1234) == 0x7234


def test_it_survives_a_reset_of_the_unit(rig: Rig) -> None:
    rig.open()

    rig.unit.device_reset()

    assert rig.kernel.of(ACCEL) == 1
    assert [pair.pasid for pair in rig.unit.table.endpoints[ACCEL].pairs.values()] == [1]


def test_one_the_endpoint_cannot_have_is_not_asked_for(rig: Rig) -> None:
    narrow: list[int] = []
    rig.kernel.add(rig.unit, NARROW, SMALL, narrow.append)
    rig.kernel.open()

    spans = [(first, stop) for first, stop, _ in rig.allocator.waiting]

    assert spans == [(1, 1 << 20), (1, 3)]  # of the narrow one 3, 4, 14 and 15 are its own, and it has 4 bits


def test_where_a_range_has_none_left_the_next_is_tried(rig: Rig) -> None:
    rig.allocator.granted |= {1, 2}  # others have them
    narrow: list[int] = []
    rig.kernel.add(rig.unit, NARROW, SMALL, narrow.append)
    rig.allocator.refuse = Refusal.RANGE
    rig.kernel.open()
    rig.allocator.waiting[1][2](Refusal.RANGE)
    rig.allocator.waiting.pop(1)
    (_, last) = rig.allocator.waiting

    assert last[:2] == (5, 14)


@pytest.mark.parametrize(
    ("why", "problem"),
    [
        (Refusal.SUPPLY, "the host has none to give"),
        (Refusal.UNREACHABLE, "the host's allocator did not answer"),
        (Refusal.RANGE, "none that the endpoint can have is free"),
    ],
)
def test_one_that_cannot_be_had_says_why_and_is_asked_for_with_the_next_set(why: Refusal, problem: str) -> None:
    rig = Rig()
    rig.allocator.refuse = why
    rig.open()
    said = rig.kernel.describe()
    rig.allocator.refuse = None
    rig.open()

    assert said == [{"endpoint": "accel", "problem": problem}]
    assert rig.shown == [1]


def test_a_quota_that_leaves_no_room_is_said_and_a_larger_one_is_used_at_once() -> None:
    rig = Rig(quota=0)
    rig.open()
    said = rig.kernel.describe()
    rig.allocator.change(quota=1)
    rig.allocator.answer()

    assert said == [{"endpoint": "accel", "problem": "the VM's quota is used up"}]
    assert rig.shown == [1]


def test_one_the_host_took_away_is_shown_no_more_and_is_asked_for_with_the_next_set(rig: Rig) -> None:
    rig.open()
    rig.set.reconcile(())
    gone = rig.kernel.describe()
    rig.allocator.granted.clear()
    rig.open()

    assert gone == [{"endpoint": "accel", "problem": NOT_YET}]
    assert rig.shown == [1, 0, 1]


def test_one_an_administrator_took_is_asked_for_by_the_next_vm_only(rig: Rig) -> None:
    rig.open()
    rig.set.revoke([1])
    rig.kernel.taken(frozenset({1}))
    rig.open()
    said = (list(rig.shown), rig.kernel.describe())
    rig.kernel.new_vm()
    rig.open()

    assert said == ([1, 0], [{"endpoint": "accel", "problem": "an administrator took it"}])
    assert rig.shown == [1, 0, 2]


def test_another_pasid_that_was_taken_is_no_matter(rig: Rig) -> None:
    rig.open()
    rig.kernel.taken(frozenset({7}))

    assert rig.kernel.describe() == [{"endpoint": "accel", "pasid": 1}]


def test_an_endpoint_that_leaves_gives_it_back(rig: Rig) -> None:
    rig.open()

    rig.kernel.remove(ACCEL)
    rig.unit.remove_endpoint(ACCEL)

    assert (rig.allocator.released(), rig.set.used, rig.kernel.describe()) == ([1], 0, [])


def test_one_that_is_granted_when_its_endpoint_has_left_goes_back(rig: Rig) -> None:
    rig.kernel.open()
    rig.kernel.remove(ACCEL)
    rig.unit.remove_endpoint(ACCEL)
    rig.allocator.answer()

    assert (rig.allocator.released(), rig.set.used, rig.shown) == ([1], 0, [])


def test_of_an_endpoint_whose_pasids_are_all_its_own_there_is_none_to_ask_for() -> None:
    rig = Rig()
    rig.kernel.add(rig.unit, NARROW, PasidSettings(4, reserved=((1, 16),)), rig.shown.append)
    rig.open()

    assert rig.kernel.describe()[1] == {"endpoint": "narrow", "problem": "none that the endpoint can have is free"}
