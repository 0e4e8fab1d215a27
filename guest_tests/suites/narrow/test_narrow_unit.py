"""A unit of narrow ranges, a granule of 64 KiB, small limits, without MMIO, bypass off at boot."""

from __future__ import annotations

import pytest
from narrowness import (
    EP,
    FIRST_DOMAIN,
    GRANULE,
    INPUT_START,
    INPUT_STOP,
    LAST_DOMAIN,
    MAX_MAPPINGS_PER_DOMAIN,
    MAX_REQUEST_NBYTES,
    MAX_U64,
    MSI_START,
    MSI_STOP,
    OTHER_EP,
    PROBE_SIZE,
    RESERVED_START,
    RESERVED_STOP,
    mapping,
    status,
    unmapping,
)

from guest_tests.payload.direct import MMIO, READ, Attach, Detach, Feature, Map, Probe, ResvMem, Status, Subtype, Viommu


@pytest.fixture
def attached(viommu: Viommu) -> Viommu:
    """The unit, with OTHER_EP in FIRST_DOMAIN, where only the MSI region is reserved."""
    viommu.attach(domain=FIRST_DOMAIN, endpoint=OTHER_EP)
    return viommu


def test_the_configuration_shows_the_ranges(viommu: Viommu) -> None:
    """D4: the lowest bit of page_size_mask is the granule."""
    config = viommu.config

    assert config.granule == GRANULE
    assert config.input_range == (INPUT_START, INPUT_STOP)
    assert config.domain_range == (FIRST_DOMAIN, LAST_DOMAIN + 1)
    assert config.probe_size == PROBE_SIZE
    assert config.bypass is False


def test_mmio_is_not_offered_and_its_flag_is_refused(attached: Viommu) -> None:
    """D32: an unknown flag."""
    assert not attached.transport.offered() & Feature.MMIO
    assert status(attached, mapping(INPUT_START, INPUT_START + GRANULE, flags=READ | MMIO)) == Status.INVAL


@pytest.mark.parametrize("domain", [FIRST_DOMAIN, FIRST_DOMAIN + 1, LAST_DOMAIN])
def test_attach_inside_the_domain_range_succeeds(viommu: Viommu, domain: int) -> None:
    """Both ends belong to it."""
    assert status(viommu, Attach(domain=domain, endpoint=EP)) == Status.OK


@pytest.mark.parametrize("domain", [0, FIRST_DOMAIN - 1, LAST_DOMAIN + 1, 2**31, 2**32 - 1])
def test_attach_outside_the_domain_range_is_refused(viommu: Viommu, domain: int) -> None:
    """R9 forbids it; the status is not specified: RANGE."""
    assert status(viommu, Attach(domain=domain, endpoint=EP)) == Status.RANGE


def test_an_unknown_endpoint_is_reported_before_the_domain_range(viommu: Viommu) -> None:
    """D18 is a MUST; the range is not specified."""
    assert status(viommu, Attach(domain=FIRST_DOMAIN - 1, endpoint=0)) == Status.NOENT


def test_an_attach_outside_the_range_leaves_the_endpoint_where_it_was(attached: Viommu) -> None:
    """Refused means nothing happened."""
    assert status(attached, Attach(domain=LAST_DOMAIN + 1, endpoint=OTHER_EP)) == Status.RANGE

    assert status(attached, mapping(INPUT_START, INPUT_START + GRANULE)) == Status.OK


@pytest.mark.parametrize("start", [INPUT_START, INPUT_STOP - GRANULE])
def test_map_at_the_ends_of_the_input_range_succeeds(attached: Viommu, start: int) -> None:
    """D37."""
    assert status(attached, mapping(start, start + GRANULE)) == Status.OK


OUTSIDE = {
    "from-0": (0, GRANULE), "before": (INPUT_START - GRANULE, INPUT_START),
    "over-the-start": (INPUT_START - GRANULE, INPUT_START + GRANULE),
    "over-the-end": (INPUT_STOP - GRANULE, INPUT_STOP + GRANULE), "after": (INPUT_STOP, INPUT_STOP + GRANULE),
    "around": (INPUT_START - GRANULE, INPUT_STOP + GRANULE),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_map_outside_the_input_range_is_refused(attached: Viommu, name: str) -> None:
    """D37: it fails; the status is not specified: RANGE."""
    assert status(attached, mapping(*OUTSIDE[name])) == Status.RANGE


@pytest.mark.parametrize("off", [0x1000, 0x8000])
@pytest.mark.parametrize("what", ["virt_start", "virt_end", "phys_start"])
def test_map_off_a_granule_of_64_kib_is_refused(attached: Viommu, what: str, off: int) -> None:
    """D30: RANGE, for what would do with one of 4 KiB."""
    request = mapping(INPUT_START, INPUT_START + 4 * GRANULE, phys_start=4 * GRANULE)
    setattr(request, what, getattr(request, what) + off)

    assert status(attached, request) == Status.RANGE


def test_unmap_may_name_all_of_64_bits(attached: Viommu) -> None:
    """R21: what lies outside the input range is a hole like any other."""
    attached.ask(mapping(INPUT_START, INPUT_START + GRANULE))

    assert status(attached, unmapping(0, MAX_U64 + 1)) == Status.OK
    assert status(attached, mapping(INPUT_START, INPUT_START + GRANULE)) == Status.OK


# Limits


def test_one_domain_more_than_the_limit_is_refused(attached: Viommu) -> None:
    """NOMEM is the status for what is used up; limits.max_domains is 1 here."""
    assert status(attached, Attach(domain=LAST_DOMAIN, endpoint=EP)) == Status.NOMEM
    assert status(attached, Attach(domain=FIRST_DOMAIN, endpoint=EP)) == Status.OK


def test_a_domain_that_ends_makes_room_for_another(attached: Viommu) -> None:
    """D29."""
    attached.detach(domain=FIRST_DOMAIN, endpoint=OTHER_EP)

    assert status(attached, Attach(domain=LAST_DOMAIN, endpoint=EP)) == Status.OK


def test_a_domain_that_a_mover_leaves_empty_does_not_count(attached: Viommu) -> None:
    """D21: DETACH comes before ATTACH."""
    assert status(attached, Attach(domain=LAST_DOMAIN, endpoint=OTHER_EP)) == Status.OK


def test_a_mover_that_leaves_somebody_behind_needs_room(attached: Viommu) -> None:
    """D21, where the old domain goes on; the mover stays in it."""
    attached.attach(domain=FIRST_DOMAIN, endpoint=EP)

    assert status(attached, Attach(domain=LAST_DOMAIN, endpoint=EP)) == Status.NOMEM
    assert status(attached, Detach(domain=FIRST_DOMAIN, endpoint=EP)) == Status.OK


@pytest.fixture
def full(attached: Viommu) -> Viommu:
    """FIRST_DOMAIN has as many mappings as it may."""
    for number in range(MAX_MAPPINGS_PER_DOMAIN):
        attached.ask(granule(number))
    return attached


def granule(number: int) -> Map:
    """MAP of one granule, the first one being 0."""
    return mapping(INPUT_START + number * GRANULE, INPUT_START + (number + 1) * GRANULE)


def test_one_mapping_more_than_the_domain_may_have_is_refused(full: Viommu) -> None:
    """NOMEM; limits.max_mappings_per_domain is 4 here."""
    assert status(full, granule(MAX_MAPPINGS_PER_DOMAIN)) == Status.NOMEM


def test_a_full_domain_reports_an_overlap_as_one(full: Viommu) -> None:
    """D31 before the limit."""
    assert status(full, granule(0)) == Status.INVAL


def test_unmap_makes_room_in_a_full_domain(full: Viommu) -> None:
    """As many as were removed."""
    full.ask(unmapping(INPUT_START, INPUT_START + 2 * GRANULE))

    assert [status(full, granule(number)) for number in (10, 11, 12)] == [Status.OK, Status.OK, Status.NOMEM]


def test_the_end_of_a_full_domain_makes_room(full: Viommu) -> None:
    """D29: its mappings end with it."""
    full.detach(domain=FIRST_DOMAIN, endpoint=OTHER_EP)
    full.attach(domain=FIRST_DOMAIN, endpoint=OTHER_EP)

    assert [status(full, granule(number)) for number in range(5)] == [*[Status.OK] * 4, Status.NOMEM]


@pytest.mark.parametrize(
    ("nbytes", "expected"), [(MAX_REQUEST_NBYTES, Status.OK), (MAX_REQUEST_NBYTES + 1, Status.INVAL)]
)
def test_a_request_may_have_as_many_bytes_as_the_limit_says(viommu: Viommu, nbytes: int, expected: Status) -> None:
    """limits.max_request_nbytes is 160 here."""
    data = Attach(domain=FIRST_DOMAIN, endpoint=EP).pack().ljust(nbytes, b"\0")

    assert status(viommu, data) == expected


# Reserved regions


def test_probe_lists_both_regions_back_to_back(viommu: Viommu) -> None:
    """D50: the next property starts exactly length + 4 after this one. D54, D55: one MSI region, none overlaps."""
    answer = viommu.ask(Probe(endpoint=EP), nwritable=PROBE_SIZE + 4)

    assert answer.written[0:4] == answer.written[24:28] == b"\x01\x00\x14\x00"
    assert answer.written[48:PROBE_SIZE] == bytes(PROBE_SIZE - 48)  # D52
    assert sorted(viommu.probe(EP), key=lambda region: getattr(region, "start", 0)) == [
        ResvMem(Subtype.RESERVED, RESERVED_START, RESERVED_STOP),
        ResvMem(Subtype.MSI, MSI_START, MSI_STOP),
    ]


def test_probe_lists_the_regions_of_one_endpoint_only(viommu: Viommu) -> None:
    """The other endpoint has none of its own."""
    assert viommu.probe(OTHER_EP) == [ResvMem(Subtype.MSI, MSI_START, MSI_STOP)]


@pytest.mark.parametrize(("nwritable", "expected"), [(PROBE_SIZE + 3, Status.INVAL), (PROBE_SIZE + 4, Status.OK)])
def test_probe_size_is_the_size_of_the_buffer(viommu: Viommu, nwritable: int, expected: Status) -> None:
    """D51, R24."""
    assert viommu.send(Probe(endpoint=EP), nwritable=nwritable).status == expected


def over_the_reserved_region(start: int = RESERVED_START, stop: int = RESERVED_STOP) -> Map:
    """MAP of what is reserved for EP."""
    return mapping(start, stop)


def test_map_over_a_region_reserved_for_the_endpoint_is_refused(viommu: Viommu) -> None:
    """D38: SHOULD be rejected; here with INVAL."""
    viommu.attach(domain=FIRST_DOMAIN, endpoint=EP)

    assert status(viommu, over_the_reserved_region()) == Status.INVAL
    assert status(viommu, mapping(RESERVED_START - GRANULE, RESERVED_STOP + GRANULE)) == Status.INVAL
    assert status(viommu, mapping(RESERVED_START - GRANULE, RESERVED_START)) == Status.OK
    assert status(viommu, mapping(RESERVED_STOP, RESERVED_STOP + GRANULE)) == Status.OK


def test_map_over_a_region_reserved_for_an_endpoint_elsewhere_succeeds(attached: Viommu) -> None:
    """D38: the regions of the domain's endpoints count."""
    assert status(attached, over_the_reserved_region()) == Status.OK


def test_a_region_counts_from_the_attach_of_its_endpoint_to_its_detach(attached: Viommu) -> None:
    """D38, as endpoints come and go."""
    attached.attach(domain=FIRST_DOMAIN, endpoint=EP)
    assert status(attached, over_the_reserved_region()) == Status.INVAL

    attached.detach(domain=FIRST_DOMAIN, endpoint=EP)

    assert status(attached, over_the_reserved_region()) == Status.OK


def test_attach_to_a_domain_whose_mappings_hide_a_reserved_region_is_refused(attached: Viommu) -> None:
    """D22: properties that do not go with the domain SHOULD be rejected with UNSUPP."""
    attached.ask(over_the_reserved_region())

    assert status(attached, Attach(domain=FIRST_DOMAIN, endpoint=EP)) == Status.UNSUPP

    attached.ask(unmapping(RESERVED_START, RESERVED_STOP))
    assert status(attached, Attach(domain=FIRST_DOMAIN, endpoint=EP)) == Status.OK
