"""MAP: what it checks, boundaries, and what a refused one leaves behind. virtio 1.4, "MAP request"."""

from __future__ import annotations

import pytest
from asking import (
    DOMAIN,
    EP,
    GPA,
    INPUT_STOP,
    MSI_START,
    MSI_STOP,
    NO_RAM,
    OTHER_DOMAIN,
    OTHER_EP,
    PAGE,
    domains,
    is_mapped,
    map_pages,
    of,
    status,
    statuses,
)

from guest_tests.payload.direct import ATTACH_BYPASS, MMIO, READ, WRITE, Feature, Map, Status, Viommu
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

MAX = 2**64 - 1
LAST = MAX - PAGE + 1  # the last page of 64 bits


def mapping(start: int, end: int, phys_start: int = GPA, flags: int = 3) -> Map:
    """MAP in DOMAIN of [start, end], the end included as on the wire."""
    return Map(domain=DOMAIN, virt_start=start, virt_end=end, phys_start=phys_start, flags=flags)


def test_d10_d37_map_makes_one_mapping(attached: Viommu, host: Host) -> None:
    """D10, D37."""
    assert status(attached, map_pages(16, 4)) == Status.OK
    assert domains(host) == {DOMAIN: ([EP], 1)}
    assert [is_mapped(attached, page) for page in range(15, 21)] == [False, True, True, True, True, False]


MISALIGNED = {
    f"{name}-by-{off}": mapping(0x10000 + starts * off, 0x11FFF + ends * off, GPA + physes * off)
    for name, starts, ends, physes in (
        ("virt_start", 1, 0, 0), ("virt_end", 0, 1, 0), ("phys_start", 0, 0, 1), ("all-three", 1, 1, 1),
    )
    for off in (1, 4095)
}  # fmt: skip


@pytest.mark.parametrize("request_", of(MISALIGNED))
def test_d30_map_off_the_granule_is_refused(attached: Viommu, host: Host, request_: Map) -> None:
    """D30: virt_start, phys_start and virt_end + 1 not multiples of the granule SHOULD be rejected with RANGE."""
    assert status(attached, request_) == Status.RANGE
    assert domains(host) == {DOMAIN: ([EP], 0)}


OVERLAPS = {
    "the-same": (10, 4), "first-page": (10, 1), "last-page": (13, 1), "inside": (11, 2), "around": (9, 6),
    "over-the-start": (9, 2), "over-the-end": (13, 2), "from-the-start": (10, 5), "up-to-the-end": (9, 5),
}  # fmt: skip


@pytest.mark.parametrize(("first", "npages"), of(OVERLAPS))
def test_d31_map_over_a_mapping_is_refused(attached: Viommu, host: Host, first: int, npages: int) -> None:
    """D31: an overlap SHOULD be rejected with INVAL."""
    attached.ask(map_pages(10, 4))

    assert status(attached, map_pages(first, npages)) == Status.INVAL
    assert domains(host) == {DOMAIN: ([EP], 1)}


@pytest.mark.parametrize("first", of({"before": 9, "after": 14}))
def test_d31_map_beside_a_mapping_is_no_overlap(attached: Viommu, host: Host, first: int) -> None:
    """D31: virt_end is inclusive, so ranges that touch do not overlap."""
    attached.ask(map_pages(10, 4))

    assert status(attached, map_pages(first)) == Status.OK
    assert domains(host) == {DOMAIN: ([EP], 2)}


def test_d32_map_with_any_unknown_flag_is_refused(attached: Viommu) -> None:
    """D32: the device MUST reject a flag it does not know, with INVAL."""
    requests = {f"bit {bit}": map_pages(16, flags=READ | 1 << bit) for bit in range(3, 32)}

    assert statuses(attached, requests) == dict.fromkeys(requests, Status.INVAL)
    assert not is_mapped(attached, 16)


FLAGS = {"none": 0, "read": READ, "write": WRITE, "read-write": READ | WRITE, "mmio": READ | WRITE | MMIO}


@pytest.mark.parametrize("flags", of(FLAGS))
def test_d32_g5_map_takes_every_combination_of_known_flags(attached: Viommu, flags: int) -> None:
    """D32. Without READ and WRITE the specification is silent: a mapping no access goes through."""
    assert status(attached, map_pages(16, flags=flags)) == Status.OK


def test_g6_mmio_flag_is_unknown_unless_mmio_was_negotiated(open_viommu: OpenViommu) -> None:
    """D32: the flag belongs to the feature MMIO."""
    viommu = open_viommu(without=Feature.MMIO)
    viommu.attach(domain=DOMAIN, endpoint=EP)

    assert status(viommu, map_pages(16, flags=READ | MMIO)) == Status.INVAL
    assert status(viommu, map_pages(16, flags=READ)) == Status.OK


@pytest.mark.parametrize("domain", [0, OTHER_DOMAIN, 2**32 - 1])
def test_d33_map_in_a_domain_that_is_not_there_is_refused(attached: Viommu, domain: int) -> None:
    """D33: an unknown domain SHOULD be rejected with NOENT."""
    assert status(attached, map_pages(16, domain=domain)) == Status.NOENT


def test_d34_map_in_a_bypass_domain_is_refused(viommu: Viommu, host: Host) -> None:
    """D34: SHOULD be rejected with INVAL."""
    viommu.attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS)

    assert status(viommu, map_pages(16)) == Status.INVAL
    assert domains(host) == {DOMAIN: ([EP], 0)}


INVERTED = {
    "end-one-below-the-start": (0x10000, 0xFFFF),
    "end-a-page-below": (0x10000, 0xEFFF),
    "end-zero": (0x10000, 0),
    "round-the-end-of-64-bits": (LAST, PAGE - 1),
    "one-byte": (0x10000, 0x10000),
}


@pytest.mark.parametrize(("start", "end"), of(INVERTED))
def test_d30_g3_map_of_no_whole_page_is_refused(attached: Viommu, host: Host, start: int, end: int) -> None:
    """R16: virt_end MUST be greater than virt_start. What the device does is not specified: RANGE."""
    assert status(attached, mapping(start, end)) == Status.RANGE
    assert domains(host) == {DOMAIN: ([EP], 0)}


INSIDE = {
    "first-page": (0, PAGE - 1),
    "last-page": (INPUT_STOP - PAGE, INPUT_STOP - 1),
    "below-the-msi-region": (0, MSI_START - 1),
    "above-the-msi-region": (MSI_STOP, INPUT_STOP - 1),
}


@pytest.mark.parametrize(("start", "end"), of(INSIDE))
def test_d37_d38_map_up_to_the_ends_of_what_is_free_succeeds(attached: Viommu, start: int, end: int) -> None:
    """D37, D38: the ends themselves belong to it."""
    assert status(attached, mapping(start, end, phys_start=0)) == Status.OK


OUTSIDE = {
    "page-after": (INPUT_STOP, INPUT_STOP + PAGE - 1),
    "over-the-end": (INPUT_STOP - PAGE, INPUT_STOP + PAGE - 1),
    "last-page-of-64-bits": (LAST, MAX),
    "everything-from-above-the-msi-region": (MSI_STOP, MAX),
    "all-64-bits": (0, MAX),
    "high-bit": (1 << 63, (1 << 63) + PAGE - 1),
}


@pytest.mark.parametrize(("start", "end"), of(OUTSIDE))
def test_d37_g2_map_outside_the_input_range_is_refused(attached: Viommu, host: Host, start: int, end: int) -> None:
    """D37: it fails; with which status is not specified: RANGE."""
    assert status(attached, mapping(start, end)) == Status.RANGE
    assert domains(host) == {DOMAIN: ([EP], 0)}


def test_g2_input_range_holds_for_a_driver_that_did_not_accept_input_range(open_viommu: OpenViommu) -> None:
    """The device has no more address bits than it has (engine.py)."""
    viommu = open_viommu(without=Feature.INPUT_RANGE)
    viommu.attach(domain=DOMAIN, endpoint=EP)

    assert status(viommu, mapping(INPUT_STOP, INPUT_STOP + PAGE - 1)) == Status.RANGE


TARGETS = {
    "hole": NO_RAM,
    "over-the-end-of-ram": (256 << 20) - PAGE,
    "msi-doorbell": MSI_START,
    "far": 1 << 52,
    "end": LAST - PAGE,
}


@pytest.mark.parametrize("phys_start", of(TARGETS))
def test_g11_map_to_an_address_without_ram_succeeds(attached: Viommu, phys_start: int) -> None:
    """The specification asks for no check: it is made at access, since drivers map BARs and whole apertures."""
    assert status(attached, map_pages(16, 2, phys_start=phys_start)) == Status.OK


def test_g2_map_whose_target_leaves_64_bits_is_refused(attached: Viommu) -> None:
    """D37: VA - virt_start + phys_start must be an address."""
    assert status(attached, map_pages(16, 2, phys_start=LAST)) == Status.RANGE
    assert status(attached, map_pages(16, 1, phys_start=LAST)) == Status.OK


RESERVED = {
    "the-region": (MSI_START, MSI_STOP - 1),
    "its-first-page": (MSI_START, MSI_START + PAGE - 1),
    "its-last-page": (MSI_STOP - PAGE, MSI_STOP - 1),
    "over-its-start": (MSI_START - PAGE, MSI_START + PAGE - 1),
    "over-its-end": (MSI_STOP - PAGE, MSI_STOP + PAGE - 1),
    "around": (MSI_START - PAGE, MSI_STOP + PAGE - 1),
    "the-input-range": (0, INPUT_STOP - 1),
}


@pytest.mark.parametrize(("start", "end"), of(RESERVED))
def test_d38_g4_map_over_a_reserved_region_is_refused(attached: Viommu, host: Host, start: int, end: int) -> None:
    """D38: SHOULD be rejected; the status is not specified: INVAL."""
    assert status(attached, mapping(start, end)) == Status.INVAL
    assert domains(host) == {DOMAIN: ([EP], 0)}


@pytest.mark.parametrize("start", of({"before": MSI_START - PAGE, "after": MSI_STOP}))
def test_d38_map_beside_a_reserved_region_succeeds(attached: Viommu, start: int) -> None:
    """D38: only an overlap is refused."""
    assert status(attached, mapping(start, start + PAGE - 1)) == Status.OK


ORDER = {
    "flags-before-domain": (map_pages(16, domain=77, flags=8), Status.INVAL),
    "domain-before-range": (map_pages(16, domain=77, phys_start=1), Status.NOENT),
    "bypass-before-range": (map_pages(16, domain=OTHER_DOMAIN, phys_start=1), Status.INVAL),
    "range-before-reserved": (mapping(MSI_START, MSI_START), Status.RANGE),
    "range-before-overlap": (mapping(10 * PAGE, 11 * PAGE), Status.RANGE),
}


@pytest.mark.parametrize(("request_", "expected"), of(ORDER))
def test_g15_map_reports_the_first_of_two_problems(attached: Viommu, request_: Map, expected: Status) -> None:
    """The order is this device's own (engine.py): flags, domain, bypass, range, regions, overlap."""
    attached.attach(domain=OTHER_DOMAIN, endpoint=OTHER_EP, flags=ATTACH_BYPASS)
    attached.ask(map_pages(10))

    assert status(attached, request_) == expected


def test_d37_domains_have_address_spaces_of_their_own(attached: Viommu, host: Host) -> None:
    """D37: a mapping is one of its domain alone."""
    attached.attach(domain=OTHER_DOMAIN, endpoint=OTHER_EP)

    attached.ask(map_pages(16))

    assert not is_mapped(attached, 16, domain=OTHER_DOMAIN)
    assert domains(host) == {DOMAIN: ([EP], 1), OTHER_DOMAIN: ([OTHER_EP], 0)}


def test_d43_two_thousand_single_pages_are_mapped_and_unmapped_by_one_request(attached: Viommu, host: Host) -> None:
    """D43: one UNMAP removes all that lies in it."""
    answers = attached.submit([map_pages(2 * number) for number in range(2000)])

    assert {answer.status for answer in answers} == {Status.OK}
    assert domains(host) == {DOMAIN: ([EP], 2000)}
    attached.unmap(domain=DOMAIN, iova=0, nbytes=INPUT_STOP)
    assert domains(host) == {DOMAIN: ([EP], 0)}
