"""MAP and UNMAP: the device requirements of virtio 1.4, one behaviour per test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import BYTES, HOLED, PLAIN, READ, UNIT, attach, engine, limited, map_, unmap
from vdev.iommu.engine import Engine
from vdev.iommu.settings import UnitSettings
from vdev.wire import viommu as wire

TOP = (1 << 39) - 1


def _attached(settings: UnitSettings = UNIT, endpoint: int = PLAIN, *, accept: int = -1) -> Engine:
    unit = engine(settings, accept=accept)
    assert attach(unit, 1, endpoint) == 0
    return unit


@pytest.mark.parametrize(
    ("first", "last", "gpa"), [(1, 0x1000, 0), (0, 0xFFE, 0), (0, 0x1000, 0), (0, 0xFFF, 1), (0, 0, 0)]
)
def test_a_mapping_off_the_granule_is_refused(first: int, last: int, gpa: int) -> None:
    assert map_(_attached(), 1, first, last, gpa) == wire.S_RANGE


def test_any_multiple_of_the_granule_is_mapped() -> None:
    unit = _attached()
    assert map_(unit, 1, 0x3000, 0x9FFF, 0x7000) == wire.S_OK
    assert unit.translate(PLAIN, 0x3000, 0x7000, READ) == [(0x7000, 0x7000)]


def test_a_granule_of_one_byte_maps_single_bytes() -> None:
    unit = _attached(BYTES)
    assert map_(unit, 1, 5, 5, 77) == wire.S_OK
    assert unit.translate(PLAIN, 5, 1, READ) == [(77, 1)]


@pytest.mark.parametrize(("first", "last"), [(0x1000, 0x1FFF), (0, 0x1FFF), (0, 0xFFFF), (0x2000, 0x3FFF)])
def test_map_over_a_mapping_is_refused(first: int, last: int) -> None:
    unit = _attached()
    map_(unit, 1, 0x1000, 0x2FFF)
    before = unit.snapshot()
    assert map_(unit, 1, first, last) == wire.S_INVAL
    assert unit.snapshot() == before


def test_map_with_an_unknown_flag_is_refused() -> None:
    assert map_(_attached(), 1, 0, 0xFFF, flags=8 | READ) == wire.S_INVAL


def test_map_with_mmio_needs_the_feature_negotiated() -> None:
    flags = wire.MAP_F_WRITE | wire.MAP_F_MMIO
    assert map_(_attached(accept=0), 1, 0, 0xFFF, flags=flags) == wire.S_INVAL
    assert map_(_attached(replace(UNIT, mmio=False)), 1, 0, 0xFFF, flags=flags) == wire.S_INVAL
    assert map_(_attached(), 1, 0, 0xFFF, flags=flags) == wire.S_OK


def test_map_and_unmap_on_an_unknown_domain_are_refused() -> None:
    unit = _attached()
    assert [map_(unit, 4, 0, 0xFFF), unmap(unit, 4, 0, 0xFFF)] == [wire.S_NOENT, wire.S_NOENT]


def test_map_and_unmap_on_a_bypass_domain_are_refused() -> None:
    unit = engine()
    attach(unit, 1, PLAIN, wire.ATTACH_F_BYPASS)
    assert [map_(unit, 1, 0, 0xFFF), unmap(unit, 1, 0, 0xFFF)] == [wire.S_INVAL, wire.S_INVAL]


def test_map_outside_the_input_range_is_refused() -> None:
    unit = _attached(replace(UNIT, input_start=0x10000, input_stop=0x20000), accept=0)
    results = [map_(unit, 1, first, first + 0xFFF) for first in (0xF000, 0x10000, 0x1F000, 0x20000)]
    assert results == [wire.S_RANGE, 0, 0, wire.S_RANGE]
    assert map_(unit, 1, 0x12000, 0x20FFF) == wire.S_RANGE


@pytest.mark.parametrize("last", [0xFFF, 0x1FFF - 0x1000, 0x3FFF, 0])
def test_a_range_that_ends_before_it_starts_is_refused(last: int) -> None:
    unit = _attached()
    assert map_(unit, 1, 0x4000, last) == wire.S_RANGE
    assert unmap(unit, 1, 0x4000, last) == wire.S_RANGE


def test_a_mapping_whose_output_leaves_64_bits_is_refused() -> None:
    unit = _attached()
    last_page = (1 << 64) - 0x1000
    assert [map_(unit, 1, 0, 0x1FFF, last_page), map_(unit, 1, 0, 0xFFF, last_page)] == [wire.S_RANGE, wire.S_OK]


def test_the_whole_64_bit_space_can_be_mapped_at_once() -> None:
    unit = _attached(replace(UNIT, input_stop=1 << 64))
    last = (1 << 64) - 1
    assert map_(unit, 1, 0, last) == wire.S_OK
    assert unit.translate(PLAIN, last - 3, 4, READ) == [(last - 3, 4)]
    assert unmap(unit, 1, 0, last) == wire.S_OK


@pytest.mark.parametrize(("first", "last"), [(0x8000, 0x8FFF), (0x7000, 0x8FFF), (0, TOP), (0xFEEFF000, 0xFEEFFFFF)])
def test_map_over_a_reserved_region_is_refused(first: int, last: int) -> None:
    assert map_(_attached(endpoint=HOLED), 1, first, last) == wire.S_INVAL


def test_map_beside_a_reserved_region_is_accepted() -> None:
    unit = _attached(endpoint=HOLED)
    assert [map_(unit, 1, 0x7000, 0x7FFF), map_(unit, 1, 0xA000, 0xAFFF)] == [0, 0]


def test_a_mapping_too_many_in_one_domain_is_refused_with_nomem() -> None:
    unit = _attached(limited(max_mappings_per_domain=1))
    map_(unit, 1, 0, 0xFFF)
    assert map_(unit, 1, 0x1000, 0x1FFF) == wire.S_NOMEM
    assert map_(unit, 1, 0, 0x1FFF) == wire.S_INVAL
    unmap(unit, 1, 0, 0xFFF)
    assert map_(unit, 1, 0x1000, 0x1FFF) == wire.S_OK


def test_a_mapping_too_many_in_the_unit_is_refused_until_a_domain_ends() -> None:
    unit = _attached(limited(max_mappings=1))
    attach(unit, 2, HOLED)
    map_(unit, 1, 0, 0xFFF)
    assert map_(unit, 2, 0, 0xFFF) == wire.S_NOMEM
    attach(unit, 2, PLAIN)
    assert map_(unit, 2, 0, 0xFFF) == wire.S_OK


def test_unmap_with_reserved_bytes_set_is_refused_and_removes_nothing() -> None:
    unit = _attached()
    map_(unit, 1, 0, 0xFFF)
    assert unmap(unit, 1, 0, 0xFFF, reserved=b"\1\0\0\0") == wire.S_INVAL
    assert unit.translate(PLAIN, 0, 1, READ) == [(0, 1)]


def test_unmap_across_a_mapping_is_refused_and_removes_nothing() -> None:
    unit = _attached()
    for page in (1, 2, 4):
        map_(unit, 1, page << 12, (page << 12) + 0xFFF)
    map_(unit, 1, 0x6000, 0x7FFF)
    before = unit.snapshot()

    assert unmap(unit, 1, 0, 0x6FFF) == wire.S_RANGE

    assert unit.snapshot() == before


def test_unmap_over_holes_removes_everything_covered() -> None:
    unit = _attached()
    for page in (1, 2, 4):
        map_(unit, 1, page << 12, (page << 12) + 0xFFF)
    assert unmap(unit, 1, 0, TOP) == wire.S_OK
    assert unit.describe()["mappings"] == 0


# the specification's worked examples: mappings made, range unmapped, status, mappings left
EXAMPLES: tuple[tuple[list[tuple[int, int]], tuple[int, int], int, list[tuple[int, int]]], ...] = (
    ([], (0, 4), wire.S_OK, []),
    ([(0, 8)], (0, 8), wire.S_OK, []),
    ([(0, 4), (5, 9)], (0, 9), wire.S_OK, []),
    ([(0, 8)], (0, 4), wire.S_RANGE, [(0, 8)]),
    ([(0, 4), (5, 9)], (0, 4), wire.S_OK, [(5, 9)]),
    ([(0, 4)], (0, 9), wire.S_OK, []),
    ([(0, 4), (10, 14)], (0, 14), wire.S_OK, []),
)


@pytest.mark.parametrize(("made", "removed", "status", "left"), EXAMPLES)
def test_the_worked_unmap_examples_hold(
    made: list[tuple[int, int]], removed: tuple[int, int], status: int, left: list[tuple[int, int]]
) -> None:
    unit = _attached(BYTES)
    for first, last in made:
        assert map_(unit, 1, first, last) == 0

    assert unmap(unit, 1, *removed) == status

    assert [(start, stop - 1) for start, stop, _, _ in unit.snapshot()["domains"][0]["mappings"]] == left
