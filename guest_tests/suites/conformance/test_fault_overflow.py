"""The bound on faults that wait: eight at the narrow unit. D62: without a buffer the device waits, or drops."""

from __future__ import annotations

import pytest
from asking import DOMAINS, MAX_PENDING_FAULTS, MSI, NARROW, PLAIN, unit_state

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import ATTACH_BYPASS, READ, Accel, Viommu
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host


@pytest.fixture
def starved(open_viommu: OpenViommu) -> Viommu:
    """The narrow unit, without event buffers."""
    viommu = open_viommu(NARROW, nevents=0)
    viommu.events.reposts = False
    return viommu


@pytest.fixture
def faulty(starved: Viommu, open_accel: OpenAccel) -> Accel:
    """An accelerator that bypasses, but for reads of the MSI region."""
    accel = open_accel(PLAIN)
    starved.attach(domain=DOMAINS.start, endpoint=accel.endpoint, flags=ATTACH_BYPASS)
    return accel.start()


def provoke(accel: Accel, first: int, count: int) -> None:
    """Refused reads of bytes `first`, `first` + 1, ... of the MSI region."""
    accel.run_all([Operation(engine.CHECKSUM, MSI.start + first + number, nbytes=1) for number in range(count)])


def test_d62_the_oldest_faults_wait_and_the_newest_are_dropped(starved: Viommu, faulty: Accel) -> None:
    provoke(faulty, 0, MAX_PENDING_FAULTS + 4)

    starved.events.post(16)

    found = [starved.wait_fault().address for _ in range(MAX_PENDING_FAULTS)]
    provoke(faulty, 99, 1)
    assert found == [MSI.start + number for number in range(MAX_PENDING_FAULTS)]
    assert starved.wait_fault().address == MSI.start + 99


def test_d62_dropped_faults_are_counted(starved: Viommu, faulty: Accel, host: Host) -> None:
    before = unit_state(host, "narrow")["counters"]["faults_dropped"]

    provoke(faulty, 0, MAX_PENDING_FAULTS)
    full = unit_state(host, "narrow")["counters"]["faults_dropped"]
    provoke(faulty, 0, 5)

    assert (full - before, unit_state(host, "narrow")["counters"]["faults_dropped"] - before) == (0, 5)


def test_d62_a_dropped_fault_is_still_a_refused_access(starved: Viommu, faulty: Accel) -> None:
    provoke(faulty, 0, MAX_PENDING_FAULTS)

    with faulty.refused(MSI.start, READ):
        faulty.checksum(MSI.start, 1)


@pytest.mark.machines("*-vfio-user", "*-vhost-user")
def test_d62_an_overflow_is_one_event_on_the_host(starved: Viommu, faulty: Accel, host: Host) -> None:
    (newest,) = host.control("query-events", limit=1)

    provoke(faulty, 0, MAX_PENDING_FAULTS + 5)

    events = host.control("query-events", since=newest["seq"] + 1, kinds=["FaultsDropped"])
    assert [event["unit"] for event in events] == ["narrow"]
