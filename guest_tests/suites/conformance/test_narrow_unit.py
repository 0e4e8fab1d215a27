"""A unit of narrow ranges, a granule of 64 KiB, small limits, without MMIO, bypass off at boot."""

from __future__ import annotations

import pytest
from asking import (
    DOMAINS,
    GRANULE,
    HOLE,
    HOLED_EP,
    INPUT,
    MAX_MAPPINGS_PER_DOMAIN,
    MAX_REQUEST_NBYTES,
    MAX_U64,
    MSI,
    PLAIN_EP,
    PROBE_SIZE,
    map_span,
    status,
    unmap_span,
)

from guest_tests.payload.direct import (
    MMIO,
    READ,
    WRITE,
    Attach,
    Detach,
    Feature,
    Map,
    Probe,
    ResvMem,
    Status,
    Subtype,
    Unmap,
    Viommu,
)

FIRST, LAST = DOMAINS.start, DOMAINS.stop - 1
OUTSIDE_DOMAINS = [0, FIRST - 1, LAST + 1, 2**31, 2**32 - 1]


def mapping(start: int, stop: int, *, phys_start: int = 0, flags: int = READ | WRITE) -> Map:
    """MAP of [start, stop) in FIRST."""
    return map_span(start, stop, domain=FIRST, phys_start=phys_start, flags=flags)


def unmapping(start: int, stop: int) -> Unmap:
    """UNMAP of [start, stop) in FIRST."""
    return unmap_span(start, stop, domain=FIRST)


@pytest.fixture
def viommu(narrow: Viommu) -> Viommu:
    """The narrow unit is the one, here."""
    return narrow


@pytest.fixture
def attached(narrow_attached: Viommu) -> Viommu:
    """With PLAIN_EP in its first domain."""
    return narrow_attached


def test_d4_d5_the_configuration_shows_the_ranges(viommu: Viommu) -> None:
    """D4: the lowest bit of page_size_mask is the granule."""
    config = viommu.config

    assert config.granule == GRANULE
    assert config.input_range == (INPUT.start, INPUT.stop)
    assert config.domain_range == (FIRST, LAST + 1)
    assert config.probe_size == PROBE_SIZE
    assert config.bypass is False


def test_d32_mmio_is_not_offered_and_its_flag_is_refused(attached: Viommu) -> None:
    """D32: an unknown flag."""
    assert not attached.transport.offered() & Feature.MMIO
    assert status(attached, mapping(INPUT.start, INPUT.start + GRANULE, flags=READ | MMIO)) == Status.INVAL


@pytest.mark.parametrize("domain", [FIRST, FIRST + 1, LAST])
def test_d23_g1_attach_inside_the_domain_range_succeeds(viommu: Viommu, domain: int) -> None:
    """Both ends belong to it."""
    assert status(viommu, Attach(domain=domain, endpoint=HOLED_EP)) == Status.OK


@pytest.mark.parametrize("domain", [0, FIRST - 1, LAST + 1, 2**31, 2**32 - 1])
def test_g1_attach_outside_the_domain_range_is_refused(viommu: Viommu, domain: int) -> None:
    """R9 forbids it; the status is not specified: RANGE."""
    assert status(viommu, Attach(domain=domain, endpoint=HOLED_EP)) == Status.RANGE


def test_d18_g14_an_unknown_endpoint_is_reported_before_the_domain_range(viommu: Viommu) -> None:
    """D18 is a MUST; the range is not specified."""
    assert status(viommu, Attach(domain=FIRST - 1, endpoint=0)) == Status.NOENT


def test_g1_an_attach_outside_the_range_leaves_the_endpoint_where_it_was(attached: Viommu) -> None:
    """Refused means nothing happened."""
    assert status(attached, Attach(domain=LAST + 1, endpoint=PLAIN_EP)) == Status.RANGE

    assert status(attached, mapping(INPUT.start, INPUT.start + GRANULE)) == Status.OK


@pytest.mark.parametrize("start", [INPUT.start, INPUT.stop - GRANULE])
def test_d37_g2_map_at_the_ends_of_the_input_range_succeeds(attached: Viommu, start: int) -> None:
    """D37."""
    assert status(attached, mapping(start, start + GRANULE)) == Status.OK


OUTSIDE = {
    "from-0": (0, GRANULE), "before": (INPUT.start - GRANULE, INPUT.start),
    "over-the-start": (INPUT.start - GRANULE, INPUT.start + GRANULE),
    "over-the-end": (INPUT.stop - GRANULE, INPUT.stop + GRANULE), "after": (INPUT.stop, INPUT.stop + GRANULE),
    "around": (INPUT.start - GRANULE, INPUT.stop + GRANULE),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_d37_g2_map_outside_the_input_range_is_refused(attached: Viommu, name: str) -> None:
    """D37: it fails; the status is not specified: RANGE."""
    assert status(attached, mapping(*OUTSIDE[name])) == Status.RANGE


@pytest.mark.parametrize("off", [0x1000, 0x8000])
@pytest.mark.parametrize("what", ["virt_start", "virt_end", "phys_start"])
def test_d30_map_off_a_granule_of_64_kib_is_refused(attached: Viommu, what: str, off: int) -> None:
    """D30: RANGE, for what would do with one of 4 KiB."""
    request = mapping(INPUT.start, INPUT.start + 4 * GRANULE, phys_start=4 * GRANULE)
    setattr(request, what, getattr(request, what) + off)

    assert status(attached, request) == Status.RANGE


def test_d43_g16_unmap_may_name_all_of_64_bits(attached: Viommu) -> None:
    """R21: what lies outside the input range is a hole like any other."""
    attached.ask(mapping(INPUT.start, INPUT.start + GRANULE))

    assert status(attached, unmapping(0, MAX_U64 + 1)) == Status.OK
    assert status(attached, mapping(INPUT.start, INPUT.start + GRANULE)) == Status.OK


# Limits


def test_g8_one_domain_more_than_the_limit_is_refused(attached: Viommu) -> None:
    """NOMEM is the status for what is used up; limits.max_domains is 1 here."""
    assert status(attached, Attach(domain=LAST, endpoint=HOLED_EP)) == Status.NOMEM
    assert status(attached, Attach(domain=FIRST, endpoint=HOLED_EP)) == Status.OK


def test_d29_g8_a_domain_that_ends_makes_room_for_another(attached: Viommu) -> None:
    """D29."""
    attached.detach(domain=FIRST, endpoint=PLAIN_EP)

    assert status(attached, Attach(domain=LAST, endpoint=HOLED_EP)) == Status.OK


def test_d21_g8_a_domain_that_a_mover_leaves_empty_does_not_count(attached: Viommu) -> None:
    """D21: DETACH comes before ATTACH."""
    assert status(attached, Attach(domain=LAST, endpoint=PLAIN_EP)) == Status.OK


def test_d21_g8_a_mover_that_leaves_somebody_behind_needs_room(attached: Viommu) -> None:
    """D21, where the old domain goes on; the mover stays in it."""
    attached.attach(domain=FIRST, endpoint=HOLED_EP)

    assert status(attached, Attach(domain=LAST, endpoint=HOLED_EP)) == Status.NOMEM
    assert status(attached, Detach(domain=FIRST, endpoint=HOLED_EP)) == Status.OK


@pytest.fixture
def full(attached: Viommu) -> Viommu:
    """FIRST has as many mappings as it may."""
    for number in range(MAX_MAPPINGS_PER_DOMAIN):
        attached.ask(granule(number))
    return attached


def granule(number: int) -> Map:
    """MAP of one granule, the first one being 0."""
    return mapping(INPUT.start + number * GRANULE, INPUT.start + (number + 1) * GRANULE)


def test_g8_one_mapping_more_than_the_domain_may_have_is_refused(full: Viommu) -> None:
    """NOMEM; limits.max_mappings_per_domain is 4 here."""
    assert status(full, granule(MAX_MAPPINGS_PER_DOMAIN)) == Status.NOMEM


def test_g15_a_full_domain_reports_an_overlap_as_one(full: Viommu) -> None:
    """D31 before the limit."""
    assert status(full, granule(0)) == Status.INVAL


def test_g8_unmap_makes_room_in_a_full_domain(full: Viommu) -> None:
    """As many as were removed."""
    full.ask(unmapping(INPUT.start, INPUT.start + 2 * GRANULE))

    assert [status(full, granule(number)) for number in (10, 11, 12)] == [Status.OK, Status.OK, Status.NOMEM]


def test_d29_g8_the_end_of_a_full_domain_makes_room(full: Viommu) -> None:
    """D29: its mappings end with it."""
    full.detach(domain=FIRST, endpoint=PLAIN_EP)
    full.attach(domain=FIRST, endpoint=PLAIN_EP)

    assert [status(full, granule(number)) for number in range(5)] == [*[Status.OK] * 4, Status.NOMEM]


@pytest.mark.parametrize(
    ("nbytes", "expected"), [(MAX_REQUEST_NBYTES, Status.OK), (MAX_REQUEST_NBYTES + 1, Status.INVAL)]
)
def test_g24_a_request_may_have_as_many_bytes_as_the_limit_says(viommu: Viommu, nbytes: int, expected: Status) -> None:
    """limits.max_request_nbytes is 160 here."""
    data = Attach(domain=FIRST, endpoint=HOLED_EP).pack().ljust(nbytes, b"\0")

    assert status(viommu, data) == expected


# Reserved regions


def test_d49_d50_d52_probe_lists_both_regions_back_to_back(viommu: Viommu) -> None:
    """D50: the next property starts exactly length + 4 after this one. D54, D55: one MSI region, none overlaps."""
    answer = viommu.ask(Probe(endpoint=HOLED_EP), nwritable=PROBE_SIZE + 4)

    assert answer.written[0:4] == answer.written[24:28] == b"\x01\x00\x14\x00"
    assert answer.written[48:PROBE_SIZE] == bytes(PROBE_SIZE - 48)  # D52
    assert sorted(viommu.probe(HOLED_EP), key=lambda region: getattr(region, "start", 0)) == [
        ResvMem(Subtype.RESERVED, HOLE.start, HOLE.stop),
        ResvMem(Subtype.MSI, MSI.start, MSI.stop),
    ]


def test_d54_d55_probe_lists_the_regions_of_one_endpoint_only(viommu: Viommu) -> None:
    """The other endpoint has none of its own."""
    assert viommu.probe(PLAIN_EP) == [ResvMem(Subtype.MSI, MSI.start, MSI.stop)]


@pytest.mark.parametrize(("nwritable", "expected"), [(PROBE_SIZE + 3, Status.INVAL), (PROBE_SIZE + 4, Status.OK)])
def test_d51_probe_size_is_the_size_of_the_buffer(viommu: Viommu, nwritable: int, expected: Status) -> None:
    """D51, R24."""
    assert viommu.send(Probe(endpoint=HOLED_EP), nwritable=nwritable).status == expected


def over_the_reserved_region(start: int = HOLE.start, stop: int = HOLE.stop) -> Map:
    """MAP of what is reserved for HOLED_EP."""
    return mapping(start, stop)


def test_d38_g4_map_over_a_region_reserved_for_the_endpoint_is_refused(viommu: Viommu) -> None:
    """D38: SHOULD be rejected; here with INVAL."""
    viommu.attach(domain=FIRST, endpoint=HOLED_EP)

    assert status(viommu, over_the_reserved_region()) == Status.INVAL
    assert status(viommu, mapping(HOLE.start - GRANULE, HOLE.stop + GRANULE)) == Status.INVAL
    assert status(viommu, mapping(HOLE.start - GRANULE, HOLE.start)) == Status.OK
    assert status(viommu, mapping(HOLE.stop, HOLE.stop + GRANULE)) == Status.OK


def test_d38_map_over_a_region_reserved_for_an_endpoint_elsewhere_succeeds(attached: Viommu) -> None:
    """D38: the regions of the domain's endpoints count."""
    assert status(attached, over_the_reserved_region()) == Status.OK


def test_d38_a_region_counts_from_the_attach_of_its_endpoint_to_its_detach(attached: Viommu) -> None:
    """D38, as endpoints come and go."""
    attached.attach(domain=FIRST, endpoint=HOLED_EP)
    assert status(attached, over_the_reserved_region()) == Status.INVAL

    attached.detach(domain=FIRST, endpoint=HOLED_EP)

    assert status(attached, over_the_reserved_region()) == Status.OK


def test_d22_attach_to_a_domain_whose_mappings_hide_a_reserved_region_is_refused(attached: Viommu) -> None:
    """D22: properties that do not go with the domain SHOULD be rejected with UNSUPP."""
    attached.ask(over_the_reserved_region())

    assert status(attached, Attach(domain=FIRST, endpoint=HOLED_EP)) == Status.UNSUPP

    attached.ask(unmapping(HOLE.start, HOLE.stop))
    assert status(attached, Attach(domain=FIRST, endpoint=HOLED_EP)) == Status.OK
