"""What the IOMMU reports of refused accesses: why, what was wanted, by whom, where; as often, and in that order."""

from __future__ import annotations

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    READ,
    WRITE,
    Accel,
    Access,
    DmaArena,
    EngineStopped,
    Fault,
    Reason,
    RequestRefused,
    Viommu,
)
from guest_tests.payload.direct.accel import RING_IOVA
from guest_tests.payload.fixtures import OpenAccel

READABLE, WRITABLE, NOTHING, PAGE = 0x1_0000, 0x2_0000, 0x3_0000, 4096
MSI = 0xFEE0_0000
APERTURE_STOP = 1 << 39  # vdev's default

NBYTES = 64


def read_at(iova: int) -> Operation:
    """One access that reads."""
    return Operation(engine.CHECKSUM, iova, nbytes=NBYTES)


def write_at(iova: int) -> Operation:
    """One access that writes."""
    return Operation(engine.FILL, dst=iova, nbytes=NBYTES)


@pytest.fixture
def faulty(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> Accel:
    """An accelerator in a domain with a page it may only read and one it may only write."""
    viommu.map_buffer(mapped_accel.domain, READABLE, dma.alloc(PAGE), READ)
    viommu.map_buffer(mapped_accel.domain, WRITABLE, dma.alloc(PAGE), WRITE)
    return mapped_accel


KINDS = {
    "a read where nothing is mapped": (read_at(NOTHING + 8), READ, NOTHING + 8),
    "a write where nothing is mapped": (write_at(NOTHING), WRITE, NOTHING),
    "a write through a mapping without write": (write_at(READABLE + 40), WRITE, READABLE + 40),
    "a read through a mapping without read": (read_at(WRITABLE + 1), READ, WRITABLE + 1),
    "a read over the end of a mapping": (read_at(READABLE + PAGE - 1), READ, READABLE + PAGE),
    "a write over the end of a mapping": (write_at(WRITABLE + PAGE - 63), WRITE, WRITABLE + PAGE),
    "a read of the MSI region": (read_at(MSI), READ, MSI),
    "a read outside the input range": (read_at(APERTURE_STOP), READ, APERTURE_STOP),
    "a write at the end of 64 bits": (write_at((1 << 64) - NBYTES), WRITE, (1 << 64) - NBYTES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_d59_d60_the_report_of_a_refused_access_is_exact(viommu: Viommu, faulty: Accel, kind: str) -> None:
    operation, access, address = KINDS[kind]

    completion = faulty.run(operation)

    assert (completion.status, completion.fault_iova) == (engine.TRANSLATION_FAULT, address)
    assert viommu.wait_fault() == Fault(Reason.MAPPING, Access(access), faulty.endpoint, address)


def test_d14_an_endpoint_without_domain_is_reported_as_such(blocking: Viommu, accel: Accel) -> None:
    accel.start(RING_IOVA)

    with pytest.raises(EngineStopped):
        accel.nop()

    assert blocking.wait_fault() == Fault(Reason.DOMAIN, Access(READ), accel.endpoint, RING_IOVA)


def test_d28_a_detached_endpoint_is_reported_as_one_without_domain(blocking: Viommu, accel: Accel) -> None:
    accel.start_in(blocking, domain=1)
    blocking.detach(domain=1, endpoint=accel.endpoint)

    with pytest.raises(EngineStopped):
        accel.nop()

    assert blocking.wait_fault().reason == Reason.DOMAIN


def test_g23_a_refused_access_is_reported_once(viommu: Viommu, faulty: Accel) -> None:
    faulty.run_all([read_at(NOTHING), read_at(READABLE), write_at(NOTHING + PAGE)])

    addresses = [viommu.wait_fault().address, viommu.wait_fault().address]

    assert addresses == [NOTHING, NOTHING + PAGE]
    assert viommu.faults() == []


def test_g23_faults_are_reported_in_the_order_of_the_accesses(viommu: Viommu, faulty: Accel) -> None:
    wanted = [NOTHING + 256 * number for number in range(12)]

    faulty.run_all([read_at(address) for address in wanted])

    assert [viommu.wait_fault().address for _ in wanted] == wanted


def test_d62_two_hundred_faults_all_arrive_through_sixteen_buffers(viommu: Viommu, faulty: Accel) -> None:
    wanted = [NOTHING + 64 * number for number in range(200)]
    for at in range(0, 200, 50):
        faulty.run_all([write_at(address) for address in wanted[at : at + 50]])

    faults = [viommu.wait_fault() for _ in wanted]

    assert [fault.address for fault in faults] == wanted


def test_d57_d58_reserved_bytes_and_unknown_flags_of_a_report_are_zero(viommu: Viommu, faulty: Accel) -> None:
    # D57: reserved SHOULD be 0; D58: undefined flags SHOULD be 0
    faulty.run(write_at(NOTHING))

    raw = viommu.wait_fault().raw

    wanted = b"\x02\0\0\0" + b"\x02\x01\0\0" + faulty.endpoint.to_bytes(4, "little") + bytes(4)
    assert raw == wanted + NOTHING.to_bytes(8, "little")


def test_d59_each_of_two_endpoints_is_reported_by_its_own_number(viommu: Viommu, open_accel: OpenAccel) -> None:
    # D59: SHOULD write a valid endpoint id
    accels = open_accel(0), open_accel(1)
    for domain, accel in enumerate(accels, 1):
        accel.start_in(viommu, domain=domain)

    for accel in (*accels, *reversed(accels)):
        accel.run(read_at(NOTHING))

    first, second = (accel.endpoint for accel in accels)
    assert first != second
    assert [viommu.wait_fault().endpoint for _ in range(4)] == [first, second, second, first]


def test_g23_two_endpoints_that_fault_at_once_are_not_mixed_up(viommu: Viommu, open_accel: OpenAccel) -> None:
    accels = open_accel(0), open_accel(1)
    for domain, accel in enumerate(accels, 1):
        accel.start_in(viommu, domain=domain)
        accel.engine.submit(*[read_at(NOTHING * domain + 64 * number) for number in range(30)])

    faults = [viommu.wait_fault() for _ in range(60)]

    for domain, accel in enumerate(accels, 1):
        addresses = [fault.address for fault in faults if fault.endpoint == accel.endpoint]
        assert addresses == [NOTHING * domain + 64 * number for number in range(30)]


def test_g23_allowed_traffic_and_refused_requests_are_no_faults(viommu: Viommu, faulty: Accel) -> None:
    faulty.run_all([read_at(READABLE), write_at(WRITABLE)] * 20)
    with pytest.raises(RequestRefused):
        viommu.attach(domain=1, endpoint=0xFFFF)

    faulty.run(read_at(NOTHING))

    assert viommu.wait_fault().address == NOTHING  # the first that was reported


def test_d59_d60_the_engines_own_ring_is_reported_like_any_access(viommu: Viommu, faulty: Accel) -> None:
    viommu.unmap(domain=faulty.domain, iova=RING_IOVA, nbytes=2 * PAGE)

    with pytest.raises(EngineStopped):
        faulty.nop()

    assert viommu.wait_fault() == Fault(Reason.MAPPING, Access(READ), faulty.endpoint, RING_IOVA)
