"""Where sizes, ranges and flags of a unit end, to the byte and the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import (
    BYTES,
    DOORBELL,
    ENDPOINTS,
    HOLE,
    HOLED,
    MSI,
    PLAIN,
    READ,
    UNIT,
    WRITE,
    attach,
    detach,
    engine,
    limited,
    map_,
    probe_request,
)
from vdev.errors import ConfigError, TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.fault_queue import FaultQueue, fault_record
from vdev.iommu.settings import ADDRESS_SPACE, RESV_PROPERTY_NBYTES, EndpointSettings, ReservedRegion
from vdev.wire import viommu as wire


def test_properties_may_fill_all_of_probe_size() -> None:
    unit = Engine(replace(UNIT, probe_size=RESV_PROPERTY_NBYTES), [ENDPOINTS[1]])

    reply = unit.handle(probe_request(DOORBELL), RESV_PROPERTY_NBYTES + wire.TAIL_NBYTES)

    assert [kind for kind, _ in wire.properties(reply[:RESV_PROPERTY_NBYTES])] == [wire.PROBE_T_RESV_MEM]
    assert reply[RESV_PROPERTY_NBYTES:] == wire.TAILS[wire.S_OK]


def test_a_report_has_no_flag_but_those_of_the_specification() -> None:
    record = wire.Fault.parse(fault_record(wire.FAULT_R_MAPPING, 0xFFFF_FFFF, 1, 0))

    assert record.flags == READ | WRITE | 1 << 8


def test_the_first_fault_lost_after_a_reset_is_told_as_the_first() -> None:
    queue = FaultQueue(1)
    before = [queue.put(b"1"), queue.put(b"2"), queue.put(b"3")]

    queue.replace([b"4"])

    assert before == [False, True, False]
    assert [queue.put(b"5"), queue.put(b"6")] == [True, False]


@pytest.mark.parametrize(
    ("address", "status"),
    [
        (HOLE.start - 1, wire.S_OK),
        (HOLE.start, wire.S_UNSUPP),
        (HOLE.stop - 1, wire.S_UNSUPP),
        (HOLE.stop, wire.S_OK),
        (MSI.start - 1, wire.S_OK),
        (MSI.start, wire.S_UNSUPP),
        (MSI.stop - 1, wire.S_UNSUPP),
        (MSI.stop, wire.S_OK),
    ],
)
def test_a_newcomer_is_kept_out_by_a_mapped_byte_of_any_region_of_its_own(address: int, status: int) -> None:
    unit = engine(BYTES)
    attach(unit, 1, PLAIN)
    map_(unit, 1, address, address)

    assert attach(unit, 1, HOLED) == status


def test_regions_of_every_endpoint_of_a_domain_refuse_mappings_whoever_came_last() -> None:
    unit = engine()
    attach(unit, 1, HOLED)
    attach(unit, 1, PLAIN)

    assert map_(unit, 1, HOLE.start, HOLE.start + 0xFFF) == wire.S_INVAL


@pytest.mark.parametrize("bit", range(12))
def test_no_bit_below_the_granule_may_be_set(bit: int) -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    odd = 1 << bit

    assert map_(unit, 1, 0x10000 + odd, 0x1FFFF) == wire.S_RANGE
    assert map_(unit, 1, 0x10000, 0x1FFFF + odd) == wire.S_RANGE
    assert map_(unit, 1, 0x10000, 0x1FFFF, odd) == wire.S_RANGE


def test_all_32_bits_of_an_endpoint_id_count() -> None:
    unit = engine()

    assert [attach(unit, 1, DOORBELL | 1 << bit) for bit in range(16, 32)] == [wire.S_NOENT] * 16


def test_the_range_is_looked_at_before_the_cap_on_domains() -> None:
    unit = engine(replace(limited(max_domains=1), domain_stop=5))
    attach(unit, 1, PLAIN)

    assert attach(unit, 5, DOORBELL) == wire.S_RANGE
    assert attach(unit, 4, DOORBELL) == wire.S_NOMEM


def test_the_endpoint_is_looked_at_before_the_domain() -> None:
    assert attach(engine(replace(UNIT, domain_stop=5)), 5, 0x999) == wire.S_NOENT


def test_a_bypass_domain_is_no_place_for_a_mapping_whatever_its_range() -> None:
    unit = engine()
    attach(unit, 1, PLAIN, wire.ATTACH_F_BYPASS)

    assert map_(unit, 1, 1 << 39, (1 << 39) + 0xFFF) == wire.S_INVAL
    assert map_(unit, 1, 1, 1) == wire.S_INVAL


@pytest.mark.parametrize("access", [READ, WRITE, READ | WRITE])
def test_a_bypassing_access_that_runs_through_regions_is_refused_at_the_first(access: int) -> None:
    with pytest.raises(TranslationFault) as caught:
        engine().translate(HOLED, 0x7000, MSI.stop, access)

    assert (caught.value.reason, caught.value.iova) == ("reserved", HOLE.start)


@pytest.mark.parametrize(
    ("iova", "nbytes", "refused_at"),
    [
        (HOLE.start - 2, 2, None),
        (HOLE.start - 2, 3, HOLE.start),
        (HOLE.stop - 1, 1, HOLE.stop - 1),
        (HOLE.stop, 1, None),
        (ADDRESS_SPACE - 1, 1, None),
        (ADDRESS_SPACE - 1, 2, ADDRESS_SPACE - 1),
        (-1, 1, -1),
    ],
)
def test_a_bypassing_access_ends_where_regions_and_the_address_space_do(
    iova: int, nbytes: int, refused_at: int | None
) -> None:
    unit = engine()

    if refused_at is None:
        assert unit.translate(HOLED, iova, nbytes, READ) == [(iova, nbytes)]
        return
    with pytest.raises(TranslationFault) as caught:
        unit.translate(HOLED, iova, nbytes, READ)
    assert caught.value.iova == refused_at


@pytest.mark.parametrize(("access", "passes"), [(READ, False), (WRITE, True), (READ | WRITE, False)])
def test_only_pure_writes_pass_a_doorbell(access: int, passes: bool) -> None:
    unit = engine()

    if passes:
        assert unit.translate(DOORBELL, MSI.start, 4, access) == [(MSI.start, 4)]
        return
    with pytest.raises(TranslationFault, match="reserved"):
        unit.translate(DOORBELL, MSI.start, 4, access)


def test_an_access_of_no_bytes_is_none_wherever_it_would_be() -> None:
    unit = engine()
    unit.write_bypass(0)

    assert unit.translate(PLAIN, 0x1000, 0, READ) == []
    assert detach(unit, 1, PLAIN) == wire.S_INVAL


def test_regions_may_touch_in_any_order() -> None:
    regions = (ReservedRegion(0x3000, 0x4000), ReservedRegion(0x1000, 0x2000), ReservedRegion(0x2000, 0x3000))

    assert EndpointSettings(1, "touching", regions).reserved == regions


@pytest.mark.parametrize("second", [(0x1FFF, 0x3000), (0x1000, 0x1001), (0x1800, 0x1801), (0, 0x1001)])
def test_regions_share_no_byte_in_either_order(second: tuple[int, int]) -> None:
    regions = (ReservedRegion(0x1000, 0x2000), ReservedRegion(*second))

    for given in (regions, regions[::-1]):
        with pytest.raises(ConfigError, match="overlaps"):
            EndpointSettings(1, "sharing", given)


@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_an_endpoint_id_has_32_bits(number: int) -> None:
    with pytest.raises(ConfigError, match="32-bit"):
        EndpointSettings(number, "wide")
