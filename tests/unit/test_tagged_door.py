"""Accesses with a PASID: the gates of the capability, then the pair's own translation; refused ones touch nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tests.support.pasid_scene import (
    ALL_RIGHTS,
    ENDPOINT,
    IOVA,
    LACKS,
    PAGE,
    REGIONS,
    Lack,
    Rig,
    attached,
    flags_of,
)
from vdev.errors import TranslationFault
from vdev.events import DmaDone
from vdev.functions.dma import MAX_COUNTED_PASIDS, TaggedDoor
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire


def read(door: TaggedDoor) -> None:
    door.read(IOVA, 64)


def write(door: TaggedDoor) -> None:
    door.write(IOVA, b"x" * 64)


def begin_reading(door: TaggedDoor) -> None:
    door.begin(IOVA, 64, write=False)


def begin_writing(door: TaggedDoor) -> None:
    door.begin(IOVA, 64, write=True)


@pytest.mark.parametrize("access", [read, write, begin_reading, begin_writing])
@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: lack.name)
def test_p42_p47_what_a_pasid_may_not_reach_stays_as_it_was_and_the_fault_tells_it(
    lack: Lack, access: Callable[[TaggedDoor], None]
) -> None:
    rig = Rig(bits=lack.bits)
    tag = lack.prepare(rig)
    events: list[DmaDone] = []
    rig.door.trace = events.append  # type: ignore[assignment]

    with pytest.raises(TranslationFault) as refused:
        access(rig.door.tagged(tag))

    writes = access in (write, begin_writing)
    told = pasid_wire.FaultPasid(lack.reason, bytes(3), flags_of(tag, write=writes), ENDPOINT, tag.pasid, IOVA)
    assert (refused.value.reason, rig.is_untouched) == (lack.word, True)
    assert rig.faults() == [told]
    assert rig.door.refused == {lack.word: 1}
    assert rig.door.refused_pasids == {tag.pasid: 1}
    assert [(event.pasid, event.reason, event.write) for event in events] == [(tag.pasid, lack.word, writes)]
    assert rig.door.nflights == 0


@pytest.mark.parametrize("access", [read, write, begin_reading, begin_writing])
def test_p47_an_access_of_which_a_part_is_refused_touches_none_of_it(access: Callable[[TaggedDoor], None]) -> None:
    rig = Rig(granule=16)
    pasid = rig.allocate()
    rig.attach(pasid)
    rig.map(nbytes=48)  # of the 64 bytes

    with pytest.raises(TranslationFault, match="not-mapped"):
        access(rig.door.tagged(Tag(pasid)))

    (told,) = rig.faults()
    assert (told.reason, told.pasid, told.address) == (wire.FAULT_R_MAPPING, pasid, IOVA + 48)
    assert rig.is_untouched
    assert rig.door.nflights == 0


def test_refusals_are_counted_by_pasid_for_so_many_and_for_all_others_together() -> None:
    rig = Rig()
    for pasid in (1, *range(1, MAX_COUNTED_PASIDS + 11)):
        with pytest.raises(TranslationFault):
            rig.door.tagged(Tag(pasid)).read(IOVA, 1)

    assert rig.door.refused_pasids[1] == 2
    assert rig.door.refused_pasids[0] == 10
    assert len(rig.door.refused_pasids) == MAX_COUNTED_PASIDS + 1


def test_p23_a_pair_reaches_what_its_own_domain_maps() -> None:
    rig = Rig()
    tag = Tag(attached(rig))
    rig.attach_rid(6)
    rig.map(6, REGIONS[1])
    other = rig.allocate()
    rig.attach(other, domain=7)
    rig.map(7, REGIONS[0] + PAGE)

    rig.door.tagged(tag).views(IOVA, 11, write=True)[0][:] = b"by its pair"
    rig.door.write(IOVA, b"by the RID")
    rig.door.tagged(Tag(other)).write(IOVA, b"by another")

    assert rig.regions[0][:11] == b"by its pair"
    assert rig.regions[1][:10] == b"by the RID"
    assert rig.regions[0][PAGE : PAGE + 10] == b"by another"
    assert rig.door.refused == {}


def test_p43_p45_privilege_that_is_enabled_opens_nothing_and_stands_in_nobodys_way() -> None:
    rig = Rig()
    rig.set_control(ALL_RIGHTS)
    tag = Tag(attached(rig), privileged=True)

    rig.door.tagged(tag).write(IOVA, b"kernel")
    with pytest.raises(TranslationFault, match="not-mapped"):
        rig.door.tagged(tag).read(IOVA + PAGE, 1)

    assert rig.regions[0][:6] == b"kernel"


def test_p46_an_endpoint_that_has_to_use_a_pasid_reaches_nothing_without_one() -> None:
    rig = Rig()
    attached(rig)
    rig.attach_rid(5)
    rig.door.pasid_only = True

    with pytest.raises(TranslationFault, match="pasid-required"):
        rig.door.write(IOVA, b"x")

    assert rig.is_untouched
    (record,) = rig.faults()
    assert (record.reason, record.flags) == (
        pasid_wire.FAULT_R_PASID_REQUIRED,
        wire.FAULT_F_WRITE | wire.FAULT_F_ADDRESS,
    )


def test_an_access_in_flight_whose_capability_was_disabled_lands_nowhere() -> None:
    rig = Rig()
    door = rig.door.tagged(Tag(attached(rig)))
    flight = door.begin(IOVA, 64, write=True)

    rig.set_control(0)
    with pytest.raises(TranslationFault, match="pasid-disabled"):
        door.land(flight)
    door.end(flight)

    assert rig.is_untouched
    assert rig.door.nflights == 0


def test_what_was_under_way_when_its_pasid_was_freed_lands_and_nothing_after_it() -> None:
    rig = Rig()
    tag = Tag(attached(rig))
    door = rig.door.tagged(tag)
    flight = door.begin(IOVA, 4, write=True)

    rig.free(tag.pasid)
    door.land(flight)[0][:] = b"last"
    door.end(flight)
    with pytest.raises(TranslationFault, match="pasid-free-pending"):
        door.write(IOVA, b"late")

    assert rig.regions[0][:4] == b"last"


def test_landings_are_translated_again_where_the_unit_says_so() -> None:
    rig = Rig()
    rig.engine.settings = dataclasses.replace(rig.engine.settings, revalidate=True)
    door = rig.door.tagged(Tag(attached(rig)))
    flight = door.begin(IOVA, 4, write=True)
    rig.unmap()

    with pytest.raises(TranslationFault, match="not-mapped"):
        door.land(flight)
    door.end(flight)

    assert rig.is_untouched


def test_a_trace_tells_the_pasid_of_what_was_allowed() -> None:
    rig = Rig()
    tag = Tag(attached(rig))
    events: list[DmaDone] = []
    rig.door.trace = events.append  # type: ignore[assignment]

    rig.door.tagged(tag).write(IOVA, b"x")

    assert events == [DmaDone(ENDPOINT, IOVA, 1, True, 1, "", tag.pasid)]
