"""What a mapping allows, and mappings of what is no memory."""

from __future__ import annotations

import zlib

import pytest

from guest_tests.payload.direct import (
    MMIO,
    READ,
    WRITE,
    Accel,
    DmaArena,
    Reason,
    Subtype,
    TranslationFault,
    UnsupportedRequest,
    Viommu,
)
from guest_tests.payload.direct.wire import ResvMem

SOURCE, TARGET, PAGE = 0x1_0000, 0x2_0000, 4096
NO_RAM = 0x8000_0000  # these machines have less than 2 GiB
MARKER = 0x77
DEVMEM_BAR = 0x18  # the register of BAR2


def test_d35_a_mapping_without_write_cannot_be_written(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    # D35: MUST NOT allow writes through a mapping without WRITE
    page = dma.alloc(PAGE).fill(MARKER)
    viommu.map_buffer(mapped_accel.domain, TARGET, page, READ)

    with mapped_accel.refused(TARGET, WRITE):
        mapped_accel.fill(TARGET, PAGE, 0)

    assert page.read() == bytes([MARKER]) * PAGE


def test_d35_a_mapping_without_write_can_be_read(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, page, READ)

    assert mapped_accel.checksum(SOURCE, PAGE) == zlib.crc32(page.read())


def test_d36_a_mapping_without_read_cannot_be_read(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    # D36: MAY allow it only where hardware has no write-only
    viommu.map_buffer(mapped_accel.domain, SOURCE, dma.random(PAGE), WRITE)

    with mapped_accel.refused(SOURCE, READ):
        mapped_accel.checksum(SOURCE, PAGE)


def test_d36_a_mapping_without_read_can_be_written(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, TARGET, page, WRITE)

    mapped_accel.fill(TARGET, PAGE, 0)

    assert page.read() == bytes(PAGE)


@pytest.mark.parametrize("access", [READ, WRITE])
def test_g5_a_mapping_that_allows_nothing_refuses_everything(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, access: int
) -> None:
    viommu.map_buffer(mapped_accel.domain, TARGET, dma.alloc(PAGE), access=0)

    with mapped_accel.refused(TARGET, access):
        if access == READ:
            mapped_accel.checksum(TARGET, PAGE)
        else:
            mapped_accel.fill(TARGET, PAGE, 0)


def test_d36_compare_wants_to_read_both_of_its_operands(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    viommu.map_buffer(mapped_accel.domain, SOURCE, dma.alloc(PAGE), READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, dma.alloc(PAGE), WRITE)

    with mapped_accel.refused(TARGET, READ):
        mapped_accel.compare(SOURCE, TARGET, PAGE)


def test_d35_g22_a_write_that_straddles_into_a_read_only_mapping_is_refused_at_the_border(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    writable, readable = dma.alloc(PAGE).fill(MARKER), dma.alloc(PAGE).fill(MARKER)
    viommu.map_buffer(mapped_accel.domain, TARGET, writable, READ | WRITE)
    viommu.map_buffer(mapped_accel.domain, TARGET + PAGE, readable, READ)

    with mapped_accel.refused(TARGET + PAGE, WRITE):
        mapped_accel.fill(TARGET + 8, PAGE, 0)

    assert writable.read() + readable.read() == bytes([MARKER]) * (2 * PAGE)


def test_d35_a_refused_write_through_a_read_only_mapping_is_a_mapping_fault(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    viommu.map_buffer(mapped_accel.domain, TARGET, dma.alloc(PAGE), READ)

    with pytest.raises(TranslationFault):
        mapped_accel.fill(TARGET + 8, 8, 0)

    fault = viommu.wait_fault()
    assert (fault.reason, fault.access, fault.address) == (Reason.MAPPING, WRITE, TARGET + 8)


def test_d37_a_mapping_with_the_mmio_flag_translates_like_any_other(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ | MMIO)
    viommu.map_buffer(mapped_accel.domain, TARGET, target, WRITE | MMIO)

    mapped_accel.copy(SOURCE, TARGET, PAGE)

    assert target.read() == source.read()


def test_d35_the_mmio_flag_allows_nothing_by_itself(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    viommu.map_buffer(mapped_accel.domain, TARGET, dma.alloc(PAGE), READ | MMIO)

    with mapped_accel.refused(TARGET, WRITE):
        mapped_accel.fill(TARGET, 8, 0)


def test_g11_what_is_no_ram_may_be_mapped_and_is_an_unsupported_request(viommu: Viommu, mapped_accel: Accel) -> None:
    viommu.map(domain=mapped_accel.domain, iova=SOURCE, gpa=NO_RAM, nbytes=PAGE)

    with pytest.raises(UnsupportedRequest) as caught:
        mapped_accel.checksum(SOURCE + 16, 16)

    assert caught.value.fault_iova == SOURCE + 16


def test_g11_an_unsupported_request_is_no_fault_of_the_iommu(viommu: Viommu, mapped_accel: Accel) -> None:
    viommu.map(domain=mapped_accel.domain, iova=SOURCE, gpa=NO_RAM, nbytes=PAGE)
    with pytest.raises(UnsupportedRequest):
        mapped_accel.checksum(SOURCE, PAGE)

    with pytest.raises(TranslationFault):
        mapped_accel.checksum(TARGET, PAGE)

    assert viommu.wait_fault().address == TARGET  # the first that was reported
    assert viommu.faults() == []


def test_g11_a_write_half_in_ram_and_half_outside_changes_nothing(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.alloc(PAGE).fill(MARKER)
    viommu.map_buffer(mapped_accel.domain, TARGET, page)
    viommu.map(domain=mapped_accel.domain, iova=TARGET + PAGE, gpa=NO_RAM, nbytes=PAGE)

    with pytest.raises(UnsupportedRequest):
        mapped_accel.fill(TARGET, 2 * PAGE, 0)

    assert page.read() == bytes([MARKER]) * PAGE


def test_g11_a_mapped_bar_of_an_endpoint_is_out_of_its_reach(viommu: Viommu, mapped_accel: Accel) -> None:
    read = mapped_accel.function.read_config
    bar = (read(DEVMEM_BAR, 4) | read(DEVMEM_BAR + 4, 4) << 32) & ~0xF
    viommu.map(domain=mapped_accel.domain, iova=TARGET, gpa=bar, nbytes=PAGE, access=READ | WRITE | MMIO)

    with pytest.raises(UnsupportedRequest):
        mapped_accel.fill(TARGET, 8, MARKER)

    assert mapped_accel.devmem.read64(0) != MARKER


def msi_region(viommu: Viommu, accel: Accel) -> ResvMem:
    """The MSI region that PROBE tells of."""
    regions = [region for region in viommu.probe(accel.endpoint) if isinstance(region, ResvMem)]
    (region,) = [region for region in regions if region.subtype == Subtype.MSI]
    return region


def test_g21_a_write_to_the_msi_region_passes_untranslated(viommu: Viommu, mapped_accel: Accel) -> None:
    region = msi_region(viommu, mapped_accel)

    with pytest.raises(UnsupportedRequest):  # nothing is there that takes data, but the IOMMU let it pass
        mapped_accel.fill(region.start, 8, 0)


def test_d56_g21_a_read_of_the_msi_region_is_refused(viommu: Viommu, mapped_accel: Accel) -> None:
    region = msi_region(viommu, mapped_accel)

    with mapped_accel.refused(region.start + 16, READ):
        mapped_accel.checksum(region.start + 16, 8)
