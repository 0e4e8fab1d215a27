"""DMA with a PASID in flight, an accelerator's, against what takes the PASID away: who waits, and what is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.support import flight
from tests.support.flight import BUFFER, EMPTY, FILLED, OK, PAGE, Attachment, FlightScene, status
from tests.support.pasid_allocator import PlainAllocator
from tests.support.virtio_pci import RAM_GPA
from vdev.iommu.pasid_set import PasidSet
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire
from vdev.wire.accelerator import CompletionStatus

attach = flight.attach  # a fixture
PASID, DOMAIN = 1, 7
FREED_ONE = pasid_wire.PasidFreed(1).pack() + OK


@dataclass
class Scene:
    """accel0 with its ring by the RID, and PASID 1 in a domain of its own, or mirroring the RID's."""

    flight: FlightScene
    allocator: PlainAllocator

    @property
    def accel(self) -> int:
        return self.flight.number["accel0"]

    def attach(self, domain: int = DOMAIN, flags: int = 0) -> pasid_wire.AttachPasid:
        return pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), domain, self.accel, PASID, flags)

    def detach(self, domain: int = DOMAIN) -> pasid_wire.DetachPasid:
        return pasid_wire.DetachPasid(pasid_wire.T_DETACH_PASID, bytes(3), domain, self.accel, PASID)

    def free(self) -> pasid_wire.PasidFree:
        return pasid_wire.PasidFree(pasid_wire.T_PASID_FREE, bytes(3), 1, 9)

    def fly(self) -> None:
        """A page being filled with the PASID: translated, not yet written."""
        self.flight.fill(pasid=PASID)
        assert (self.flight.nflights, self.flight.buffer()) == (1, EMPTY)


def made(attachment: Attachment, *, mirrors: bool = False) -> Scene:
    allocator = PlainAllocator()
    scene = Scene(FlightScene(attachment, pasids=PasidSet(allocator)).set_up(), allocator)
    scene.flight.post(pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), PASID, PASID))
    allocator.answer()
    scene.flight.run()
    assert [answer[-4:] for answer in scene.flight.answers()] == [OK]
    if mirrors:
        assert scene.flight.ask(scene.attach(0, pasid_wire.ATTACH_PASID_F_MIRROR_RID)) == [OK]
    else:
        mapped = scene.flight.map(BUFFER, RAM_GPA + BUFFER, domain=DOMAIN)
        assert scene.flight.ask(scene.attach(), mapped) == [OK, OK]
    scene.flight.accels["accel0"].enable_pasids(True)
    return scene


@pytest.fixture
def scene(attach: Attachment) -> Scene:
    """A page being filled with the PASID."""
    scene = made(attach)
    scene.fly()
    return scene


TAKES_AWAY: dict[str, Callable[[Scene], tuple[object, bytes]]] = {
    "detach": lambda scene: (scene.detach(), OK),
    "attach elsewhere": lambda scene: (scene.attach(DOMAIN + 1), OK),
    "mirror instead": lambda scene: (scene.attach(0, pasid_wire.ATTACH_PASID_F_MIRROR_RID), OK),
    "free": lambda scene: (scene.free(), FREED_ONE),
    "unmap": lambda scene: (scene.flight.unmap(BUFFER, domain=DOMAIN), OK),
}


@pytest.mark.parametrize("what", TAKES_AWAY)
def test_p29_p38_what_takes_a_pasid_away_is_answered_when_its_dma_has_landed(scene: Scene, what: str) -> None:
    request, answer = TAKES_AWAY[what](scene)

    early = scene.flight.ask(request)
    before = scene.flight.buffer()
    scene.flight.land()

    assert (early, before) == ([], EMPTY)
    assert (scene.flight.answers(), scene.flight.buffer()) == ([answer], FILLED)
    assert status(scene.flight) == CompletionStatus.OK


@pytest.mark.parametrize("what", TAKES_AWAY)
def test_p29_p38_after_the_answer_no_dma_with_it_changes_a_byte(attach: Attachment, what: str) -> None:
    scene = made(attach)
    request, answer = TAKES_AWAY[what](scene)
    assert scene.flight.ask(request) == [answer]

    scene.flight.fill(pasid=PASID)
    scene.flight.land()

    if what == "mirror instead":  # the RID reaches the same page, and so does the PASID now
        assert scene.flight.buffer() == FILLED
    else:
        assert scene.flight.buffer() == EMPTY
        assert status(scene.flight) == CompletionStatus.TRANSLATION_FAULT


def test_requests_about_the_rid_do_not_wait_for_a_pair_with_a_domain_of_its_own(scene: Scene) -> None:
    assert scene.flight.ask(scene.flight.unmap(BUFFER)) == [OK]


@pytest.mark.parametrize("what", ["unmap", "detach", "attach"])
def test_p25_requests_about_the_rid_wait_for_a_pair_that_mirrors(attach: Attachment, what: str) -> None:
    scene = made(attach, mirrors=True)
    scene.fly()
    rid = scene.flight

    early = rid.ask({"unmap": rid.unmap(BUFFER), "detach": rid.detach(), "attach": rid.attach(domain=3)}[what])
    rid.land()

    assert early == []
    assert (rid.answers(), rid.buffer()) == ([OK], FILLED)


def test_p37_a_pasid_freed_and_detached_in_flight_ends_when_it_has_landed(scene: Scene) -> None:
    scene.flight.post(scene.free(), scene.detach())
    early = scene.allocator.released()

    scene.flight.land()

    assert (early, scene.allocator.released()) == ([], [PASID])
    assert sorted(scene.flight.answers(), key=len) == [OK, FREED_ONE]


@pytest.mark.parametrize("kind", ["reset", "system_reset", "host_reset"])
def test_p51_a_reset_of_the_unit_cancels_and_gives_the_pasid_back(scene: Scene, kind: str) -> None:
    getattr(scene.flight.device, kind)()
    scene.flight.land()

    assert (scene.flight.buffer(), scene.flight.nflights) == (EMPTY, 0)
    assert scene.allocator.released() == [PASID]


def test_p51_a_reset_while_a_free_waits_ends_it_all(scene: Scene) -> None:
    early = scene.flight.ask(scene.free())

    scene.flight.device.reset()
    scene.flight.land()

    assert (early, scene.flight.buffer()) == ([], EMPTY)
    assert scene.allocator.released() == [PASID]


@pytest.mark.parametrize("how", ["flr", "cycle_bus_master"])
def test_p53_what_cancels_the_endpoints_dma_answers_a_free_that_waits(scene: Scene, how: str) -> None:
    early = scene.flight.ask(scene.free())

    getattr(scene.flight.accels["accel0"], how)()
    scene.flight.run()

    assert early == []
    assert scene.flight.answers() == [FREED_ONE]
    assert scene.flight.buffer() == EMPTY


def test_p54_an_endpoint_that_is_unplugged_takes_its_dma_and_its_pair_with_it(scene: Scene) -> None:
    early = scene.flight.ask(scene.free())

    scene.flight.remove("accel0")
    scene.flight.run()

    assert early == []
    assert scene.flight.answers() == [FREED_ONE]
    assert (scene.allocator.released(), scene.flight.buffer()) == ([PASID], EMPTY)


def test_what_the_host_takes_away_in_flight_changes_no_byte(scene: Scene) -> None:
    scene.flight.engine.pasids.set.revoke([PASID])
    scene.flight.land()

    assert (scene.flight.buffer(), scene.flight.nflights) == (EMPTY, 0)
    assert scene.flight.engine.pasids.list_pairs() == []
    assert scene.flight.ask(scene.detach()) == [wire.TAILS[wire.S_INVAL]]


def test_an_allocation_waits_for_the_host_beside_dma_in_flight(scene: Scene) -> None:
    early = scene.flight.ask(pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 1, 9))
    scene.flight.land()
    landed = scene.flight.answers()
    scene.allocator.answer()
    scene.flight.run()

    assert (early, landed) == ([], [])
    assert scene.flight.answers() == [pasid_wire.PasidGranted(2, 6).pack() + OK]


def test_the_page_is_the_one_of_the_pair() -> None:
    scene = made("vfio-user")
    scene.flight.ask(scene.flight.map(BUFFER + PAGE, RAM_GPA + BUFFER + 2 * PAGE, domain=DOMAIN))

    scene.flight.fill(BUFFER + PAGE, pasid=PASID)
    scene.flight.land()

    assert (scene.flight.buffer(1), scene.flight.buffer(2)) == (EMPTY, FILLED)
