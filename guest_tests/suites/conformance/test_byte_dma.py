"""DMA through mappings of single bytes: the granule of this unit is 1, which the specification allows."""

from __future__ import annotations

import zlib

import pytest
from asking import DOMAIN, map_span, status

from guest_tests.payload.direct import READ, WRITE, Accel, DmaArena, Status, Viommu

BASE, TARGET, PAGE = 0x2000, 0x8000, 4096


@pytest.fixture
def viommu(of_bytes: Viommu) -> Viommu:
    """The unit of single bytes is the one, here."""
    return of_bytes


def test_d37_one_byte_can_be_mapped_and_its_neighbours_are_not(
    viommu: Viommu, bytes_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    viommu.map(domain=DOMAIN, iova=BASE + 5, gpa=page.gpa + 77, nbytes=1)

    assert bytes_accel.checksum(BASE + 5, 1) == zlib.crc32(page.read(1, 77))
    for neighbour in (BASE + 4, BASE + 6):
        with bytes_accel.refused(neighbour, READ):
            bytes_accel.checksum(neighbour, 1)


def test_d37_bytes_mapped_in_reverse_are_read_in_reverse(viommu: Viommu, bytes_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    for number in range(32):
        viommu.map(domain=DOMAIN, iova=BASE + number, gpa=page.gpa + 31 - number, nbytes=1)

    assert bytes_accel.checksum(BASE, 32) == zlib.crc32(page.read(32)[::-1])


def test_d37_a_write_through_byte_mappings_lands_byte_by_byte(
    viommu: Viommu, bytes_accel: Accel, dma: DmaArena
) -> None:
    page = dma.alloc(PAGE)
    for number in range(8):
        viommu.map(domain=DOMAIN, iova=TARGET + number, gpa=page.gpa + 16 * number, nbytes=1, access=WRITE)

    bytes_accel.fill(TARGET, 8, 0x8877_6655_4433_2211)

    wanted = b"".join(byte.to_bytes(1, "little") + bytes(15) for byte in range(0x11, 0x99, 0x11))
    assert page.read(128) == wanted


def test_d35_g22_a_read_only_byte_in_the_middle_refuses_the_whole_write(
    viommu: Viommu, bytes_accel: Accel, dma: DmaArena
) -> None:
    page = dma.alloc(PAGE)
    viommu.map(domain=DOMAIN, iova=TARGET, gpa=page.gpa, nbytes=100)
    viommu.map(domain=DOMAIN, iova=TARGET + 100, gpa=page.gpa + 100, nbytes=1, access=READ)
    viommu.map(domain=DOMAIN, iova=TARGET + 101, gpa=page.gpa + 101, nbytes=100)

    with bytes_accel.refused(TARGET + 100, WRITE):
        bytes_accel.fill(TARGET, 201, (1 << 64) - 1)

    assert page.read() == bytes(PAGE)


def test_d37_a_copy_of_several_pages_goes_through_odd_mappings(
    viommu: Viommu, bytes_accel: Accel, dma: DmaArena
) -> None:
    source, target = dma.random(4 * PAGE), dma.alloc(4 * PAGE)
    viommu.map(domain=DOMAIN, iova=0x10_0001, gpa=source.gpa + 3, nbytes=3 * PAGE + 11)
    viommu.map(domain=DOMAIN, iova=0x20_0007, gpa=target.gpa + 1, nbytes=3 * PAGE + 11)

    bytes_accel.copy(0x10_0001, 0x20_0007, 3 * PAGE + 11)

    assert target.read(3 * PAGE + 12) == b"\0" + source.read(3 * PAGE + 11, 3)


def test_d30_addresses_without_common_alignment_may_be_mapped(viommu: Viommu, bytes_accel: Accel) -> None:
    # D30: nothing is misaligned where the granule is 1
    assert status(viommu, map_span(BASE + 1, BASE + 3, domain=DOMAIN, phys_start=0x3333)) == Status.OK


def test_d31_a_mapping_that_overlaps_another_by_one_byte_is_refused(viommu: Viommu, bytes_accel: Accel) -> None:
    # D31: overlap SHOULD be rejected INVAL
    viommu.map(domain=DOMAIN, iova=BASE + 10, gpa=0, nbytes=10)

    statuses = [status(viommu, map_span(BASE + a, BASE + b, domain=DOMAIN)) for a, b in ((0, 11), (19, 31))]

    assert statuses == [Status.INVAL, Status.INVAL]


def test_d31_mappings_may_touch(viommu: Viommu, bytes_accel: Accel) -> None:
    viommu.map(domain=DOMAIN, iova=BASE + 10, gpa=0, nbytes=10)

    statuses = [status(viommu, map_span(BASE + a, BASE + b, domain=DOMAIN)) for a, b in ((0, 10), (20, 31))]

    assert statuses == [Status.OK, Status.OK]


def test_d37_the_last_byte_of_the_input_range_can_be_reached(viommu: Viommu, bytes_accel: Accel, dma: DmaArena) -> None:
    page, last = dma.random(PAGE), viommu.config.input_range.stop - 1
    viommu.map(domain=DOMAIN, iova=last, gpa=page.gpa + 9, nbytes=1)

    assert bytes_accel.checksum(last, 1) == zlib.crc32(page.read(1, 9))
