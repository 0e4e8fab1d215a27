"""Faults to the byte, and the bound on those that wait: eight on this machine."""

from __future__ import annotations

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import READ, WRITE, Accel, DmaArena, Fault, Reason, Viommu
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host

DOMAIN = 2  # where `mapped_accel` is: the range starts at 1
BASE, NOTHING = 0x2000, 0x9000
MAX_PENDING = 8


@pytest.fixture
def starved(open_viommu: OpenViommu) -> Viommu:
    """The first unit, without event buffers."""
    viommu = open_viommu(nevents=0)
    viommu.events.reposts = False
    return viommu


def provoke(accel: Accel, first: int, count: int) -> None:
    """Refused reads of the bytes [first, first + count)."""
    accel.run_all([Operation(engine.CHECKSUM, first + number, nbytes=1) for number in range(count)])


def dropped(host: Host) -> int:
    """Faults the unit did not keep."""
    count = host.control("query-iommu")[0]["counters"]["faults_dropped"]
    assert isinstance(count, int)
    return count


def test_the_first_byte_that_is_not_mapped_is_reported(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    viommu.map(domain=DOMAIN, iova=BASE + 1, gpa=dma.alloc().gpa, nbytes=7)

    mapped_accel.run(Operation(engine.FILL, dst=BASE + 1, nbytes=8))

    assert viommu.wait_fault() == Fault(Reason.MAPPING, WRITE, mapped_accel.endpoint, BASE + 8)


def test_a_read_into_a_reserved_region_is_reported_at_its_first_byte(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    viommu.map(domain=DOMAIN, iova=0xFF8, gpa=dma.alloc().gpa, nbytes=8)

    mapped_accel.run(Operation(engine.CHECKSUM, 0xFF8, nbytes=9))

    assert viommu.wait_fault() == Fault(Reason.MAPPING, READ, mapped_accel.endpoint, 0x1000)


def test_a_reserved_region_is_closed_to_a_bypassing_endpoint_too(viommu: Viommu, accel: Accel) -> None:
    # D56
    assert viommu.bypass
    accel.start()

    with accel.refused(0x17FF, READ):
        accel.checksum(0x17FF, 1)


def test_the_oldest_faults_wait_and_the_newest_are_dropped(starved: Viommu, open_accel: OpenAccel) -> None:
    # D62: wait or drop
    accel = open_accel().start_in(starved)
    provoke(accel, NOTHING, 12)

    starved.events.post(16)

    found = [starved.wait_fault().address for _ in range(MAX_PENDING)]
    provoke(accel, NOTHING + 99, 1)
    assert found == [NOTHING + number for number in range(MAX_PENDING)]
    assert starved.wait_fault().address == NOTHING + 99


def test_dropped_faults_are_counted(starved: Viommu, open_accel: OpenAccel, host: Host) -> None:
    accel, before = open_accel().start_in(starved), dropped(host)

    provoke(accel, NOTHING, MAX_PENDING + 5)

    assert dropped(host) - before == 5


def test_a_dropped_fault_is_still_a_refused_access(starved: Viommu, open_accel: OpenAccel) -> None:
    accel = open_accel().start_in(starved)
    provoke(accel, NOTHING, MAX_PENDING)

    with accel.refused(NOTHING, READ):
        accel.checksum(NOTHING, 1)


def test_an_overflow_is_one_event_on_the_host(starved: Viommu, open_accel: OpenAccel, host: Host) -> None:
    accel = open_accel().start_in(starved)
    (newest,) = host.control("query-events", limit=1)

    provoke(accel, NOTHING, MAX_PENDING + 5)

    events = host.control("query-events", since=newest["seq"] + 1, kinds=["FaultsDropped"])
    assert [event["unit"] for event in events] == ["iommu0"]
