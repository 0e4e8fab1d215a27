"""What was unmapped or detached lives on for an endpoint, or "done" is said too early: DMA shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from bursts import COME_S, PAGE
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload.accel import FILL, Operation
from guest_tests.payload.direct import WRITE, Accel, DmaArena, DmaBuffer, Feature, Unmap, Viommu
from guest_tests.payload.direct.accel import RING_IOVA
from guest_tests.payload.direct.wait import until
from guest_tests.payload.direct.wire import TAIL_NBYTES, Probe
from guest_tests.payload.fault_fixtures import Faults, Rule
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host

DOMAIN, PAIR_DOMAIN = 1, 9
IOVA = 0x40_0000
MARK = 0xAA
UNMAPS = {"type": "UNMAP"}
LONG_S = 600  # longer than any test
SLOW = 2  # the accelerator whose DMA takes a second


@dataclass
class Scene:
    """An accelerator in a domain; `old` is mapped at IOVA, `new` nowhere yet."""

    unit: Viommu
    accel: Accel
    old: DmaBuffer
    new: DmaBuffer

    def anew(self, npages: int = 1) -> None:
        """As the fixture leaves it, whatever was before; so many pages are mapped, each by itself."""
        self.accel.reset()
        self.unit.start(also=Feature.PASID | Feature.PASID_ALLOC)
        self.accel.start_in(self.unit, DOMAIN)
        for page in range(npages):
            self.unit.map(domain=DOMAIN, iova=IOVA + page * PAGE, gpa=self.old.gpa + page * PAGE, nbytes=PAGE)
        self.old.fill(0)
        self.new.fill(0)

    def unmap(self, page: int = 0) -> None:
        self.unit.unmap(domain=DOMAIN, iova=IOVA + page * PAGE, nbytes=PAGE)

    def map_new(self, page: int = 0) -> None:
        self.unit.map(domain=DOMAIN, iova=IOVA + page * PAGE, gpa=self.new.gpa + page * PAGE, nbytes=PAGE)

    def fill(self, page: int = 0, pasid: int = 0) -> None:
        """DMA to one page; raises where it is refused."""
        self.accel.fill(IOVA + page * PAGE, PAGE, MARK * 0x0101_0101_0101_0101, pasid=pasid)

    @property
    def filled(self) -> tuple[bool, bool]:
        """Whether the first page of the old buffer, and of the new one, has what DMA wrote."""
        return self.old.memory[0] == MARK, self.new.memory[0] == MARK


@pytest.fixture
def scene(managed: Viommu, open_accel: OpenAccel, dma: DmaArena) -> Scene:
    """A scene of a quick accelerator."""
    made = Scene(managed, open_accel(), dma.alloc(OCCURRENCES * PAGE), dma.alloc(OCCURRENCES * PAGE))
    made.anew()
    return made


# --- stale


def test_dma_goes_where_the_page_was_although_it_is_mapped_elsewhere_now(scene: Scene, faults: Faults) -> None:
    rule = faults.add("invalidation", "stale", match=UNMAPS, seconds=LONG_S)

    scene.unmap()
    scene.map_new()
    scene.fill()

    assert scene.filled == (True, False)
    assert (rule.fired, rule.held) == (1, 1)


def test_dma_reaches_what_is_not_mapped_at_all(scene: Scene, faults: Faults) -> None:
    faults.add("invalidation", "stale", match=UNMAPS, seconds=LONG_S)

    scene.unmap()
    scene.fill()

    assert scene.filled == (True, False)
    assert scene.unit.faults() == []


@pytest.mark.parametrize("how", ["its time", "its accesses", "release", "clear", "reset"])
def test_it_ends_with(scene: Scene, faults: Faults, how: str) -> None:
    bounds: dict[str, dict[str, Any]] = {
        "its time": {"seconds": 0.2},
        "its accesses": {"seconds": LONG_S, "accesses": 1},
    }
    rule = faults.add("invalidation", "stale", match=UNMAPS, **bounds.get(how, {"seconds": LONG_S}))
    scene.unmap()
    scene.map_new()
    scene.fill()
    scene.old.fill(0)

    if how == "its time":
        assert until(lambda: not rule.held, COME_S)
    elif how == "release":
        assert rule.release() == 1
    elif how == "clear":
        assert faults.clear()["undone"] == ["stale translations of iommu0 end: 1"]
    elif how == "reset":
        scene.anew(npages=0)
        scene.map_new()
    scene.fill()

    assert scene.filled == (False, True)


def test_a_detached_endpoint_goes_on_in_the_domain_it_left(scene: Scene, faults: Faults) -> None:
    faults.add("invalidation", "stale", match={"type": "DETACH", "endpoint": "accel0"}, seconds=LONG_S)
    scene.unit.bypass = False

    scene.unit.detach(domain=DOMAIN, endpoint=scene.accel.endpoint)
    scene.fill()
    faults.clear()
    scene.unit.attach(domain=DOMAIN, endpoint=scene.accel.endpoint)
    scene.unit.map_buffer(DOMAIN, RING_IOVA, scene.accel.ring)

    assert scene.filled == (True, False)
    with scene.accel.refused(IOVA, WRITE):
        scene.fill()


def test_a_detached_pasid_goes_on_in_the_domain_it_left(scene: Scene, faults: Faults) -> None:
    unit, endpoint = scene.unit, scene.accel.endpoint
    scene.accel.function.enable_pasids(1)
    pasid = unit.pasids.alloc().pasid
    unit.pasids.attach(domain=PAIR_DOMAIN, endpoint=endpoint, pasid=pasid)
    unit.map_buffer(PAIR_DOMAIN, IOVA, scene.new)
    rule = faults.add("invalidation", "stale", match={"type": "DETACH_PASID", "pasid": pasid}, seconds=LONG_S)

    unit.pasids.detach(domain=PAIR_DOMAIN, endpoint=endpoint, pasid=pasid)
    scene.fill(pasid=pasid)
    rule.release()

    assert scene.filled == (False, True)
    with scene.accel.refused(IOVA, WRITE):
        scene.fill(pasid=pasid)


def test_the_host_knows_that_nothing_is_mapped(scene: Scene, faults: Faults, host: Host) -> None:
    faults.add("invalidation", "stale", match=UNMAPS, id="iotlb", seconds=LONG_S)

    scene.unmap()

    (state,) = host.control("query-iommu")
    assert state["mappings"] == 1, "the engine's ring"
    (firing,) = faults.log()
    assert (firing["rule"], firing["fields"]["iova"]) == ("iotlb", IOVA)
    assert "mappings that live on: 1" in firing["text"]


# --- early


@dataclass
class Flights:
    """Accesses of the slow accelerator: translated, and not written before `delay` is released."""

    unit: Viommu
    accel: Accel
    target: DmaBuffer
    host: Host
    delay: Rule

    def begin(self) -> None:
        """A page is being filled when this returns."""
        self.target.fill(0)
        self.unit.map_buffer(DOMAIN, IOVA, self.target)
        self.accel.engine.submit(Operation(FILL, dst=IOVA, nbytes=PAGE, arg=MARK))
        assert until(lambda: self._are_under_way, COME_S)

    @property
    def _are_under_way(self) -> bool:
        (state,) = self.host.control("query-iommu")
        return bool(state["functions"]["accel2"]["in-flight"])

    def end(self) -> None:
        """Nothing lands any more; the engine is ready for more."""
        self.accel.function.bus_master(False)
        self.accel.function.bus_master(True)
        self.delay.release()
        self.accel.reset()
        self.accel.start(RING_IOVA)

    @property
    def landed(self) -> bool:
        return self.target.memory[0] == MARK

    def unmap(self) -> Unmap:
        return Unmap(domain=DOMAIN, virt_start=IOVA, virt_end=IOVA + PAGE - 1)


@pytest.fixture
def flights(viommu: Viommu, open_accel: OpenAccel, dma: DmaArena, host: Host, faults: Faults) -> Flights:
    """None is under way yet."""
    accel = open_accel(SLOW).start_in(viommu, DOMAIN)
    delay = faults.add("dma", "delay", match={"endpoint": "accel2", "iova": IOVA}, seconds=LONG_S)
    return Flights(viommu, accel, dma.alloc(PAGE), host, delay)


def test_without_it_done_means_that_the_bytes_are_there(flights: Flights) -> None:
    flights.begin()
    flights.delay.release()

    assert flights.unit.send(flights.unmap(), timeout_s=COME_S).ok
    assert flights.landed


def test_done_is_said_before_the_bytes_are_there(flights: Flights, faults: Faults) -> None:
    rule = faults.add("invalidation", "early", match=UNMAPS)
    flights.begin()

    assert flights.unit.send(flights.unmap(), timeout_s=COME_S).ok
    before = flights.landed
    flights.delay.release()

    assert until(lambda: flights.landed, COME_S)
    assert (before, rule.fired) == (False, 1)
    assert "accesses that land later: 1" in rule.log()[0]["text"]


# --- the same seed


def where_dma_went(scene: Scene) -> list[bool]:
    """Some pages are unmapped and mapped elsewhere, one by one: for which of them DMA went where the page was."""
    scene.anew(OCCURRENCES)
    for page in range(OCCURRENCES):
        scene.unmap(page)
        scene.map_new(page)
        scene.fill(page)
    return [scene.old.memory[page * PAGE] == MARK for page in range(OCCURRENCES)]


def test_the_same_seed_leaves_the_same_pages_stale(scene: Scene, faults: Faults) -> None:
    assert_repeats(faults, lambda: where_dma_went(scene), "invalidation", "stale", match=UNMAPS, seconds=LONG_S)


def is_early(flights: Flights) -> bool:
    """Whether an UNMAP whose page is being written is answered before the request behind it."""
    flights.begin()
    queue = flights.unit.requests
    room = flights.unit.config.probe_size + TAIL_NBYTES
    unmap, fence = queue.chain(flights.unmap()), queue.chain(Probe(endpoint=flights.accel.endpoint), room)
    for chain in (unmap, fence):
        queue.ring.post(chain)
    queue.publish()
    first = queue.wait_used(1, COME_S)
    flights.end()  # and with it whatever waits for it
    rest = queue.wait_used(2 - len(first), COME_S)
    for used in (*first, *rest):
        queue.ring.recycle(used.chain)
    return first[0].chain is unmap


def test_the_same_seed_is_early_again(flights: Flights, faults: Faults) -> None:
    def traffic() -> list[bool]:
        return [is_early(flights) for _ in range(OCCURRENCES)]

    assert_repeats(faults, traffic, "invalidation", "early", match=UNMAPS)
