"""Mappings of single bytes: the granule of these units is 1, which the specification allows."""

from __future__ import annotations

import zlib

import pytest

from guest_tests.payload.direct import READ, WRITE, Accel, DmaArena, Status, Viommu
from guest_tests.payload.direct.wire import Map

DOMAIN = 2  # where `mapped_accel` is: the range starts at 1
BASE, TARGET, PAGE = 0x2000, 0x8000, 4096
INPUT_START = 0x100


def map_status(viommu: Viommu, first: int, last: int, gpa: int = 0) -> object:
    """How MAP of [first, last] in DOMAIN is answered."""
    return viommu.send(Map(domain=DOMAIN, virt_start=first, virt_end=last, phys_start=gpa, flags=READ)).status


def test_the_granule_is_one_byte(viommu: Viommu) -> None:
    # D4: at least one bit in page_size_mask; bit 0 is a legal one
    assert viommu.config.granule == 1


def test_one_byte_can_be_mapped_and_its_neighbours_are_not(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    viommu.map(domain=DOMAIN, iova=BASE + 5, gpa=page.gpa + 77, nbytes=1)

    assert mapped_accel.checksum(BASE + 5, 1) == zlib.crc32(page.read(1, 77))
    for neighbour in (BASE + 4, BASE + 6):
        with mapped_accel.refused(neighbour, READ):
            mapped_accel.checksum(neighbour, 1)


def test_bytes_mapped_in_reverse_are_read_in_reverse(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    for number in range(32):
        viommu.map(domain=DOMAIN, iova=BASE + number, gpa=page.gpa + 31 - number, nbytes=1)

    assert mapped_accel.checksum(BASE, 32) == zlib.crc32(page.read(32)[::-1])


def test_a_write_through_byte_mappings_lands_byte_by_byte(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.alloc(PAGE)
    for number in range(8):
        viommu.map(domain=DOMAIN, iova=TARGET + number, gpa=page.gpa + 16 * number, nbytes=1, access=WRITE)

    mapped_accel.fill(TARGET, 8, 0x8877_6655_4433_2211)

    wanted = b"".join(byte.to_bytes(1, "little") + bytes(15) for byte in range(0x11, 0x99, 0x11))
    assert page.read(128) == wanted


def test_a_read_only_byte_in_the_middle_refuses_the_whole_write(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.alloc(PAGE)
    viommu.map(domain=DOMAIN, iova=TARGET, gpa=page.gpa, nbytes=100)
    viommu.map(domain=DOMAIN, iova=TARGET + 100, gpa=page.gpa + 100, nbytes=1, access=READ)
    viommu.map(domain=DOMAIN, iova=TARGET + 101, gpa=page.gpa + 101, nbytes=100)

    with mapped_accel.refused(TARGET + 100, WRITE):
        mapped_accel.fill(TARGET, 201, (1 << 64) - 1)

    assert page.read() == bytes(PAGE)


def test_a_copy_of_several_pages_goes_through_odd_mappings(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    source, target = dma.random(4 * PAGE), dma.alloc(4 * PAGE)
    viommu.map(domain=DOMAIN, iova=0x10_0001, gpa=source.gpa + 3, nbytes=3 * PAGE + 11)
    viommu.map(domain=DOMAIN, iova=0x20_0007, gpa=target.gpa + 1, nbytes=3 * PAGE + 11)

    mapped_accel.copy(0x10_0001, 0x20_0007, 3 * PAGE + 11)

    assert target.read(3 * PAGE + 12) == b"\0" + source.read(3 * PAGE + 11, 3)


def test_addresses_without_common_alignment_may_be_mapped(viommu: Viommu, mapped_accel: Accel) -> None:
    # D30: nothing is misaligned where the granule is 1
    assert map_status(viommu, BASE + 1, BASE + 2, gpa=0x3333) == Status.OK


def test_a_range_that_ends_before_it_starts_is_refused(viommu: Viommu, mapped_accel: Accel) -> None:
    assert map_status(viommu, BASE + 1, BASE) == Status.RANGE


def test_a_mapping_that_overlaps_another_by_one_byte_is_refused(viommu: Viommu, mapped_accel: Accel) -> None:
    # D31: overlap SHOULD be rejected INVAL
    viommu.map(domain=DOMAIN, iova=BASE + 10, gpa=0, nbytes=10)

    statuses = [map_status(viommu, *span) for span in ((BASE, BASE + 10), (BASE + 19, BASE + 30))]

    assert statuses == [Status.INVAL, Status.INVAL]


def test_mappings_may_touch(viommu: Viommu, mapped_accel: Accel) -> None:
    viommu.map(domain=DOMAIN, iova=BASE + 10, gpa=0, nbytes=10)

    statuses = [map_status(viommu, *span) for span in ((BASE, BASE + 9), (BASE + 20, BASE + 30))]

    assert statuses == [Status.OK, Status.OK]


@pytest.mark.parametrize(
    ("first", "last", "status"),
    [
        (0xFF0, 0xFFF, Status.OK),
        (0xFF0, 0x1000, Status.INVAL),
        (0x1400, 0x1400, Status.INVAL),
        (0x17FF, 0x1800, Status.INVAL),
        (0x1800, 0x1800, Status.OK),
    ],
)
def test_a_mapping_may_touch_a_reserved_region_and_not_enter_it(
    viommu: Viommu, mapped_accel: Accel, first: int, last: int, status: Status
) -> None:
    # D38: overlap with a RESV_MEM region SHOULD be rejected
    assert map_status(viommu, first, last) == status


@pytest.mark.parametrize(
    ("first", "last", "status"),
    [
        (INPUT_START - 1, INPUT_START, Status.RANGE),
        (INPUT_START, INPUT_START, Status.OK),
        (0x3F_FFFF_FFFF, 0x3F_FFFF_FFFF, Status.OK),
        (0x3F_FFFF_FFFF, 0x40_0000_0000, Status.RANGE),
        (0x40_0000_0000, 0x40_0000_0000, Status.RANGE),
    ],
)
def test_the_input_range_is_exact_to_the_byte(
    viommu: Viommu, mapped_accel: Accel, first: int, last: int, status: Status
) -> None:
    # D37: outside input_range fails
    assert map_status(viommu, first, last) == status


def test_the_last_byte_of_the_input_range_can_be_reached(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page, last = dma.random(PAGE), viommu.config.input_range.stop - 1
    viommu.map(domain=DOMAIN, iova=last, gpa=page.gpa + 9, nbytes=1)

    assert mapped_accel.checksum(last, 1) == zlib.crc32(page.read(1, 9))
