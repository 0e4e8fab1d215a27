"""Which memory may change where DMA carries PASIDs, by what a driver was answered: the model of
test_in_flight_model.py, whose driver allocates, attaches, mirrors, disables and frees PASIDs as well.

Whether a PASID is in the set, on which a request's fate depends, is read from the set. The memory is the model's alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_in_flight_model import DOMAINS, NAMES, PAGES, RID, Asked, Driver, Move, play, weighted
from tests.support.flight import LATENCY_NS, Attachment, FlightScene
from tests.support.pasid_allocator import PlainAllocator
from vdev.iommu.pasid_set import PasidSet
from vdev.wire import viommu_pasid as wire

PASIDS = (1, 2)
MIRRORS = 0  # in the place of a domain
FOREIGN = 3


@dataclass(kw_only=True)
class PasidDriver(Driver):
    """`freed` PASIDs are attached and of no use; `enabled` endpoints may use any."""

    allocator: PlainAllocator
    pasids: PasidSet
    freed: set[int] = field(default_factory=set)
    enabled: set[str] = field(default_factory=set)

    def reached(self) -> dict[tuple[str, int], int]:
        out = {}
        for (name, pasid), domain in self.where.items():
            if pasid == RID or (pasid not in self.freed and name in self.enabled):
                out[name, pasid] = self.where.get((name, RID), MIRRORS) if domain == MIRRORS else domain
        return out

    def is_usable(self, pasid: int) -> bool:
        held = self.pasids.of_guest(pasid)
        return held is not None and not held.freed

    # moves

    def allocate(self, pasid: int) -> None:
        self.make_room()
        if self.pasids.of_guest(pasid) is None:
            self.freed.discard(pasid)
        self.ask(Asked(wire.PasidAlloc(wire.T_PASID_ALLOC, bytes(3), pasid, pasid), lambda way: False))
        self.allocator.answer()
        self.scene.run()

    def free(self, first: int, last: int) -> None:
        self.make_room()
        before = self.open()
        self.freed |= {pasid for pasid in range(first, last + 1) if self.is_usable(pasid)}
        request = wire.PasidFree(wire.T_PASID_FREE, bytes(3), first, last)
        self.ask(Asked(request, lambda way: first <= way[1] <= last), before)

    def attach_pasid(self, name: str, pasid: int, domain: int) -> None:
        """To a domain, or mirroring; one that is nobody's is allocated first."""
        if self.pasids.of_guest(pasid) is None:
            self.allocate(pasid)
        self.make_room()
        before = self.open()
        if self.is_usable(pasid):
            self.move((name, pasid), domain)
        flags = wire.ATTACH_PASID_F_MIRROR_RID if domain == MIRRORS else 0
        pair = (domain, self.scene.number[name], pasid)
        request = wire.AttachPasid(wire.T_ATTACH_PASID, bytes(3), *pair, flags)
        self.ask(Asked(request, lambda way: way[:2] == (name, pasid)), before)

    def detach_pasid(self, name: str, pasid: int) -> None:
        before, domain = self.open(), self.where.get((name, pasid), 9)
        self.move((name, pasid), None)
        request = wire.DetachPasid(wire.T_DETACH_PASID, bytes(3), domain, self.scene.number[name], pasid)
        self.ask(Asked(request, lambda way: way[:2] == (name, pasid)), before)

    def enable(self, name: str, enabled: bool) -> None:
        """The PASID capability; nothing that was let through before lands after it is off."""
        self.scene.accels[name].enable_pasids(enabled)
        if enabled:
            self.enabled.add(name)
        else:
            self.enabled.discard(name)
            self.close(lambda way: way[0] == name and way[1] != RID)

    def stop(self, name: str, how: int) -> None:
        super().stop(name, how)
        if how in (0, 4):  # a reset of the function
            self.enabled.discard(name)

    def reset_unit(self) -> None:
        super().reset_unit()
        self.freed.clear()


def moves() -> st.SearchStrategy[Move]:
    names, pasids, pages = st.sampled_from(NAMES), st.sampled_from(PASIDS), st.integers(0, PAGES - 1)
    one_or_two, domains, latency = st.integers(1, 2), st.sampled_from(DOMAINS), st.just(LATENCY_NS)
    return weighted(
        (12, PasidDriver.fill, st.tuples(names, pages, one_or_two, pasids)),
        (2, PasidDriver.fill, st.tuples(names, pages, one_or_two, st.sampled_from((RID, FOREIGN)))),
        (5, PasidDriver.attach_pasid, st.tuples(names, pasids, st.sampled_from((MIRRORS, *DOMAINS)))),
        (2, PasidDriver.detach_pasid, st.tuples(names, pasids)),
        (3, PasidDriver.free, st.tuples(pasids, pasids)),
        (1, PasidDriver.enable, st.tuples(names, st.just(False))),
        (2, PasidDriver.enable, st.tuples(names, st.just(True))),
        (2, PasidDriver.attach, st.tuples(names, domains)),
        (1, PasidDriver.detach, st.tuples(names)),
        (2, PasidDriver.start, st.tuples(names)),
        (1, PasidDriver.stop, st.tuples(names, st.integers(0, 4))),
        (1, PasidDriver.reset_unit, st.just(())),
        (3, PasidDriver.map, st.tuples(domains, pages, pages)),
        (2, PasidDriver.unmap, st.tuples(domains, pages, one_or_two)),
        (8, PasidDriver.wait, st.tuples(latency)),
    )


@settings(max_examples=150, deadline=None)
@given(
    attach=st.sampled_from(["vfio-user", "vhost-user"]),
    told=st.lists(moves(), min_size=20, max_size=60),
)
def test_memory_changes_with_a_pasid_only_while_no_answer_has_said_that_it_does_not(
    attach: Attachment, told: list[Move]
) -> None:
    allocator = PlainAllocator()
    pasids = PasidSet(allocator)
    scene = FlightScene(attach, bypass="not-offered", pasids=pasids)
    driver = PasidDriver(scene, allocator=allocator, pasids=pasids)
    for name, pasid in product(NAMES, PASIDS):
        driver.enable(name, True)
        driver.attach_pasid(name, pasid, 2)
        driver.reap()
    for page in range(PAGES):
        driver.map(2, page, PAGES - 1 - page)
        driver.reap()

    play(driver, told)
