"""What the guest is told of refused accesses: nothing, twice, later, nonsense, or far too much."""

from __future__ import annotations

from typing import Any

import pytest
from bursts import COME_S, DOMAIN, EP, PAGE, map_pages
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload.accel import FILL, Operation
from guest_tests.payload.direct import Accel, Access, Reason, Viommu
from guest_tests.payload.direct.wait import until
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host

NOWHERE = 0x7000_0000
FLOOD_IOVA = 0xBAD000
LONG_S = 600


def refuse(accel: Accel, *pages: int) -> None:
    """Writes that the IOMMU refuses, at pages where nothing is mapped."""
    for page in pages:
        with accel.refused(NOWHERE + page * PAGE, Access.WRITE):
            accel.fill(NOWHERE + page * PAGE, PAGE, 0)


def told(unit: Viommu, host: Host) -> list[int]:
    """The pages of the faults that the driver has been told of by now."""
    assert until(lambda: not pending(host), COME_S)
    return [((fault.address or 0) - NOWHERE) // PAGE for fault in unit.faults()]


def pending(host: Host) -> int:
    """How many records wait for event buffers."""
    (state,) = host.control("query-iommu")
    return int(state["pending_faults"])


def test_the_guest_is_not_told(viommu: Viommu, mapped_accel: Accel, faults: Faults, host: Host) -> None:
    rule = faults.add("event", "drop", match={"endpoint": "accel0", "access": "write"}, when={"nth": 2})

    refuse(mapped_accel, 1, 2, 3)

    assert told(viommu, host) == [1, 3]
    assert rule.log()[0]["fields"]["iova"] == NOWHERE + 2 * PAGE


def test_the_guest_is_told_twice(viommu: Viommu, mapped_accel: Accel, faults: Faults, host: Host) -> None:
    faults.add("event", "duplicate", when={"nth": 2})

    refuse(mapped_accel, 1, 2, 3)

    assert told(viommu, host) == [1, 2, 2, 3]


def test_the_guest_is_told_later(viommu: Viommu, mapped_accel: Accel, faults: Faults, host: Host) -> None:
    rule = faults.add("event", "delay", when={"nth": 1}, seconds=1.0)

    mapped_accel.run_all([Operation(FILL, dst=NOWHERE + page * PAGE, nbytes=PAGE) for page in (1, 2)])
    first = viommu.wait_fault(COME_S)
    host.pause(0.2)

    assert first.address == NOWHERE + 2 * PAGE
    assert viommu.wait_fault(COME_S).address == NOWHERE + PAGE
    assert (rule.fired, rule.held) == (1, 0)


def test_what_is_told_later_may_be_let_go(viommu: Viommu, mapped_accel: Accel, faults: Faults, host: Host) -> None:
    rule = faults.add("event", "delay", when={"nth": 1}, seconds=LONG_S)

    refuse(mapped_accel, 1, 2)
    early, held = told(viommu, host), rule.held
    released = rule.release()

    assert (early, held, released) == ([2], 1, 1)
    assert told(viommu, host) == [1]


@pytest.mark.parametrize("reason", [0x7F, 3])
def test_the_guest_is_told_a_reason_nobody_knows(
    viommu: Viommu, mapped_accel: Accel, faults: Faults, host: Host, reason: int
) -> None:
    faults.add("event", "unknown-reason", when={"nth": 2}, reason=reason)

    refuse(mapped_accel, 1, 2)

    first, second = viommu.wait_fault(COME_S), viommu.wait_fault(COME_S)
    assert (first.reason, int(second.reason)) == (Reason.MAPPING, reason)
    assert (second.address, second.endpoint) == (NOWHERE + 2 * PAGE, mapped_accel.endpoint)


def test_a_driver_of_pasids_is_told_such_a_reason_as_well(
    managed: Viommu, open_accel: OpenAccel, faults: Faults
) -> None:
    faults.add("event", "unknown-reason")

    refuse(open_accel().start_in(managed), 1)

    assert int(managed.wait_fault(COME_S).reason) == 0x7F


# --- flood


def test_a_flood_overflows_the_queue_of_records(viommu: Viommu, faults: Faults, host: Host) -> None:
    before = host.control("query-events", limit=1)[-1]["seq"]
    nbuffers = len(viommu.events.ring.outstanding)

    rule = faults.add("timer", "flood", unit="iommu0", endpoint="accel1")
    assert until(lambda: bool(host.control("query-events", since=before + 1, kinds=["FaultsDropped"])), COME_S)
    first = viommu.wait_fault(COME_S)
    (firing,) = rule.log()
    undone = faults.clear()["undone"]

    assert (first.address, first.endpoint, first.reason) == (FLOOD_IOVA, 0x200, Reason.MAPPING)
    assert nbuffers < int(firing["text"].split("records: ")[1])
    assert len(undone) == 1
    assert undone[0].startswith("fault records of iommu0 that were not delivered are dropped: ")
    assert pending(host) == 0


def test_after_a_flood_faults_are_told_as_before(
    viommu: Viommu, mapped_accel: Accel, faults: Faults, host: Host
) -> None:
    faults.add("timer", "flood", unit="iommu0")
    assert until(lambda: pending(host) > 0, COME_S)
    faults.clear()
    viommu.faults()
    told_before = viommu.faults()

    refuse(mapped_accel, 1)

    assert told_before == []
    assert told(viommu, host) == [1]


def test_a_flood_of_a_size_is_told_to_the_last_record(viommu: Viommu, faults: Faults, host: Host) -> None:
    faults.add("timer", "flood", unit="iommu0", records=40, iova=NOWHERE)
    found: list[Any] = []

    def have_come() -> bool:
        found.extend(viommu.faults())
        return len(found) >= 40

    assert until(have_come, COME_S)
    assert [fault.address for fault in found] == [NOWHERE] * 40


# --- the same seed


@pytest.mark.parametrize(
    ("do", "parameters"), [("drop", {}), ("duplicate", {}), ("delay", {"seconds": LONG_S}), ("unknown-reason", {})]
)
def test_the_same_seed_does_it_again(
    viommu: Viommu, mapped_accel: Accel, faults: Faults, host: Host, do: str, parameters: dict[str, Any]
) -> None:
    def traffic() -> list[tuple[int | None, int]]:
        told(viommu, host)  # what was let go when the last rule went
        found = []
        for page in range(OCCURRENCES):
            refuse(mapped_accel, page)
            assert until(lambda: not pending(host), COME_S)
            found += [(fault.address, int(fault.reason)) for fault in viommu.faults()]
        return found

    assert_repeats(faults, traffic, "event", do, **parameters)


def test_the_same_seed_floods_again(viommu: Viommu, faults: Faults, host: Host) -> None:
    viommu.attach(domain=DOMAIN, endpoint=EP)

    def traffic() -> list[int]:
        """How many records come with each of some requests."""
        counts = []
        for request in map_pages(OCCURRENCES):
            viommu.send(request)
            assert until(lambda: not pending(host), COME_S)
            counts.append(len(viommu.faults()))
        return counts

    assert_repeats(faults, traffic, "request", "flood", match={"type": "MAP"}, unit="iommu0", records=3, times=100)
