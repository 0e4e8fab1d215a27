"""Which memory may change, by what a driver was answered: random requests, DMA, resets and time against a model.

The model is the driver's: a page may change from the MAP on, until an answer, or a register access that has returned,
says that it may not any more. It knows nothing of flights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.flight import BUFFER, ENGINES, LATENCY_NS, OK, PAGE, Attachment, FlightScene
from tests.support.virtio_pci import RAM_GPA
from vdev.wire import viommu as wire
from vdev.wire.accelerator import Control, Register
from vdev.wire.record import Record

PAGES = 6
NAMES = tuple(ENGINES)
DOMAINS = (1, 2)
RID = 0  # in the place of a PASID
Way = tuple[str, int, int, int, int]  # endpoint, PASID, domain, page of IOVA, page of RAM: how a byte may be written


@dataclass
class Asked:
    """A request that is not answered."""

    request: Record
    closes: Callable[[Way], bool]  # the ways that are gone once it is answered OK
    closing: set[Way] = field(default_factory=set)  # those it closed that are open until then


@dataclass
class Driver:
    """A driver, and what it may believe. `maps` and `where` are as of the last request, answered or not."""

    scene: FlightScene
    maps: dict[int, dict[int, int]] = field(default_factory=dict)
    where: dict[tuple[str, int], int] = field(default_factory=dict)  # by endpoint and PASID
    active: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)  # by age
    fillers: dict[int, tuple[str, int]] = field(default_factory=dict)  # endpoint and PASID of a FILL, by its byte

    def open(self) -> set[Way]:
        """Every way in which memory may be written now."""
        ways = {
            (name, pasid, domain, iova, page)
            for (name, pasid), domain in self.reached().items()
            for iova, page in self.maps.get(domain, {}).items()
        }
        for asked in self.asked:
            ways |= asked.closing
        return {way for way in ways if way[0] in self.active}

    def reached(self) -> dict[tuple[str, int], int]:
        """The domains whose mappings accesses are let through to."""
        return self.where

    # moves

    def map(self, domain: int, iova: int, page: int) -> None:
        request = self.scene.map(BUFFER + iova * PAGE, RAM_GPA + BUFFER + page * PAGE, domain=domain)
        if domain in self.where.values() and iova not in self.maps.setdefault(domain, {}):
            self.maps[domain][iova] = page
        self.ask(Asked(request, lambda way: False))

    def unmap(self, domain: int, iova: int, npages: int) -> None:
        span = range(iova, iova + npages)
        before = self.open()
        for gone in span:
            self.maps.get(domain, {}).pop(gone, None)
        request = self.scene.unmap(BUFFER + iova * PAGE, npages * PAGE, domain)
        self.ask(Asked(request, lambda way: way[2] == domain and way[3] in span), before)

    def attach(self, name: str, domain: int) -> None:
        before = self.open()
        self.move((name, RID), domain)
        self.ask(Asked(self.scene.attach(name, domain), lambda way: way[0] == name), before)

    def detach(self, name: str) -> None:
        before, domain = self.open(), self.where.get((name, RID), 9)
        self.move((name, RID), None)
        self.ask(Asked(self.scene.detach(name, domain), lambda way: way[0] == name), before)

    def start(self, name: str) -> None:
        """The engine's ring is where it was; it may or may not find it."""
        if (name, RID) in self.where:
            self.ask(Asked(self.scene.map_ring(name, self.where[name, RID]), lambda way: False))
        accel = self.scene.accels[name]
        accel.write(Register.CONTROL, 0)
        accel.bus_master(True)
        accel.start(ENGINES[name])
        self.active.add(name)

    def fill(self, name: str, iova: int, npages: int, pasid: int = RID) -> None:
        byte = len(self.fillers) + 1
        self.fillers[byte] = name, pasid
        self.scene.fill(BUFFER + iova * PAGE, npages * PAGE, name, byte, pasid)

    def stop(self, name: str, how: int) -> None:
        """A register access after which nothing of the endpoint lands."""
        accel = self.scene.accels[name]
        (
            accel.flr,
            accel.cycle_bus_master,
            lambda: accel.write(Register.CONTROL, Control.RESET),
            lambda: accel.write(Register.CONTROL, 0),
            accel.function.reset,
        )[how]()
        self.close(lambda way: way[0] == name)
        self.active.discard(name)

    def reset_unit(self) -> None:
        self.scene.device.host_reset()
        self.maps.clear()
        self.where.clear()
        self.active.clear()
        self.close(lambda way: True)

    def freeze(self, ns: int) -> None:
        """`stop` and, later, `cont`."""
        self.scene.unit.freezer.set("VM stopped", True)
        self.scene.now_ns += ns
        self.scene.unit.freezer.set("VM stopped", False)
        self.scene.run()

    def wait(self, ns: int) -> None:
        self.scene.now_ns += ns
        self.scene.run()

    def move(self, who: tuple[str, int], domain: int | None) -> None:
        """An endpoint or a pair is attached elsewhere, or nowhere; a domain ends with the last of them."""
        left = self.where.pop(who, None)
        if left is not None and left != domain and left not in self.where.values():
            self.maps.pop(left, None)
        if domain is not None:
            self.where[who] = domain

    def ask(self, asked: Asked, before: set[Way] | None = None) -> None:
        """Post a request that closes what was open before, and is not now, once it is answered."""
        if before is not None:
            asked.closing = before - self.open()
        self.make_room()
        self.asked.append(asked)
        self.scene.post(asked.request)

    def make_room(self) -> None:
        """Wait until the ring takes a request."""
        while not self.scene.requests.free[2:]:
            self.wait(LATENCY_NS)
            self.reap()

    def close(self, closes: Callable[[Way], bool]) -> None:
        """A register access has returned."""
        for asked in self.asked:
            asked.closing = {way for way in asked.closing if not closes(way)}

    def reap(self) -> None:
        """Answers: each OK closes what it and older requests left open."""
        heads = list(self.scene.requests.outstanding)  # by age: a dictionary keeps the order
        for done in self.scene.requests.reap():
            self._answered(heads.index(done.head), done.data)
            heads.remove(done.head)

    def _answered(self, at: int, answer: bytes) -> None:
        asked = self.asked[at]
        for older in self.asked[: at + 1]:
            if answer[-wire.TAIL_NBYTES :] == OK:
                older.closing = {way for way in older.closing if not asked.closes(way)}
        del self.asked[at]


Move = tuple[Callable[..., None], tuple[object, ...]]


def moves() -> st.SearchStrategy[Move]:
    names, domains, pages = st.sampled_from(NAMES), st.sampled_from(DOMAINS), st.integers(0, PAGES - 1)
    some, ns = st.integers(1, 3), st.sampled_from([1000, LATENCY_NS // 2, LATENCY_NS])
    return weighted(
        (8, Driver.fill, st.tuples(names, pages, some)),
        (4, Driver.map, st.tuples(domains, pages, pages)),
        (4, Driver.unmap, st.tuples(domains, pages, some)),
        (2, Driver.attach, st.tuples(names, domains)),
        (2, Driver.detach, st.tuples(names)),
        (3, Driver.start, st.tuples(names)),
        (1, Driver.stop, st.tuples(names, st.integers(0, 4))),
        (1, Driver.reset_unit, st.just(())),
        (1, Driver.freeze, st.tuples(ns)),
        (3, Driver.wait, st.tuples(ns)),
    )


def weighted(*choices: tuple[int, Callable[..., None], st.SearchStrategy[Any]]) -> st.SearchStrategy[Move]:
    """Moves with their arguments, each as often as it weighs (`one_of` counts a repeated strategy once)."""
    pairs = [(move, arguments) for weight, move, arguments in choices for _ in range(weight)]
    return st.sampled_from(range(len(pairs))).flatmap(lambda at: st.tuples(st.just(pairs[at][0]), pairs[at][1]))


@settings(max_examples=150, deadline=None)
@given(
    attach=st.sampled_from(["vfio-user", "vhost-user"]),
    told=st.lists(moves(), min_size=10, max_size=60),
)
def test_memory_changes_only_while_no_answer_has_said_that_it_does_not(attach: Attachment, told: list[Move]) -> None:
    play(Driver(FlightScene(attach, bypass="not-offered")), told)


def play(driver: Driver, told: list[Move]) -> None:
    """Set all up, and see what each move changes."""
    for name in NAMES:
        driver.attach(name, 1)
        driver.reap()
        driver.start(name)
    for page in range(PAGES):
        driver.map(1, page, page)
        driver.reap()

    to_rest: Move = (Driver.wait, (LATENCY_NS,))
    for move, arguments in [*told, to_rest]:
        may_change = {(name, pasid, page) for name, pasid, _, _, page in driver.open()}
        before = [driver.scene.buffer(page) for page in range(PAGES)]
        move(driver, *arguments)
        may_change |= {(name, pasid, page) for name, pasid, _, _, page in driver.open()}
        after = [driver.scene.buffer(page) for page in range(PAGES)]
        changed = {(*driver.fillers[after[page][0]], page) for page in range(PAGES) if after[page] != before[page]}
        assert changed <= may_change, f"{move.__name__}{arguments} changed {changed - may_change}"
        driver.reap()

    assert driver.asked == []
    assert driver.scene.nflights <= 2
