"""A unit with a granule of one byte and all of 64 bits, without PROBE and BYPASS_CONFIG, for five mappings at most."""

from __future__ import annotations

from typing import Any

import pytest
from asking import BYTES_EP, BYTES_MAX_MAPPINGS, DOMAIN, MAX_U64, is_strict, map_span, status, unmap_span

from guest_tests.payload.direct import (
    ATTACH_BYPASS,
    UNWRITTEN,
    Attach,
    Feature,
    FeaturesRefused,
    Map,
    Probe,
    Status,
    Unmap,
    Viommu,
)
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host


def mapping(start: int, stop: int, phys_start: int = 0) -> Map:
    """MAP of [start, stop) in DOMAIN."""
    return map_span(start, stop, domain=DOMAIN, phys_start=phys_start)


def unmapping(start: int, stop: int) -> Unmap:
    """UNMAP of [start, stop) in DOMAIN."""
    return unmap_span(start, stop, domain=DOMAIN)


@pytest.fixture
def unit(of_bytes: Viommu) -> Viommu:
    """The unit of single bytes."""
    return of_bytes


@pytest.fixture
def attached(bytes_attached: Viommu) -> Viommu:
    """With its endpoint in DOMAIN."""
    return bytes_attached


def test_d4_the_configuration_shows_one_byte_and_64_bits(unit: Viommu) -> None:
    """Both ends are inclusive on the wire, so that 64 bits fit."""
    assert unit.config.page_size_mask == MAX_U64
    assert unit.config.input_range == (0, MAX_U64 + 1)


@pytest.mark.parametrize(
    "feature", [Feature.BYPASS, Feature.PROBE, Feature.BYPASS_CONFIG], ids=["bypass", "probe", "bypass-config"]
)
def test_d2_d3_a_feature_that_was_taken_away_is_not_offered(unit: Viommu, feature: Feature) -> None:
    """D3: neither of the two bypass features."""
    assert not unit.transport.offered() & feature


@pytest.mark.parametrize("feature", [Feature.PROBE, Feature.BYPASS_CONFIG], ids=["probe", "bypass-config"])
def test_a_feature_that_was_taken_away_cannot_be_accepted(
    unit: Viommu, open_viommu: OpenViommu, host: Host, machine: dict[str, Any], feature: Feature
) -> None:
    """Refused by us; by vhost-user QEMU drops it before we see it."""
    wanted = unit.features | feature
    if machine["attach"] != "vhost-user":
        with pytest.raises(FeaturesRefused):
            open_viommu(1, features=wanted)
    else:
        open_viommu(1, features=wanted)
        state = next(one for one in host.control("query-iommu") if one["unit"] == "bytes")
        assert not state["features"]["accepted"] & feature


def test_d47_probe_is_an_unknown_type_where_it_is_not_offered(unit: Viommu, machine: dict[str, Any]) -> None:
    """SHOULD NOT write, SHOULD return used length 0; `compat` answers as to any unknown type, in the first bytes."""
    assert unit.config.probe_size == 0

    for nwritable in (4, 516):
        answer = unit.send(Probe(endpoint=BYTES_EP), nwritable=nwritable)

        written = b"" if is_strict(machine) else bytes([Status.UNSUPP, 0, 0, 0])
        assert answer.used_nbytes == len(written)
        assert answer.written == written.ljust(nwritable, bytes([UNWRITTEN]))


@pytest.mark.parametrize("value", [0, 1, 0xFF])
def test_g18_bypass_is_0_and_cannot_be_written_where_it_is_not_offered(unit: Viommu, value: int) -> None:
    """R2."""
    unit.bypass = value

    assert unit.transport.read_config(36, 1) == 0


def test_d17_bypass_domains_are_refused_where_they_are_not_offered(unit: Viommu) -> None:
    """D17."""
    assert status(unit, Attach(domain=DOMAIN, endpoint=BYTES_EP, flags=ATTACH_BYPASS)) == Status.INVAL


@pytest.mark.parametrize("iova", [0, 1, 0xFFF, 0xFEE00000, MAX_U64 - 1, MAX_U64])
def test_g3_a_single_byte_can_be_mapped_and_unmapped(attached: Viommu, iova: int) -> None:
    """virt_end == virt_start is one byte. R16 wants more; the device has no reason to refuse it."""
    assert status(attached, mapping(iova, iova + 1, phys_start=5)) == Status.OK
    assert status(attached, mapping(iova, iova + 1, phys_start=5)) == Status.INVAL  # it is mapped
    assert status(attached, unmapping(iova, iova + 1)) == Status.OK
    assert status(attached, mapping(iova, iova + 1, phys_start=5)) == Status.OK


def test_d42_bytes_beside_each_other_are_mappings_of_their_own(attached: Viommu) -> None:
    """D42: none is split by removing its neighbour."""
    for iova in (10, 11, 12):
        attached.ask(mapping(iova, iova + 1, phys_start=100 - iova))

    assert status(attached, unmapping(11, 12)) == Status.OK
    assert [status(attached, mapping(iova, iova + 1)) for iova in (10, 11, 12)] == [
        Status.INVAL,
        Status.OK,
        Status.INVAL,
    ]


def test_d37_all_of_64_bits_can_be_one_mapping(attached: Viommu) -> None:
    """D37: also the last byte."""
    assert status(attached, mapping(0, MAX_U64 + 1)) == Status.OK
    assert status(attached, unmapping(0, MAX_U64)) == Status.RANGE  # D42: all but the last byte
    assert status(attached, unmapping(0, MAX_U64 + 1)) == Status.OK
    assert status(attached, mapping(MAX_U64, MAX_U64 + 1)) == Status.OK


@pytest.mark.parametrize("start", [0, 1 << 63])
def test_g2_a_target_that_leaves_64_bits_by_one_byte_is_refused(attached: Viommu, start: int) -> None:
    """D37."""
    nbytes = MAX_U64 + 1 - start

    assert status(attached, mapping(start, MAX_U64 + 1, phys_start=MAX_U64 + 2 - nbytes)) == Status.RANGE
    assert status(attached, mapping(start, MAX_U64 + 1, phys_start=MAX_U64 + 1 - nbytes)) == Status.OK


@pytest.mark.parametrize(("start", "end"), [(1, 0), (MAX_U64, 0), (MAX_U64, MAX_U64 - 1)])
def test_g3_a_range_whose_end_is_below_its_start_is_refused(attached: Viommu, start: int, end: int) -> None:
    """R16: RANGE, whatever the granule, for MAP and UNMAP."""
    assert status(attached, mapping(start, end + 1)) == Status.RANGE
    assert status(attached, unmapping(start, end + 1)) == Status.RANGE


def test_g8_one_mapping_more_than_the_unit_may_have_is_refused(attached: Viommu) -> None:
    """NOMEM; limits.max_mappings is 64 here. D31: an overlap is reported as one."""
    answers = attached.submit([mapping(2 * number, 2 * number + 1) for number in range(BYTES_MAX_MAPPINGS)])
    assert {answer.status for answer in answers} == {Status.OK}

    assert status(attached, mapping(1000, 1001)) == Status.NOMEM
    assert status(attached, mapping(0, 1)) == Status.INVAL
    attached.ask(unmapping(0, 1))
    assert status(attached, mapping(1000, 1001)) == Status.OK
