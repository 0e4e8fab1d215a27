"""Accesses with a PASID: the gates of the capability, then the pair's own translation; refused ones touch nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.pasid_allocator import PlainAllocator
from vdev.errors import TranslationFault
from vdev.events import DmaDone
from vdev.functions.dma import DmaDoor, TaggedDoor
from vdev.iommu.engine import Engine
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.settings import EndpointSettings, PasidSettings, UnitSettings
from vdev.iommu.tag import Tag
from vdev.memory import Region, RegionTable
from vdev.wire import pci
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

ENDPOINT, OTHER = 0x100, 0x200
PAGE = 4096
RAM_GPA = 0x10_0000
IOVA = 0x4000
CANARY = b"canary" * 1000
ALL_RIGHTS = pci.PASID_ENABLE | pci.PASID_EXECUTE | pci.PASID_PRIVILEGED


@dataclass
class FakeFunction:
    """A function with its gates and its view of memory."""

    dma_enabled: bool = True
    pasid_control: int = pci.PASID_ENABLE
    pasid_bits: int = 20
    memory: RegionTable = field(default_factory=RegionTable)


class Rig:
    """A unit whose driver has accepted PASIDs, an endpoint with two regions of RAM full of canaries, and its door."""

    def __init__(self) -> None:
        self.allocator = PlainAllocator()
        self.set = PasidSet(self.allocator)
        pasids = PasidSettings(execute=True, privileged=True)
        self.engine = Engine(
            UnitSettings("unit", pasids=True),
            [EndpointSettings(ENDPOINT, "ep", pasid=pasids), EndpointSettings(OTHER, "other", pasid=pasids)],
            pasids=self.set,
        )
        self.engine.set_features(-1)
        self.function = FakeFunction()
        self.regions = [bytearray(CANARY[: 2 * PAGE].ljust(2 * PAGE, b"c")) for _ in range(2)]
        for number, ram in enumerate(self.regions):
            self.function.memory.add(Region(RAM_GPA + number * 0x10_0000, 2 * PAGE, memoryview(ram)))
        self.before = [bytes(ram) for ram in self.regions]
        self.events: list[DmaDone] = []
        self.door = DmaDoor(self.engine, ENDPOINT, self.function)

    def ask(self, request: wire.Attach | wire.Map | pasid_wire.AttachPasid | pasid_wire.DetachPasid) -> None:
        assert self.engine.handle(request.pack(), 4) == wire.TAILS[wire.S_OK]

    def allocate(self) -> int:
        """One PASID by PASID_ALLOC."""
        self.engine.handle(
            pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 1, pasid_wire.PASID_LAST).pack(), 12
        )
        wait, self.engine.wait = self.engine.wait, None
        assert wait is not None
        self.allocator.answer()
        answer = wait.answer()
        assert answer is not None
        return int.from_bytes(answer[:4], "little")

    def attach(self, pasid: int, domain: int = 5, endpoint: int = ENDPOINT) -> None:
        self.ask(pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), domain, endpoint, pasid))

    def map(self, domain: int = 5, gpa: int = RAM_GPA) -> None:
        self.ask(wire.Map(wire.T_MAP, bytes(3), domain, IOVA, IOVA + PAGE - 1, gpa, 3))

    def free(self, pasid: int) -> None:
        self.engine.handle(pasid_wire.PasidFree(pasid_wire.T_PASID_FREE, bytes(3), pasid, pasid).pack(), 12)
        self.engine.wait = None

    def fault(self) -> pasid_wire.FaultPasid:
        """The one fault record that waits."""
        (pending,) = self.engine.pending_faults
        return pasid_wire.FaultPasid.parse(self.engine.told_fault(pending, 48))

    @property
    def is_untouched(self) -> bool:
        return [bytes(ram) for ram in self.regions] == self.before


Scene = Callable[[Rig], Tag]


def attached(rig: Rig) -> int:
    """A PASID that is attached and has a page mapped."""
    pasid = rig.allocate()
    rig.attach(pasid)
    rig.map()
    return pasid


def mapped_elsewhere(rig: Rig) -> Tag:
    """What a PASID of another guest, or none's, looks like: the RID and another pair could reach the page."""
    attached(rig)
    rig.ask(wire.Attach(wire.T_ATTACH, bytes(3), 5, ENDPOINT))
    return Tag(0x777)


def allocated_only(rig: Rig) -> Tag:
    attached(rig)
    return Tag(rig.allocate())


def attached_to_another_endpoint(rig: Rig) -> Tag:
    attached(rig)
    pasid = rig.allocate()
    rig.attach(pasid, endpoint=OTHER)
    return Tag(pasid)


def detached(rig: Rig) -> Tag:
    pasid = attached(rig)
    rig.attach(rig.allocate())  # keeps the domain
    rig.ask(pasid_wire.DetachPasid(pasid_wire.T_DETACH_PASID, bytes(3), 5, ENDPOINT, pasid))
    return Tag(pasid)


def freed(rig: Rig) -> Tag:
    tag = detached(rig)
    rig.free(tag.pasid)
    return tag


def free_pending(rig: Rig) -> Tag:
    pasid = attached(rig)
    rig.free(pasid)
    return Tag(pasid)


def reset(rig: Rig) -> Tag:
    pasid = attached(rig)
    rig.engine.device_reset()
    rig.engine.set_features(-1)
    return Tag(pasid)


def disabled(rig: Rig) -> Tag:
    rig.function.pasid_control = pci.PASID_EXECUTE
    return Tag(attached(rig))


def narrow(rig: Rig) -> Tag:
    pasid = attached(rig)
    rig.function.pasid_bits = pasid.bit_length() - 1
    return Tag(pasid)


def without_execute(rig: Rig) -> Tag:
    return Tag(attached(rig), execute=True)


def without_privilege(rig: Rig) -> Tag:
    return Tag(attached(rig), privileged=True)


def executing(rig: Rig) -> Tag:
    rig.function.pasid_control = ALL_RIGHTS
    return Tag(attached(rig), execute=True)


def unmapped(rig: Rig) -> Tag:
    pasid = rig.allocate()
    rig.attach(pasid)
    return Tag(pasid)


def mirror(rig: Rig) -> int:
    pasid = rig.allocate()
    flags = pasid_wire.ATTACH_PASID_F_MIRROR_RID
    rig.ask(pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), 0, ENDPOINT, pasid, flags))
    return pasid


def mirror_of_an_unattached_rid(rig: Rig) -> Tag:
    rig.engine.set_bypass(False)
    return Tag(mirror(rig))


def mirror_of_a_bypassing_rid(rig: Rig) -> Tag:
    rig.engine.set_bypass(True)
    return Tag(mirror(rig))


PASID, DISABLED = pasid_wire.FAULT_R_PASID, pasid_wire.FAULT_R_PASID_DISABLED
REFUSED: list[tuple[Scene, str, int]] = [
    (mapped_elsewhere, "pasid-not-attached", PASID),
    (allocated_only, "pasid-not-attached", PASID),
    (attached_to_another_endpoint, "pasid-not-attached", PASID),
    (detached, "pasid-not-attached", PASID),
    (freed, "pasid-not-attached", PASID),
    (free_pending, "pasid-free-pending", PASID),
    (reset, "pasid-not-attached", PASID),
    (mirror_of_an_unattached_rid, "pasid-rid-unattached", PASID),
    (mirror_of_a_bypassing_rid, "pasid-rid-bypasses", PASID),
    (disabled, "pasid-disabled", DISABLED),
    (narrow, "pasid-too-wide", DISABLED),
    (without_execute, "execute-disabled", DISABLED),
    (without_privilege, "privileged-disabled", DISABLED),
    (executing, "no-execute", wire.FAULT_R_MAPPING),
    (unmapped, "not-mapped", wire.FAULT_R_MAPPING),
]


def read(door: TaggedDoor) -> None:
    door.read(IOVA, 64)


def write(door: TaggedDoor) -> None:
    door.write(IOVA, b"x" * 64)


def begin_reading(door: TaggedDoor) -> None:
    door.begin(IOVA, 64, write=False)


def begin_writing(door: TaggedDoor) -> None:
    door.begin(IOVA, 64, write=True)


@pytest.mark.parametrize("access", [read, write, begin_reading, begin_writing])
@pytest.mark.parametrize(("scene", "word", "reason"), REFUSED, ids=[scene.__name__ for scene, _, _ in REFUSED])
def test_p42_p47_what_a_pasid_may_not_reach_stays_as_it_was_and_the_fault_tells_it(
    scene: Scene, word: str, reason: int, access: Callable[[TaggedDoor], None]
) -> None:
    rig = Rig()
    tag = scene(rig)
    rig.door.trace = rig.events.append  # type: ignore[assignment]

    with pytest.raises(TranslationFault) as refused:
        access(rig.door.tagged(tag))

    writes = access in (write, begin_writing)
    flags = wire.FAULT_F_ADDRESS | pasid_wire.FAULT_F_PASID | (wire.FAULT_F_WRITE if writes else wire.FAULT_F_READ)
    flags |= pasid_wire.FAULT_F_EXEC if tag.execute else 0
    flags |= pasid_wire.FAULT_F_PRIVILEGED if tag.privileged else 0
    assert (refused.value.reason, rig.is_untouched) == (word, True)
    assert rig.fault() == pasid_wire.FaultPasid(reason, bytes(3), flags, ENDPOINT, tag.pasid, IOVA)
    assert rig.door.refused == {word: 1}
    assert [(event.pasid, event.reason, event.write) for event in rig.events] == [(tag.pasid, word, writes)]
    assert rig.door.nflights == 0


def test_p23_a_pair_reaches_what_its_own_domain_maps() -> None:
    rig = Rig()
    tag = Tag(attached(rig))
    rig.ask(wire.Attach(wire.T_ATTACH, bytes(3), 6, ENDPOINT))
    rig.map(6, RAM_GPA + 0x10_0000)
    other = rig.allocate()
    rig.attach(other, domain=7)
    rig.map(7, RAM_GPA + PAGE)

    rig.door.tagged(tag).views(IOVA, 11, write=True)[0][:] = b"by its pair"
    rig.door.write(IOVA, b"by the RID")
    rig.door.tagged(Tag(other)).write(IOVA, b"by another")

    assert rig.regions[0][:11] == b"by its pair"
    assert rig.regions[1][:10] == b"by the RID"
    assert rig.regions[0][PAGE : PAGE + 10] == b"by another"
    assert rig.door.refused == {}


def test_p43_p45_privilege_that_is_enabled_opens_nothing_and_stands_in_nobodys_way() -> None:
    rig = Rig()
    rig.function.pasid_control = ALL_RIGHTS
    tag = Tag(attached(rig), privileged=True)

    rig.door.tagged(tag).write(IOVA, b"kernel")
    with pytest.raises(TranslationFault, match="not-mapped"):
        rig.door.tagged(tag).read(IOVA + PAGE, 1)

    assert rig.regions[0][:6] == b"kernel"


def test_p46_an_endpoint_that_has_to_use_a_pasid_reaches_nothing_without_one() -> None:
    rig = Rig()
    attached(rig)
    rig.ask(wire.Attach(wire.T_ATTACH, bytes(3), 5, ENDPOINT))
    rig.door.pasid_only = True

    with pytest.raises(TranslationFault, match="pasid-required"):
        rig.door.write(IOVA, b"x")

    assert rig.is_untouched
    record = rig.fault()
    assert (record.reason, record.flags) == (
        pasid_wire.FAULT_R_PASID_REQUIRED,
        wire.FAULT_F_WRITE | wire.FAULT_F_ADDRESS,
    )


def test_an_access_in_flight_whose_capability_was_disabled_lands_nowhere() -> None:
    rig = Rig()
    door = rig.door.tagged(Tag(attached(rig)))
    flight = door.begin(IOVA, 64, write=True)

    rig.function.pasid_control = 0
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
    rig.engine.handle(wire.Unmap(wire.T_UNMAP, bytes(3), 5, IOVA, IOVA + PAGE - 1).pack(), 4)

    with pytest.raises(TranslationFault, match="not-mapped"):
        door.land(flight)
    door.end(flight)

    assert rig.is_untouched


def test_a_trace_tells_the_pasid_of_what_was_allowed() -> None:
    rig = Rig()
    tag = Tag(attached(rig))
    rig.door.trace = rig.events.append  # type: ignore[assignment]

    rig.door.tagged(tag).write(IOVA, b"x")

    assert rig.events == [DmaDone(ENDPOINT, IOVA, 1, True, 1, "", tag.pasid)]
