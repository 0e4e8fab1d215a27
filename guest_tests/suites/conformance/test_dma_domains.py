"""Endpoints that join, leave and change domains while their DMA goes on; bypass."""

from __future__ import annotations

import zlib

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.direct import ATTACH_BYPASS, READ, WRITE, Accel, DmaArena, EngineStopped, Reason, Viommu
from guest_tests.payload.direct.accel import RING_IOVA
from guest_tests.payload.fixtures import OpenAccel

SOURCE, TARGET, PAGE = 0x1_0000, 0x2_0000, 4096


def test_d19_d37_two_endpoints_of_one_domain_share_its_mappings(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    # D19: a second endpoint MAY attach
    first, second = open_accel(0), open_accel(1)
    first.start_in(viommu, domain=1)
    viommu.attach(domain=1, endpoint=second.endpoint)
    viommu.map_buffer(1, 2 * RING_IOVA, second.ring)
    second.start(2 * RING_IOVA)
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    viommu.map_buffer(1, SOURCE, source, READ)
    viommu.map_buffer(1, TARGET, target, WRITE)

    second.copy(SOURCE, TARGET, PAGE)

    assert target.read() == source.read()
    assert first.checksum(SOURCE, PAGE) == zlib.crc32(source.read())


def test_d37_an_unmap_takes_a_mapping_from_every_endpoint_of_the_domain(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    first, second = open_accel(0), open_accel(1)
    first.start_in(viommu, domain=1)
    viommu.attach(domain=1, endpoint=second.endpoint)
    viommu.map_buffer(1, 2 * RING_IOVA, second.ring)
    second.start(2 * RING_IOVA)
    viommu.map_buffer(1, SOURCE, dma.random(PAGE), READ)
    first.checksum(SOURCE, PAGE)
    second.checksum(SOURCE, PAGE)

    viommu.unmap(domain=1, iova=SOURCE, nbytes=PAGE)

    for accel in (first, second):
        with accel.refused(SOURCE, READ):
            accel.checksum(SOURCE, PAGE)


def test_d29_an_endpoint_that_leaves_a_domain_takes_nothing_from_the_other(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    first, second = open_accel(0), open_accel(1)
    first.start_in(viommu, domain=1)
    viommu.attach(domain=1, endpoint=second.endpoint)
    page = dma.random(PAGE)
    viommu.map_buffer(1, SOURCE, page, READ)

    viommu.detach(domain=1, endpoint=second.endpoint)

    assert first.checksum(SOURCE, PAGE) == zlib.crc32(page.read())


def test_d37_the_same_address_in_two_domains_is_different_memory(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    accels, pages = (open_accel(0), open_accel(1)), (dma.random(PAGE), dma.random(PAGE))
    for domain, (accel, page) in enumerate(zip(accels, pages, strict=True), 1):
        accel.start_in(viommu, domain=domain)
        viommu.map_buffer(domain, SOURCE, page, READ)

    checksums = [accel.checksum(SOURCE, PAGE) for accel in accels]

    assert checksums == [zlib.crc32(page.read()) for page in pages]


def test_d21_an_attach_to_another_domain_switches_translation_at_once(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    # D21: SHOULD behave as DETACH, then ATTACH
    accel, keeper = open_accel(0), open_accel(1)
    accel.start_in(viommu, domain=1)
    viommu.attach(domain=2, endpoint=keeper.endpoint)
    before, after = dma.random(PAGE), dma.random(PAGE)
    viommu.map_buffer(1, SOURCE, before, READ)
    viommu.map_buffer(2, RING_IOVA, accel.ring)
    viommu.map_buffer(2, SOURCE, after, READ)
    seen = [accel.checksum(SOURCE, PAGE)]

    viommu.attach(domain=2, endpoint=accel.endpoint)

    seen.append(accel.checksum(SOURCE, PAGE))
    assert seen == [zlib.crc32(before.read()), zlib.crc32(after.read())]


def test_d21_d29_a_domain_whose_last_endpoint_moves_on_ceases(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    # D21, D29
    accel, second = open_accel(0), open_accel(1)
    accel.start_in(viommu, domain=1)
    viommu.map_buffer(1, SOURCE, dma.random(PAGE), READ)
    viommu.attach(domain=2, endpoint=accel.endpoint)

    second.start_in(viommu, domain=1)

    with second.refused(SOURCE, READ):
        second.checksum(SOURCE, PAGE)


def test_d37_a_new_mapping_at_an_old_address_leads_to_the_new_memory(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    old, new = dma.random(PAGE), dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, old, READ)
    mapped_accel.checksum(SOURCE, PAGE)

    viommu.unmap(domain=mapped_accel.domain, iova=SOURCE, nbytes=PAGE)
    viommu.map_buffer(mapped_accel.domain, SOURCE, new, READ)

    assert mapped_accel.checksum(SOURCE, PAGE) == zlib.crc32(new.read())


def test_d35_a_page_mapped_again_with_more_rights_can_be_written(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    viommu.map_buffer(mapped_accel.domain, TARGET, page, READ)
    with mapped_accel.refused(TARGET, WRITE):
        mapped_accel.fill(TARGET, PAGE, 0)

    viommu.unmap(domain=mapped_accel.domain, iova=TARGET, nbytes=PAGE)
    viommu.map_buffer(mapped_accel.domain, TARGET, page, READ | WRITE)
    mapped_accel.fill(TARGET, PAGE, 0)

    assert page.read() == bytes(PAGE)


def test_d28_a_detached_endpoint_reaches_no_mapping_any_more(blocking: Viommu, accel: Accel, dma: DmaArena) -> None:
    # D28: MUST NOT reach any mapping of that domain
    accel.start_in(blocking, domain=1)
    target = dma.alloc(PAGE)
    blocking.map_buffer(1, TARGET, target)

    blocking.detach(domain=1, endpoint=accel.endpoint)

    with pytest.raises(EngineStopped) as caught:
        accel.fill(TARGET, PAGE, 0xFF)
    assert (caught.value.error, caught.value.error_iova) == (engine.ERROR_RING_FETCH, RING_IOVA)
    assert target.read() == bytes(PAGE)


def test_d29_a_domain_made_again_has_none_of_its_old_mappings(viommu: Viommu, accel: Accel, dma: DmaArena) -> None:
    # D29: a domain ceases when its last endpoint leaves
    accel.start_in(viommu, domain=1)
    viommu.map_buffer(1, SOURCE, dma.random(PAGE), READ)
    viommu.detach(domain=1, endpoint=accel.endpoint)

    accel.start_in(viommu, domain=1)

    with accel.refused(SOURCE, READ):
        accel.checksum(SOURCE, PAGE)


def test_d14_an_unattached_endpoint_without_bypass_reaches_nothing(
    blocking: Viommu, accel: Accel, dma: DmaArena
) -> None:
    # D14: SHOULD block unattached, non-bypass endpoints from guest-physical memory
    target = dma.alloc(PAGE)
    accel.start()

    with pytest.raises(EngineStopped) as caught:
        accel.fill(target.gpa, PAGE, 0xFF)

    assert (caught.value.error, caught.value.error_iova) == (engine.ERROR_RING_FETCH, accel.ring.gpa)
    assert target.read() == bytes(PAGE)


def test_d14_an_unattached_endpoint_without_bypass_has_no_domain_is_the_fault(blocking: Viommu, accel: Accel) -> None:
    accel.start()

    with pytest.raises(EngineStopped):
        accel.nop()

    fault = blocking.wait_fault()
    assert (fault.reason, fault.access) == (Reason.DOMAIN, READ)
    assert (fault.endpoint, fault.address) == (accel.endpoint, accel.ring.gpa)


def test_d14_an_unattached_endpoint_with_bypass_reaches_all_memory(viommu: Viommu, accel: Accel, dma: DmaArena) -> None:
    assert viommu.bypass
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    accel.start()

    accel.copy(source.gpa, target.gpa, PAGE)

    assert target.read() == source.read()


def test_d14_bypass_switched_off_stops_a_bypassing_engine(blocking: Viommu, accel: Accel) -> None:
    blocking.bypass = True
    accel.start()
    accel.nop()

    blocking.bypass = False

    with pytest.raises(EngineStopped):
        accel.nop()


def test_d14_bypass_means_nothing_to_an_attached_endpoint(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    assert viommu.bypass

    with mapped_accel.refused(page.gpa, READ):
        mapped_accel.checksum(page.gpa, PAGE)


def test_d28_a_detached_endpoint_bypasses_where_bypass_is_on(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    viommu.detach(domain=mapped_accel.domain, endpoint=mapped_accel.endpoint)

    mapped_accel.start()

    assert mapped_accel.checksum(page.gpa, PAGE) == zlib.crc32(page.read())


def test_d14_a_bypass_domain_reaches_all_memory_with_the_bypass_byte_off(
    blocking: Viommu, accel: Accel, dma: DmaArena
) -> None:
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    blocking.attach(domain=1, endpoint=accel.endpoint, flags=ATTACH_BYPASS)
    accel.start()

    accel.copy(source.gpa, target.gpa, PAGE)

    assert target.read() == source.read()


def test_d21_an_endpoint_that_leaves_a_bypass_domain_for_another_is_translated(
    blocking: Viommu, accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    blocking.attach(domain=1, endpoint=accel.endpoint, flags=ATTACH_BYPASS)
    accel.start()
    accel.checksum(page.gpa, PAGE)

    accel.start_in(blocking, domain=2)

    with accel.refused(page.gpa, READ):
        accel.checksum(page.gpa, PAGE)
