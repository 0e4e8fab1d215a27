"""What sets a free action off: an occurrence at any point, by chance, and the same seed does it at the same ones.

The action of most of these is the smallest flood there is: one fault record, at an address of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from moving import NOTHING, TARGET, WRITING, Mover
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import Feature, PasidAlloc, Viommu
from guest_tests.payload.direct.wait import until
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

EP = 0x100
FLOODED = 0x5_A000
IOVA, PAGE, DOMAIN = 0x4000_0000, 4096, 7
SOON_S = 10.0
QUOTA, LESS = 1000, 500
STALL_S = 0.01


def told(viommu: Viommu, host: Host) -> int:
    """How many records of ours have come, once all have that were on their way."""
    host.control("query-status")  # the slice in which they were queued has ended
    assert until(lambda: not any(unit["pending-faults"] for unit in host.control("query-units")), SOON_S)
    return sum(fault.address == FLOODED for fault in viommu.faults())


def each(count: int, act: Callable[[], object], look: Callable[[], Any]) -> list[Any]:
    """What there is to see after each of so many acts."""
    found = []
    for _ in range(count):
        act()
        found.append(look())
    return found


def fill(mover: Mover, iova: int) -> None:
    """Eight bytes, whatever comes of them."""
    mover.accel.run(Operation(engine.FILL, dst=iova, nbytes=8))


def unmapped(viommu: Viommu) -> None:
    """A page mapped and unmapped."""
    viommu.map(domain=DOMAIN, iova=IOVA, nbytes=PAGE, gpa=0, access=3)
    viommu.unmap(domain=DOMAIN, iova=IOVA, nbytes=PAGE)


NOWHERE = {"iova": f"{NOTHING:#x}-{NOTHING + PAGE - 1:#x}"}
STATUS = {"function": "accel0", "register": engine.STATUS}
# By point: what its rule matches, and what meets it once.
OF_ENGINE: dict[str, tuple[dict[str, Any], Callable[[Mover], object]]] = {
    "request": ({"type": "PROBE"}, lambda mover: mover.viommu.probe(EP)),
    "translation": (WRITING, lambda mover: fill(mover, TARGET)),
    "dma": (WRITING, lambda mover: fill(mover, TARGET)),
    "event": (NOWHERE, lambda mover: fill(mover, NOTHING)),
    "register": (STATUS, lambda mover: mover.accel.registers.read32(engine.STATUS)),
}


@pytest.mark.parametrize("point", OF_ENGINE)
def test_the_same_seed_sets_a_record_off_at_the_same_occurrences(
    mover: Mover, faults: Faults, host: Host, point: str
) -> None:
    match, act = OF_ENGINE[point]

    def traffic() -> list[int]:
        return each(OCCURRENCES, lambda: act(mover), lambda: told(mover.viommu, host))

    rule = {"match": match, "times": 1000, "records": 1, "endpoint": "accel1", "iova": FLOODED}
    assert_repeats(faults, traffic, point, "flood", **rule)


def test_the_same_seed_sets_a_record_off_at_the_same_invalidations(viommu: Viommu, faults: Faults, host: Host) -> None:
    viommu.attach(domain=DOMAIN, endpoint=EP)

    def traffic() -> list[int]:
        return each(OCCURRENCES, lambda: unmapped(viommu), lambda: told(viommu, host))

    rule = {"match": {"type": "UNMAP"}, "times": 1000, "records": 1, "iova": FLOODED}
    assert_repeats(faults, traffic, "invalidation", "flood", **rule)


def test_the_same_seed_sets_a_record_off_at_the_same_interrupts(
    open_viommu: OpenViommu, machine: dict[str, Any], faults: Faults, host: Host
) -> None:
    viommu = open_viommu(msix=True, without=Feature.EVENT_IDX)
    vector = {"vfio-user": 1, "vhost-user": 0}[machine["attach"]]

    def traffic() -> list[int]:
        return each(OCCURRENCES, lambda: viommu.probe(EP), lambda: told(viommu, host))

    rule = {"match": {"function": "iommu0", "vector": vector}, "times": 1000, "records": 1, "iova": FLOODED}
    assert_repeats(faults, traffic, "interrupt", "flood", **rule)


def test_the_same_seed_sets_a_record_off_at_the_same_allocations(managed: Viommu, faults: Faults, host: Host) -> None:
    def traffic() -> list[int]:
        return each(OCCURRENCES, lambda: managed.pasids.send(PasidAlloc()), lambda: told(managed, host))

    assert_repeats(faults, traffic, "pasid", "flood", times=1000, records=1, unit="iommu0", iova=FLOODED)


class Counted:
    """How often rules have fired."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before = self._now()

    def _now(self) -> int:
        return int(self._host.control("query-fault-plan")["next-seq"])

    def has_fired(self) -> bool:
        """Whether one has since the last time."""
        before, self._before = self._before, self._now()
        return self._before > before


def test_the_same_seed_takes_pasids_at_the_same_requests(managed: Viommu, faults: Faults, host: Host) -> None:
    def traffic() -> list[int]:
        for _ in range(OCCURRENCES):
            managed.pasids.alloc()
        counted, left = Counted(host), OCCURRENCES

        def look() -> int:
            nonlocal left
            left -= counted.has_fired()
            assert until(lambda: managed.pasids.config().used == left, SOON_S)
            return left

        seen = each(OCCURRENCES, lambda: managed.probe(EP), look)
        managed.pasids.free(1, 0xFFFFF)
        return seen

    assert_repeats(faults, traffic, "request", "reclaim", match={"type": "PROBE"}, times=1000)


def test_the_same_seed_orders_a_quota_at_the_same_requests(managed: Viommu, faults: Faults, host: Host) -> None:
    def traffic() -> list[bool]:
        counted = Counted(host)

        def look() -> bool:
            has_fired = counted.has_fired()
            assert until(lambda: managed.pasids.config().quota == (LESS if has_fired else QUOTA), SOON_S)
            host.control("pasid-quota", quota=QUOTA)
            assert until(lambda: managed.pasids.config().quota == QUOTA, SOON_S)
            return has_fired

        return each(OCCURRENCES, lambda: managed.probe(EP), look)

    assert_repeats(faults, traffic, "request", "quota-order", match={"type": "PROBE"}, times=1000, quota=LESS)


def test_the_same_seed_stalls_at_the_same_requests(viommu: Viommu, faults: Faults, host: Host) -> None:
    def traffic() -> list[bool]:
        counted = Counted(host)
        return each(OCCURRENCES, lambda: viommu.probe(EP), counted.has_fired)

    assert_repeats(faults, traffic, "request", "stall", match={"type": "PROBE"}, times=1000, seconds=STALL_S)
