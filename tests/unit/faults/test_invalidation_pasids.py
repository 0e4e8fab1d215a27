"""The point invalidation with PASIDs: what a pair, or the RID that it mirrors, has lost lives on."""

from __future__ import annotations

import pytest

from tests.support import flight
from tests.support.fault_scene import FaultScene, translated
from tests.support.flight import BUFFER, FILLED, OK, Attachment
from tests.support.pasid_allocator import PlainAllocator
from tests.support.virtio_pci import RAM_GPA
from vdev.functions.dma import READ
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.tag import Tag
from vdev.wire import viommu_pasid as pasid_wire

attach = flight.attach  # a fixture
PASID, PAIR_DOMAIN = 5, 7
STALE = [(RAM_GPA + BUFFER, 1)]  # where the first byte of the buffer lives on


@pytest.fixture
def paired(attach: Attachment) -> FaultScene:
    """accel0's PASID 5 in domain 7, where BUFFER is mapped."""
    allocator = PlainAllocator()
    scene = FaultScene(attach, pasids=PasidSet(allocator))
    scene.set_up()
    scene.post(pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), PASID, PASID))
    allocator.answer()
    scene.run()
    scene.answers()
    pair = pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), PAIR_DOMAIN, scene.number["accel0"], PASID)
    assert scene.ask(pair, scene.map(BUFFER, RAM_GPA + BUFFER, domain=PAIR_DOMAIN)) == [OK, OK]
    scene.accels["accel0"].enable_pasids(True)
    return scene


def leave(scene: FaultScene) -> pasid_wire.DetachPasid:
    return pasid_wire.DetachPasid(pasid_wire.T_DETACH_PASID, bytes(3), PAIR_DOMAIN, scene.number["accel0"], PASID)


def test_a_detached_pasid_goes_on_in_the_domain_it_left(paired: FaultScene) -> None:
    paired.add("invalidation", "stale", match={"pasid": PASID})

    assert paired.ask(leave(paired), paired.unmap(BUFFER)) == [OK, OK]
    paired.fill(pasid=PASID)

    assert paired.buffer() == FILLED
    assert translated(paired, BUFFER) == "not-mapped"
    assert translated(paired, BUFFER, tag=Tag(PASID, execute=True)) == "pasid-not-attached"


def test_unmap_concerns_the_pasids_of_the_domain(paired: FaultScene) -> None:
    paired.add("invalidation", "stale")

    paired.ask(paired.unmap(BUFFER, domain=PAIR_DOMAIN))

    assert translated(paired, BUFFER, tag=Tag(PASID)) == STALE


@pytest.mark.parametrize("what", ["unmap", "detach"])
def test_what_the_rid_loses_a_pasid_that_mirrors_it_loses(paired: FaultScene, what: str) -> None:
    mirror = pasid_wire.AttachPasid(
        pasid_wire.T_ATTACH_PASID,
        bytes(3),
        0,
        paired.number["accel0"],
        PASID,
        pasid_wire.ATTACH_PASID_F_MIRROR_RID,
    )
    assert paired.ask(mirror) == [OK]
    paired.add("invalidation", "stale")

    assert paired.ask(paired.unmap(BUFFER) if what == "unmap" else paired.detach()) == [OK]

    assert translated(paired, BUFFER, tag=Tag(PASID)) == STALE
    assert translated(paired, BUFFER) == STALE


def test_an_access_by_what_lives_on_is_of_its_pairs_domain_though_that_is_0(paired: FaultScene) -> None:
    number = paired.number["accel0"]
    moved = pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), 0, number, PASID)
    assert paired.ask(moved, paired.map(BUFFER, RAM_GPA + BUFFER, domain=0)) == [OK, OK]
    paired.add("invalidation", "stale")
    assert paired.ask(paired.unmap(BUFFER, domain=0)) == [OK]

    flight = paired.unit.doors["accel0"].translator.begin(number, BUFFER, 1, READ, Tag(PASID))

    assert (flight.pieces, flight.domain) == (STALE, 0)
