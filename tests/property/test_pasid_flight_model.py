"""Which memory may change where DMA carries PASIDs, by what a driver was answered: the model of
test_in_flight_model.py, whose driver allocates, attaches, mirrors, disables and frees PASIDs as well.

Whether a PASID is in the set, on which a request's fate depends, is read from the set. The memory is the model's alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_in_flight_model import DOMAINS, NAMES, PAGES, RID, Asked, Driver, Move, moves, play
from tests.support.flight import BUFFER, ENGINES, PAGE, Attachment, FlightScene
from tests.support.pasid_allocator import PlainAllocator
from vdev.iommu.pasid_set import PasidSet
from vdev.wire import viommu_pasid as wire

PASIDS = (1, 2, 3)
MIRRORS = 0  # in the place of a domain
FOREIGN = 4


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
        """To a domain, or mirroring."""
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

    def fill_with(self, name: str, iova: int, npages: int, pasid: int) -> None:
        self.nfills += 1
        self.scene.fill(BUFFER + iova * PAGE, npages * PAGE, name, self.nfills % 255 + 1, pasid)

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


def pasid_moves() -> st.SearchStrategy[Move]:
    names, pasids, pages = st.sampled_from(NAMES), st.sampled_from(PASIDS), st.integers(0, PAGES - 1)
    some, domains = st.integers(1, 3), st.sampled_from((MIRRORS, *DOMAINS))
    used = st.sampled_from((*PASIDS, FOREIGN))
    by_weight: list[st.SearchStrategy[Any]] = [
        *[st.tuples(st.just(PasidDriver.fill_with), st.tuples(names, pages, some, used))] * 12,
        *[st.tuples(st.just(PasidDriver.attach_pasid), st.tuples(names, pasids, domains))] * 4,
        *[st.tuples(st.just(PasidDriver.detach_pasid), st.tuples(names, pasids))] * 2,
        *[st.tuples(st.just(PasidDriver.allocate), st.tuples(pasids))] * 3,
        *[st.tuples(st.just(PasidDriver.free), st.tuples(pasids, pasids))] * 2,
        *[st.tuples(st.just(PasidDriver.enable), st.tuples(names, st.booleans()))] * 2,
    ]
    return st.one_of([*by_weight, moves()])


@settings(max_examples=150, deadline=None)
@given(
    attach=st.sampled_from(["vfio-user", "vhost-user"]),
    told=st.lists(pasid_moves(), min_size=10, max_size=60),
)
def test_memory_changes_with_a_pasid_only_while_no_answer_has_said_that_it_does_not(
    attach: Attachment, told: list[Move]
) -> None:
    allocator = PlainAllocator()
    pasids = PasidSet(allocator)
    scene = FlightScene(attach, bypass="not-offered", pasids=pasids)
    driver = PasidDriver(scene, allocator=allocator, pasids=pasids)
    for pasid in PASIDS:
        driver.allocate(pasid)
        driver.reap()
    for name in ENGINES:
        driver.enable(name, True)
        driver.attach_pasid(name, PASIDS[0], 2)
        driver.reap()
    for page in range(PAGES):
        driver.map(2, page, PAGES - 1 - page)
        driver.reap()

    play(driver, told)
