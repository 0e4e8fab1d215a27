"""UNMAP: the specification's worked examples, its refusals, boundaries. virtio 1.4, "UNMAP request"."""

from __future__ import annotations

import pytest
from asking import (
    DOMAIN,
    EP,
    INPUT_STOP,
    OTHER_DOMAIN,
    OTHER_EP,
    PAGE,
    domains,
    is_mapped,
    map_pages,
    of,
    one_byte_set,
    status,
    unmap_pages,
)

from guest_tests.payload.direct import ATTACH_BYPASS, Status, Unmap, Viommu
from guest_tests.payload.host import Host

MAX = 2**64 - 1


Range = tuple[int, int]  # first page, number of pages

# D44: what is mapped, what is unmapped, the answer, and the first pages of the mappings that are left.
EXAMPLES: dict[str, tuple[list[Range], Range, Status, list[int]]] = {
    "1-nothing-mapped": ([], (0, 5), Status.OK, []),
    "2-exactly-the-mapping": ([(0, 10)], (0, 10), Status.OK, []),
    "3-two-adjacent-mappings": ([(0, 5), (5, 5)], (0, 10), Status.OK, []),
    "4-half-of-a-mapping": ([(0, 10)], (0, 5), Status.RANGE, [0]),
    "5-one-of-two-mappings": ([(0, 5), (5, 5)], (0, 5), Status.OK, [5]),
    "6-more-than-the-mapping": ([(0, 5)], (0, 10), Status.OK, []),
    "7-two-mappings-with-a-gap": ([(0, 5), (10, 5)], (0, 15), Status.OK, []),
}


@pytest.mark.parametrize(("mapped", "unmapped", "expected", "left"), of(EXAMPLES))
def test_d44_unmap_follows_the_worked_example(
    attached: Viommu, host: Host, mapped: list[Range], unmapped: Range, expected: Status, left: list[int]
) -> None:
    """D44: the seven examples of the specification, a page for each of its bytes."""
    for first, npages in mapped:
        attached.ask(map_pages(first, npages))

    answer = attached.send(unmap_pages(*unmapped))

    assert answer.status == expected
    assert domains(host) == {DOMAIN: ([EP], len(left))}
    assert [is_mapped(attached, first) for first, _ in mapped] == [first in left for first, _ in mapped]


SPLITS = {
    "all-but-the-first-page": (11, 3), "all-but-the-last-page": (10, 3), "the-middle": (11, 2),
    "over-the-start": (5, 6), "over-the-end": (13, 9), "one-page-short-on-both-sides": (11, 1),
}  # fmt: skip


@pytest.mark.parametrize(("first", "npages"), of(SPLITS))
def test_d42_unmap_that_would_split_a_mapping_is_refused(attached: Viommu, host: Host, first: int, npages: int) -> None:
    """D42: SHOULD answer RANGE and SHOULD NOT remove anything."""
    attached.ask(map_pages(10, 4))

    assert status(attached, unmap_pages(first, npages)) == Status.RANGE

    assert domains(host) == {DOMAIN: ([EP], 1)}
    assert all(is_mapped(attached, page) for page in range(10, 14))


BYTE_SPLITS = {
    "start-a-byte-late": (10 * PAGE + 1, 14 * PAGE - 1),
    "end-a-byte-early": (10 * PAGE, 14 * PAGE - 2),
    "first-byte-only": (10 * PAGE, 10 * PAGE),
    "last-byte-only": (14 * PAGE - 1, 14 * PAGE - 1),
    "up-to-the-first-byte": (0, 10 * PAGE),
    "from-the-last-byte": (14 * PAGE - 1, INPUT_STOP - 1),
}


@pytest.mark.parametrize(("start", "end"), of(BYTE_SPLITS))
def test_d42_unmap_that_is_off_by_one_byte_is_refused(attached: Viommu, start: int, end: int) -> None:
    """D42, a byte inside the mapping's ends."""
    attached.ask(map_pages(10, 4))

    assert status(attached, Unmap(domain=DOMAIN, virt_start=start, virt_end=end)) == Status.RANGE
    assert is_mapped(attached, 10)


@pytest.mark.parametrize(
    ("first", "npages"), of({"first-of-three": (11, 13), "last-of-three": (10, 13), "middle-of-three": (14, 3)})
)
def test_d42_unmap_that_would_split_one_of_several_removes_none(
    attached: Viommu, host: Host, first: int, npages: int
) -> None:
    """D42: nothing is removed, whichever mapping is the one."""
    for mapped in (10, 15, 20):
        attached.ask(map_pages(mapped, 4))

    assert status(attached, unmap_pages(first, npages)) == Status.RANGE
    assert domains(host) == {DOMAIN: ([EP], 3)}


def test_d39_unmap_with_any_of_its_reserved_bytes_set_removes_nothing(attached: Viommu) -> None:
    """D39: the device MAY answer INVAL; this one does, and does not perform it."""
    attached.ask(map_pages(10))
    request = unmap_pages(10)

    for reserved in one_byte_set(4):
        request.reserved = reserved
        assert status(attached, request) == Status.INVAL
    assert is_mapped(attached, 10)


@pytest.mark.parametrize("domain", [0, OTHER_DOMAIN, 2**32 - 1])
def test_d40_unmap_in_a_domain_that_is_not_there_is_refused(attached: Viommu, domain: int) -> None:
    """D40: SHOULD answer NOENT."""
    assert status(attached, unmap_pages(10, domain=domain)) == Status.NOENT


def test_d41_unmap_in_a_bypass_domain_is_refused(viommu: Viommu) -> None:
    """D41: SHOULD be rejected with INVAL."""
    viommu.attach(domain=DOMAIN, endpoint=EP, flags=ATTACH_BYPASS)

    assert status(viommu, unmap_pages(10)) == Status.INVAL


INVERTED = {
    "end-one-below-the-start": (10 * PAGE, 10 * PAGE - 1),
    "end-far-below": (14 * PAGE, 9 * PAGE - 1),
    "end-zero": (1, 0),
    "round-the-end-of-64-bits": (MAX, 0),
}


@pytest.mark.parametrize(("start", "end"), of(INVERTED))
def test_g3_unmap_whose_end_is_below_its_start_is_refused(attached: Viommu, start: int, end: int) -> None:
    """R16 forbids it; the answer is not specified: RANGE, nothing removed."""
    attached.ask(map_pages(10))

    assert status(attached, Unmap(domain=DOMAIN, virt_start=start, virt_end=end)) == Status.RANGE
    assert is_mapped(attached, 10)


ROOMY = {
    "a-byte-more-on-both-sides": (10 * PAGE - 1, 14 * PAGE),
    "the-input-range": (0, INPUT_STOP - 1),
    "past-the-input-range": (10 * PAGE, INPUT_STOP),
    "all-64-bits": (0, MAX),
}


@pytest.mark.parametrize(("start", "end"), of(ROOMY))
def test_d43_g16_unmap_may_spill_into_holes_and_beyond_the_input_range(attached: Viommu, start: int, end: int) -> None:
    """D43: holes are fine, whatever their ends. R21: a driver MAY do that."""
    attached.ask(map_pages(10, 4))

    assert status(attached, Unmap(domain=DOMAIN, virt_start=start, virt_end=end)) == Status.OK
    assert not is_mapped(attached, 10)


EMPTY = {
    "a-byte": (1, 1),
    "page-before": (9 * PAGE, 10 * PAGE - 1),
    "page-after": (14 * PAGE, 15 * PAGE - 1),
    "end": (MAX, MAX),
}


@pytest.mark.parametrize(("start", "end"), of(EMPTY))
def test_d43_g16_unmap_of_a_hole_removes_nothing_and_succeeds(attached: Viommu, start: int, end: int) -> None:
    """D44, the first example, beside a mapping."""
    attached.ask(map_pages(10, 4))

    assert status(attached, Unmap(domain=DOMAIN, virt_start=start, virt_end=end)) == Status.OK
    assert is_mapped(attached, 10)
    assert is_mapped(attached, 13)


def test_d42_what_was_unmapped_can_be_mapped_again_in_other_pieces(attached: Viommu, host: Host) -> None:
    """D42: afterwards the old ends mean nothing."""
    attached.ask(map_pages(10, 4))
    attached.ask(unmap_pages(10, 4))

    attached.ask(map_pages(9, 3))
    attached.ask(map_pages(12, 3))

    assert domains(host) == {DOMAIN: ([EP], 2)}


def test_d43_unmap_leaves_other_domains_alone(attached: Viommu) -> None:
    """D43: mappings of the domain it names."""
    attached.attach(domain=OTHER_DOMAIN, endpoint=OTHER_EP)
    attached.ask(map_pages(10))
    attached.ask(map_pages(10, domain=OTHER_DOMAIN))

    attached.ask(unmap_pages(10))

    assert not is_mapped(attached, 10)
    assert is_mapped(attached, 10, domain=OTHER_DOMAIN)
