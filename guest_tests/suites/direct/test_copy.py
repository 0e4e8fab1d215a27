"""DMA of the accelerator through mappings a test makes itself."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct import READ, WRITE, Accel, DmaArena, RequestRefused, Status, TranslationFault, Viommu

SOURCE, TARGET, PAGE = 0x10000, 0x20000, 4096


def test_a_copy_goes_through_the_mappings(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, target, WRITE)

    mapped_accel.copy(SOURCE, TARGET, PAGE)

    assert target.read() == source.read()


def test_a_copy_after_unmap_is_refused(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    source, target = dma.random(PAGE), dma.alloc(PAGE).fill(0)
    viommu.map_buffer(mapped_accel.domain, SOURCE, source, READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, target, WRITE)
    viommu.unmap(domain=mapped_accel.domain, iova=TARGET, nbytes=PAGE)

    with pytest.raises(TranslationFault) as caught:
        mapped_accel.copy(SOURCE, TARGET, PAGE)

    assert caught.value.fault_iova == TARGET
    assert target.read() == bytes(PAGE)


def test_unmap_of_a_domain_that_is_not_there_is_refused(viommu: Viommu) -> None:
    with pytest.raises(RequestRefused) as caught:
        viommu.unmap(domain=7, iova=0, nbytes=PAGE)

    assert caught.value.status == Status.NOENT
