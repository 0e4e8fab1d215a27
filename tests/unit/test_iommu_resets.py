"""What resets, the end of a domain, and a restart leave of a unit's state, and what they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.iommu_requests import PLAIN, UNIT, attach, detach, engine, limited, map_
from vdev.iommu.domains import SWEEP_BLOCKS, DomainTable
from vdev.iommu.intervals import BLOCK_MAX
from vdev.iommu.settings import EndpointSettings
from vdev.iommu.snapshot import SnapshotError
from vdev.wire import viommu as wire

PAGE = 4096


@pytest.mark.parametrize("boot", [False, True])
def test_bypass_starts_as_configured_and_a_machine_reset_restores_that(boot: bool) -> None:
    unit = engine(replace(UNIT, boot_bypass=boot))
    before = unit.bypass

    unit.write_bypass(int(not boot))
    unit.system_reset()

    assert (before, unit.bypass) == (boot, boot)


@pytest.mark.parametrize("reset", ["device_reset", "system_reset"])
def test_a_driver_after_a_reset_has_accepted_nothing(reset: str) -> None:
    unit = engine()

    getattr(unit, reset)()

    assert attach(unit, 1, PLAIN, wire.ATTACH_F_BYPASS) == wire.S_INVAL
    assert not unit.has_driver


def test_mappings_of_before_a_reset_do_not_count_against_the_cap() -> None:
    unit = engine(limited(max_mappings=1))
    attach(unit, 1, PLAIN)
    map_(unit, 1, 0, PAGE - 1)

    unit.device_reset()

    attach(unit, 1, PLAIN)
    assert map_(unit, 1, 0, PAGE - 1) == wire.S_OK


@pytest.mark.parametrize("how", ["detach", "device_reset"])
def test_mappings_of_a_domain_that_ends_are_freed_in_parts(how: str) -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    for page in range(20 * BLOCK_MAX):
        unit.table.map(1, page * PAGE, (page + 1) * PAGE, 0, 3)

    if how == "detach":
        detach(unit, 1, PLAIN)
    else:
        unit.device_reset()

    assert len(unit.table.rubbish) > SWEEP_BLOCKS
    assert unit.sweep()


def test_an_endpoint_that_is_removed_from_the_table_leaves_its_domain() -> None:
    table = DomainTable(UNIT, [EndpointSettings(1, "one"), EndpointSettings(2, "two")])
    for endpoint in (1, 2):
        table.attach(7, endpoint, bypass=False)

    left = [table.remove(1), sorted(table.domains[7].endpoints), table.remove(2)]

    assert left == [7, [2], 7]
    assert table.domains == {}


def test_the_bypass_byte_is_restored() -> None:
    unit = engine()
    saved = unit.snapshot()
    unit.write_bypass(0)
    blocking = unit.snapshot()

    unit.restore(saved)
    bypassing = unit.bypass
    unit.restore(blocking)

    assert (bypassing, unit.bypass) == (True, False)


@pytest.mark.parametrize("damage", [{"pending_faults": ["zz"]}, {"domains": [{"id": 1}]}])
def test_a_damaged_snapshot_leaves_bypass_as_it_is(damage: dict[str, Any]) -> None:
    unit = engine()
    saved = {**unit.snapshot(), "bypass": False, **damage}

    with pytest.raises(SnapshotError):
        unit.restore(saved)

    assert unit.bypass


def test_a_unit_without_bypass_config_restores_no_bypass() -> None:
    saved = {**engine(replace(UNIT, bypass_offered=False)).snapshot(), "bypass": True}

    with pytest.raises(SnapshotError):
        engine(replace(UNIT, bypass_offered=False)).restore(saved)


def test_the_oldest_faults_are_restored_as_many_as_may_wait() -> None:
    unit = engine(limited(max_pending_faults=2))
    records = [bytes([number]) * wire.FAULT_NBYTES for number in range(3)]
    saved = {**unit.snapshot(), "pending_faults": [record.hex() for record in records]}

    unit.restore(saved)

    assert list(unit.pending_faults) == records[:2]
