"""Two units in one machine: what is said to one is nothing to the other. The second one's aperture has 32 bits."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from guest_tests.payload.direct import (
    READ,
    Accel,
    DmaArena,
    EngineStopped,
    RequestRefused,
    Status,
    TranslationFault,
    Viommu,
)
from guest_tests.payload.direct.wire import Attach, Detach, Probe
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host

SOURCE, PAGE = 0x1_0000, 4096
APERTURE_STOP = 1 << 32  # of the second unit


@pytest.fixture
def other(open_viommu: OpenViommu) -> Viommu:
    """The second unit."""
    return open_viommu(1)


@pytest.fixture
def far_accel(other: Viommu, open_accel: OpenAccel) -> Accel:
    """The accelerator behind the second unit, in domain 1 there."""
    return open_accel(2).start_in(other, domain=1)


def test_one_domain_number_is_two_domains(
    viommu: Viommu, other: Viommu, open_accel: OpenAccel, far_accel: Accel, dma: DmaArena
) -> None:
    near, pages = open_accel(0).start_in(viommu, domain=1), (dma.random(PAGE), dma.random(PAGE))
    viommu.map_buffer(1, SOURCE, pages[0], READ)
    other.map_buffer(1, SOURCE, pages[1], READ)

    checksums = near.checksum(SOURCE, PAGE), far_accel.checksum(SOURCE, PAGE)

    assert checksums == (zlib.crc32(pages[0].read()), zlib.crc32(pages[1].read()))


def test_an_unmap_at_one_unit_takes_nothing_from_the_other(
    viommu: Viommu, other: Viommu, open_accel: OpenAccel, far_accel: Accel, dma: DmaArena
) -> None:
    open_accel(0).start_in(viommu, domain=1)
    page = dma.random(PAGE)
    for unit in (viommu, other):
        unit.map_buffer(1, SOURCE, page, READ)

    viommu.unmap(domain=1, iova=SOURCE, nbytes=PAGE)

    assert far_accel.checksum(SOURCE, PAGE) == zlib.crc32(page.read())


@pytest.mark.parametrize("kind", [Attach, Detach])
@pytest.mark.parametrize(("unit", "number"), [(0, 2), (1, 0), (1, 1)])
def test_an_endpoint_of_the_other_unit_does_not_exist(
    open_viommu: OpenViommu, open_accel: OpenAccel, kind: Any, unit: int, number: int
) -> None:
    # D18, D26: unknown endpoint MUST be rejected NOENT
    viommu = open_viommu(unit)

    answer = viommu.send(kind(domain=1, endpoint=open_accel(number).endpoint))

    assert answer.status == Status.NOENT


def test_a_probe_of_the_other_units_endpoint_is_refused(viommu: Viommu, open_accel: OpenAccel) -> None:
    # D46
    answer = viommu.send(Probe(endpoint=open_accel(2).endpoint), nwritable=viommu.config.probe_size + 4)

    assert answer.status == Status.NOENT


def test_the_second_units_aperture_ends_at_32_bits(other: Viommu) -> None:
    assert other.config.input_range == (0, APERTURE_STOP)


def test_a_mapping_up_to_the_last_byte_of_32_bits_works(other: Viommu, far_accel: Accel, dma: DmaArena) -> None:
    page = dma.random(PAGE)
    other.map_buffer(1, APERTURE_STOP - PAGE, page, READ)

    assert far_accel.checksum(APERTURE_STOP - PAGE, PAGE) == zlib.crc32(page.read())


@pytest.mark.parametrize("iova", [APERTURE_STOP, APERTURE_STOP - PAGE, 1 << 38])
def test_a_mapping_past_32_bits_is_refused(other: Viommu, far_accel: Accel, iova: int) -> None:
    # D37: outside input_range fails
    with pytest.raises(RequestRefused) as caught:
        other.map(domain=1, iova=iova, gpa=0, nbytes=2 * PAGE)

    assert caught.value.status == Status.RANGE


def test_what_the_first_unit_may_map_the_second_may_not(
    viommu: Viommu, other: Viommu, open_accel: OpenAccel, far_accel: Accel, dma: DmaArena
) -> None:
    near, page = open_accel(0).start_in(viommu, domain=1), dma.random(PAGE)

    viommu.map_buffer(1, APERTURE_STOP, page, READ)
    with pytest.raises(RequestRefused):
        other.map_buffer(1, APERTURE_STOP, page, READ)

    assert near.checksum(APERTURE_STOP, PAGE) == zlib.crc32(page.read())
    with far_accel.refused(APERTURE_STOP, READ):
        far_accel.checksum(APERTURE_STOP, PAGE)


def test_a_fault_is_reported_to_the_unit_in_front_of_the_endpoint_alone(
    viommu: Viommu, other: Viommu, far_accel: Accel, host: Host
) -> None:
    with pytest.raises(TranslationFault):
        far_accel.checksum(SOURCE, PAGE)

    assert other.wait_fault().endpoint == far_accel.endpoint
    host.control("query-status")  # a fault on the wrong way has arrived by now
    assert viommu.faults() == []


def test_a_reset_of_one_unit_leaves_the_others_endpoints_running(
    viommu: Viommu, other: Viommu, far_accel: Accel, dma: DmaArena
) -> None:
    page = dma.random(PAGE)
    other.map_buffer(1, SOURCE, page, READ)

    viommu.start()

    assert far_accel.checksum(SOURCE, PAGE) == zlib.crc32(page.read())


def test_the_bypass_byte_is_each_units_own(viommu: Viommu, other: Viommu, open_accel: OpenAccel) -> None:
    near, far = open_accel(0).start(), open_accel(2).start()
    other.bypass = False
    try:
        seen = (viommu.bypass, other.bypass)
        near.nop()
        with pytest.raises(EngineStopped):
            far.nop()
    finally:
        other.bypass = True

    assert seen == (True, False)


def test_requests_to_both_units_go_on_side_by_side(
    viommu: Viommu, other: Viommu, open_accel: OpenAccel, far_accel: Accel, dma: DmaArena
) -> None:
    near, page = open_accel(0).start_in(viommu, domain=1), dma.random(PAGE)

    for number in range(20):
        for unit, accel in ((viommu, near), (other, far_accel)):
            iova = SOURCE + number * PAGE
            unit.map_buffer(1, iova, page, READ)
            assert accel.checksum(iova, PAGE) == zlib.crc32(page.read())
