"""Translation, permissions, reserved regions, bypass, and the faults that reach the guest."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from tests.support.iommu_requests import (
    DOORBELL,
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
)
from vdev.errors import TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.events import Event, FaultRaised, FaultsDropped, UnitReset
from vdev.iommu.explain import Asked, explain
from vdev.wire import viommu as wire


def _fault(unit: Engine, endpoint: int, iova: int, nbytes: int, access: int) -> tuple[int, str, int]:
    with pytest.raises(TranslationFault) as caught:
        unit.translate(endpoint, iova, nbytes, access)
    return caught.value.fault_reason, caught.value.reason, caught.value.iova


def _mapped() -> Engine:
    """HOLED in domain 1: page 1 read-write, page 2 read-only, page 3 write-only, page 4 nothing allowed, page 7 all."""
    unit = engine()
    attach(unit, 1, HOLED)
    for page, flags in ((1, READ | WRITE), (2, READ), (3, WRITE), (4, 0), (7, READ | WRITE)):
        assert map_(unit, 1, page << 12, (page << 12) + 0xFFF, 0x100000 * page, flags) == 0
    return unit


@pytest.mark.parametrize(
    ("iova", "reason"),
    [(0xFFF, "outside-input-range"), (0x1000, "not-mapped"), (0x7FFF, "not-mapped"), (0x8000, "outside-input-range")],
)
def test_what_is_outside_the_input_range_is_told_from_what_is_not_mapped(iova: int, reason: str) -> None:
    unit = engine(replace(UNIT, input_start=0x1000, input_stop=0x8000))
    attach(unit, 1, PLAIN)

    explained = explain(unit.table, unit.settings, PLAIN, Asked(iova, 1, READ)).fault

    assert _fault(unit, PLAIN, iova, 1, READ) == (wire.FAULT_R_MAPPING, reason, iova)
    assert explained is not None
    assert (explained.reason, explained.iova) == (reason, iova)


def test_a_write_through_a_read_only_mapping_faults() -> None:
    assert _fault(_mapped(), HOLED, 0x2010, 4, WRITE) == (wire.FAULT_R_MAPPING, "no-write", 0x2010)


def test_a_read_through_a_write_only_mapping_faults() -> None:
    assert _fault(_mapped(), HOLED, 0x3010, 4, READ) == (wire.FAULT_R_MAPPING, "no-read", 0x3010)


def test_a_mapping_without_permissions_allows_nothing() -> None:
    unit = _mapped()
    assert [_fault(unit, HOLED, 0x4000, 1, access)[1] for access in (READ, WRITE)] == ["no-read", "no-write"]


def test_an_access_that_needs_both_permissions_gets_neither_half() -> None:
    unit = _mapped()
    assert unit.translate(HOLED, 0x1000, 8, READ | WRITE) == [(0x100000, 8)]
    assert _fault(unit, HOLED, 0x2000, 8, READ | WRITE)[1] == "no-write"


def test_an_access_across_mappings_is_cut_into_pieces() -> None:
    assert _mapped().translate(HOLED, 0x1FFC, 8, READ) == [(0x100FFC, 4), (0x200000, 4)]


def test_every_piece_of_a_straddling_access_is_checked() -> None:
    unit = _mapped()
    assert _fault(unit, HOLED, 0x1FFC, 8, WRITE) == (wire.FAULT_R_MAPPING, "no-write", 0x2000)
    assert _fault(unit, HOLED, 0x1800, 0x2000, READ) == (wire.FAULT_R_MAPPING, "no-read", 0x3000)
    assert _fault(unit, HOLED, 0x4FFC, 8, READ) == (wire.FAULT_R_MAPPING, "no-read", 0x4FFC)


def test_an_unmapped_address_faults() -> None:
    assert _fault(_mapped(), HOLED, 0x6000, 1, READ) == (wire.FAULT_R_MAPPING, "not-mapped", 0x6000)


def test_an_address_outside_the_input_range_faults() -> None:
    unit = _mapped()
    assert _fault(unit, HOLED, 1 << 40, 1, READ) == (wire.FAULT_R_MAPPING, "outside-input-range", 1 << 40)


def test_an_access_that_wraps_the_address_space_faults() -> None:
    last = (1 << 64) - 1
    assert _fault(_mapped(), HOLED, last, 2, READ) == (wire.FAULT_R_MAPPING, "outside-address-space", last)
    assert _fault(engine(), PLAIN, last, 2, READ)[1] == "outside-address-space"


def test_an_address_below_zero_faults_even_where_everything_bypasses() -> None:
    assert _fault(engine(), PLAIN, -1, 1, READ)[1] == "outside-address-space"


def test_an_access_of_no_bytes_has_no_pieces() -> None:
    assert _mapped().translate(HOLED, 0x6000, 0, READ) == []


def test_an_unknown_endpoint_faults_with_reason_unknown() -> None:
    assert _fault(engine(), 999, 0x10, 1, READ) == (wire.FAULT_R_UNKNOWN, "unknown-endpoint", 0x10)


def test_a_reserved_region_faults_even_for_a_bypassing_endpoint() -> None:
    unit = engine()
    assert _fault(unit, HOLED, 0x7FFC, 8, READ) == (wire.FAULT_R_MAPPING, "reserved", 0x8000)
    attach(unit, 1, HOLED, wire.ATTACH_F_BYPASS)
    assert _fault(unit, HOLED, 0x9FFF, 1, WRITE) == (wire.FAULT_R_MAPPING, "reserved", 0x9FFF)
    assert unit.translate(HOLED, 0xA000, 1, WRITE) == [(0xA000, 1)]


def test_an_access_from_a_mapping_into_a_reserved_region_faults() -> None:
    assert _fault(_mapped(), HOLED, 0x7FFC, 8, READ) == (wire.FAULT_R_MAPPING, "reserved", 0x8000)


def test_writes_to_the_msi_region_pass_untranslated() -> None:
    assert _mapped().translate(HOLED, MSI.start + 0x40, 4, WRITE) == [(MSI.start + 0x40, 4)]


def test_reads_of_the_msi_region_fault() -> None:
    assert _fault(_mapped(), HOLED, MSI.start, 4, READ) == (wire.FAULT_R_MAPPING, "reserved", MSI.start)


def test_a_write_that_leaves_the_msi_region_faults() -> None:
    unit = _mapped()
    assert _fault(unit, HOLED, MSI.stop - 2, 4, WRITE) == (wire.FAULT_R_MAPPING, "not-mapped", MSI.stop)
    assert _fault(unit, HOLED, MSI.start - 2, 4, WRITE)[2] == MSI.start - 2


def test_another_endpoints_msi_region_is_ordinary_memory() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    assert map_(unit, 1, MSI.start, MSI.start + 0xFFF, 0x3000) == 0
    assert unit.translate(PLAIN, MSI.start, 4, WRITE) == [(0x3000, 4)]


# the bypass truth table: (offered, negotiated, bypass byte) of an unattached endpoint: does it bypass?
@pytest.mark.parametrize(
    ("offered", "negotiated", "byte", "bypasses"),
    [
        (True, True, 1, True),
        (True, False, 1, True),
        (True, True, 0, False),
        (True, False, 0, False),
        (False, False, 1, False),
    ],
)
def test_an_unattached_endpoint_bypasses_by_the_truth_table(
    offered: bool, negotiated: bool, byte: int, bypasses: bool
) -> None:
    unit = engine(replace(UNIT, bypass_offered=offered, boot_bypass=not byte), accept=-1 if negotiated else 0)
    unit.write_bypass(byte)

    if bypasses:
        assert unit.translate(PLAIN, 1 << 40, 4, READ | WRITE) == [(1 << 40, 4)]
    else:
        assert _fault(unit, PLAIN, 1 << 40, 4, READ) == (wire.FAULT_R_DOMAIN, "no-domain", 1 << 40)


def test_an_endpoint_in_a_bypass_domain_bypasses_whatever_the_config_byte() -> None:
    unit = engine()
    unit.write_bypass(0)
    attach(unit, 1, PLAIN, wire.ATTACH_F_BYPASS)
    assert unit.translate(PLAIN, 0x1234, 4, READ) == [(0x1234, 4)]
    detach(unit, 1, PLAIN)
    assert _fault(unit, PLAIN, 0x1234, 4, READ)[0] == wire.FAULT_R_DOMAIN


def test_an_attached_endpoint_does_not_bypass() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    assert unit.bypass
    assert _fault(unit, PLAIN, 0, 4, READ)[1] == "not-mapped"


@pytest.mark.conformance(mode=["compat"])
def test_g21_an_unattached_endpoint_without_bypass_cannot_reach_the_msi_region() -> None:
    unit = engine()
    unit.write_bypass(0)
    assert _fault(unit, DOORBELL, MSI.start, 4, WRITE)[0] == wire.FAULT_R_DOMAIN


def test_a_fault_reaches_the_guest_as_a_24_byte_record() -> None:
    events: list[Event] = []
    unit = engine(events=events)

    unit.fault(HOLED, TranslationFault(wire.FAULT_R_MAPPING, "no-write", 0x2010), WRITE)

    (record,) = unit.pending_faults
    flags = wire.FAULT_F_WRITE | wire.FAULT_F_ADDRESS
    assert record == wire.Fault(wire.FAULT_R_MAPPING, bytes(3), flags, HOLED, 0, 0x2010).pack()
    assert len(record) == 24
    assert events == [FaultRaised("iommu0", HOLED, "no-write", WRITE, 0x2010)]
    assert unit.describe()["counters"]["faults"] == {"no-write": 1}


def test_faults_over_the_cap_are_dropped_counted_and_told_once_per_overflow() -> None:
    events: list[Event] = []
    unit = engine(limited(max_pending_faults=2), events)
    error = TranslationFault(wire.FAULT_R_DOMAIN, "no-domain", 1)

    for _ in range(5):
        unit.fault(PLAIN, error, READ)
    unit.pending_faults.popleft()
    for _ in range(2):
        unit.fault(PLAIN, error, READ)

    assert len(unit.pending_faults) == 2
    assert unit.describe()["counters"]["faults_dropped"] == 4
    assert [event.total for event in events if isinstance(event, FaultsDropped)] == [1, 4]


def test_translation_alone_leaves_no_trace() -> None:
    unit = engine()
    unit.write_bypass(0)
    before = (unit.snapshot(), unit.describe())
    _fault(unit, PLAIN, 0, 4, READ)
    assert (unit.snapshot(), unit.describe()) == before


@pytest.mark.conformance(mode=["compat"])
def test_d6_d9_device_reset_detaches_everything_and_keeps_bypass() -> None:
    events: list[Event] = []
    unit = engine(events=events)
    unit.write_bypass(0)
    attach(unit, 1, PLAIN)
    unit.fault(PLAIN, TranslationFault(wire.FAULT_R_MAPPING, "not-mapped", 1), READ)

    unit.device_reset()

    assert unit.snapshot() == engine(replace(UNIT, boot_bypass=False), accept=0).snapshot()
    assert events[-1] == UnitReset("iommu0", "device")
    assert _fault(unit, PLAIN, 0, 4, READ)[0] == wire.FAULT_R_DOMAIN


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.conformance(mode=[mode])) for mode in ("compat", "strict")]
)
def test_d7_system_reset_restores_the_boot_bypass(mode: Literal["compat", "strict"]) -> None:
    events: list[Event] = []
    unit = engine(replace(UNIT, mode=mode), events)
    unit.write_bypass(0)
    attach(unit, 1, PLAIN)

    unit.system_reset()

    assert unit.snapshot() == engine(replace(UNIT, mode=mode), accept=0).snapshot()
    assert unit.translate(PLAIN, 0, 4, READ) == [(0, 4)]
    assert events[-1] == UnitReset("iommu0", "system")


def test_faults_are_counted_by_their_reason() -> None:
    unit = engine()
    for word in ("not-mapped", "no-write", "not-mapped"):
        unit.fault(PLAIN, TranslationFault(wire.FAULT_R_MAPPING, word, 0), READ)

    assert unit.describe()["counters"]["faults"] == {"not-mapped": 2, "no-write": 1}
