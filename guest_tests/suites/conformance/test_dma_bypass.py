"""Reserved regions, and what bypassing accesses may reach. The narrow unit: 64 KiB, 1 MiB to 16 MiB, small limits."""

from __future__ import annotations

import pytest
from asking import BYTES, DOMAINS, GRANULE, HOLE, HOLED, INPUT, MSI, OF_BYTES, PLAIN

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    READ,
    WRITE,
    Accel,
    DmaArena,
    EngineStopped,
    Fault,
    Reason,
    UnsupportedRequest,
    Viommu,
)
from guest_tests.payload.fixtures import OpenAccel, OpenViommu

DOMAIN = DOMAINS.start
NBYTES = 4096


def in_bypass_domain(narrow: Viommu, accel: Accel) -> Accel:
    """The accelerator runs, untranslated."""
    narrow.attach(domain=DOMAIN, endpoint=accel.endpoint, flags=ATTACH_BYPASS)
    return accel.start()


def unattached(narrow: Viommu, accel: Accel) -> Accel:
    """The accelerator runs, untranslated because unattached endpoints bypass."""
    narrow.bypass = True
    assert narrow.bypass  # the write has arrived when a read comes back: the accelerator has a socket of its own
    return accel.start()


def translated(narrow: Viommu, accel: Accel) -> Accel:
    """The accelerator runs in a domain where nothing is mapped but the granules around its ring."""
    within = accel.ring.gpa % GRANULE
    narrow.attach(domain=DOMAIN, endpoint=accel.endpoint)
    narrow.map(domain=DOMAIN, iova=INPUT.start, gpa=accel.ring.gpa - within, nbytes=2 * GRANULE)
    return accel.start(INPUT.start + within)


WAYS = {"translated": translated, "bypass-domain": in_bypass_domain, "unattached": unattached}


@pytest.mark.parametrize("way", WAYS)
def test_d56_a_reserved_region_is_closed_from_its_first_byte_to_its_last(
    narrow: Viommu, open_accel: OpenAccel, way: str
) -> None:
    """Accesses to it SHOULD NOT affect anything but the endpoint and its driver."""
    accel = WAYS[way](narrow, open_accel(HOLED))

    for iova in (HOLE.start, HOLE.stop - 8):
        with accel.refused(iova, READ):
            accel.checksum(iova, 8)
        with accel.refused(iova, WRITE):
            accel.fill(iova, 8, 0xFF)

    faults = [narrow.wait_fault() for _ in range(4)]
    assert {fault.reason for fault in faults} == {Reason.MAPPING}
    assert [fault.address for fault in faults] == [HOLE.start] * 2 + [HOLE.stop - 8] * 2


@pytest.mark.parametrize("way", ["bypass-domain", "unattached"])
def test_d56_an_access_that_runs_into_a_reserved_region_is_refused_at_its_first_byte(
    narrow: Viommu, open_accel: OpenAccel, way: str
) -> None:
    accel = WAYS[way](narrow, open_accel(HOLED))

    with accel.refused(HOLE.start, WRITE):
        accel.fill(HOLE.start - 8, 16, 0xFF)

    assert narrow.wait_fault() == Fault(Reason.MAPPING, WRITE, accel.endpoint, HOLE.start)


def test_d56_the_bytes_around_a_reserved_region_are_open(narrow: Viommu, open_accel: OpenAccel) -> None:
    accel = in_bypass_domain(narrow, open_accel(HOLED))

    for iova in (HOLE.start - 8, HOLE.stop):
        assert accel.run(Operation(engine.CHECKSUM, iova, nbytes=8)).status != engine.TRANSLATION_FAULT

    assert narrow.faults() == []


def test_d56_a_region_is_reserved_for_its_endpoint_alone(narrow: Viommu, open_accel: OpenAccel) -> None:
    accel = in_bypass_domain(narrow, open_accel(PLAIN))

    assert accel.run(Operation(engine.CHECKSUM, HOLE.start, nbytes=8)).status != engine.TRANSLATION_FAULT


@pytest.mark.parametrize("way", WAYS)
def test_g21_of_the_msi_region_writes_pass_and_reads_do_not(narrow: Viommu, open_accel: OpenAccel, way: str) -> None:
    """The message of an interrupt is a write."""
    accel = WAYS[way](narrow, open_accel(PLAIN))

    for iova in (MSI.start, MSI.stop - 8):
        assert accel.run(Operation(engine.FILL, dst=iova, nbytes=8)).status != engine.TRANSLATION_FAULT
        with accel.refused(iova, READ):
            accel.checksum(iova, 8)


def test_g20_a_bypass_domain_reaches_memory_outside_the_input_range(
    narrow: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    """The range limits what can be mapped."""
    source, target = dma.random(NBYTES), dma.alloc(NBYTES)
    assert source.gpa not in INPUT
    accel = in_bypass_domain(narrow, open_accel(PLAIN))

    accel.copy(source.gpa, target.gpa, NBYTES)

    assert target.read() == source.read()


def test_g20_a_bypassing_access_above_the_input_range_is_no_fault(viommu: Viommu, accel: Accel) -> None:
    """Nothing is there, but it is not the IOMMU who says so."""
    accel.start()

    with pytest.raises(UnsupportedRequest):
        accel.checksum(viommu.config.input_range.stop, 8)

    assert viommu.faults() == []


def test_d14_an_unattached_endpoint_reaches_nothing_where_bypass_is_not_offered(
    open_viommu: OpenViommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    viommu, accel, target = open_viommu(BYTES), open_accel(OF_BYTES), dma.alloc(NBYTES)
    accel.start()

    with pytest.raises(EngineStopped):
        accel.fill(target.gpa, NBYTES, 0xFF)

    assert viommu.wait_fault().reason == Reason.DOMAIN
    assert target.read() == bytes(NBYTES)


def test_d14_an_unattached_endpoint_reaches_nothing_where_bypass_is_off_at_boot(
    narrow: Viommu, open_accel: OpenAccel, dma: DmaArena
) -> None:
    accel, target = open_accel(PLAIN), dma.alloc(NBYTES)
    accel.start()

    with pytest.raises(EngineStopped):
        accel.fill(target.gpa, NBYTES, 0xFF)

    assert narrow.wait_fault().reason == Reason.DOMAIN
    assert target.read() == bytes(NBYTES)
