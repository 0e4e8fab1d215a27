"""Endpoints that come and go in a unit that serves its driver."""

from __future__ import annotations

import pytest

from tests.support.iommu_requests import (
    DOORBELL,
    HOLE,
    HOLED,
    MSI,
    PLAIN,
    UNIT,
    attach,
    engine,
    map_,
    probe_request,
)
from vdev.errors import ConfigError, TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.events import EndpointDetached, Event
from vdev.iommu.settings import EndpointSettings, ReservedRegion
from vdev.wire import viommu as wire

NEW = 0x200
ADDED = EndpointSettings(NEW, "new", (HOLE, MSI))
MANY = tuple(ReservedRegion(n << 12, (n + 1) << 12) for n in range(40))  # 960 bytes of properties


def probe(unit: Engine, endpoint: int) -> bytes:
    return unit.handle(probe_request(endpoint), UNIT.probe_size + wire.TAIL_NBYTES)


def test_an_added_endpoint_is_probed_and_attached_like_any_other() -> None:
    unit = engine()
    unit.add_endpoint(ADDED)

    assert probe(unit, NEW) == Engine(UNIT, [ADDED]).handle(probe_request(NEW), UNIT.probe_size + wire.TAIL_NBYTES)
    assert (attach(unit, 1, NEW), map_(unit, 1, 0x1000, 0x1FFF, 0x7000)) == (wire.S_OK, wire.S_OK)
    assert unit.translate(NEW, 0x1010, 4, 1) == [(0x7010, 4)]
    assert map_(unit, 1, 0x8000, 0x8FFF) == wire.S_INVAL, "its hole"


@pytest.mark.parametrize("wrong", [EndpointSettings(HOLED, "again"), EndpointSettings(NEW, "new", MANY)])
def test_an_endpoint_that_cannot_be_added_changes_nothing(wrong: EndpointSettings) -> None:
    unit = engine()
    attach(unit, 1, HOLED)
    before = unit.describe(), unit.snapshot(), probe(unit, HOLED)

    with pytest.raises(ConfigError):
        unit.add_endpoint(wrong)

    assert (unit.describe()["endpoints"], unit.snapshot(), probe(unit, HOLED)) == (before[0]["endpoints"], *before[1:])


def test_requests_that_name_a_removed_endpoint_get_noent() -> None:
    unit = engine()
    unit.remove_endpoint(HOLED)

    assert attach(unit, 1, HOLED) == wire.S_NOENT
    assert probe(unit, HOLED)[-4] == wire.S_NOENT
    with pytest.raises(TranslationFault, match="unknown-endpoint"):
        unit.translate(HOLED, 0, 1, 1)


def test_the_last_endpoint_takes_its_domain_and_the_mappings_along() -> None:
    events: list[Event] = []
    unit = engine(events=events)
    attach(unit, 7, HOLED)
    map_(unit, 7, 0x1000, 0x1FFF)
    events.clear()

    unit.remove_endpoint(HOLED)

    assert (unit.describe()["domains"], unit.describe()["mappings"]) == ([], 0)
    assert events == [EndpointDetached("iommu0", HOLED, 7)]
    while unit.sweep():
        pass
    assert map_(unit, 7, 0x1000, 0x1FFF) == wire.S_NOENT


def test_a_domain_with_others_stays_and_loses_only_the_holes_of_the_one_that_left() -> None:
    unit = engine()
    attach(unit, 7, HOLED)
    attach(unit, 7, PLAIN)

    unit.remove_endpoint(HOLED)

    assert unit.describe()["domains"] == [{"id": 7, "bypass": False, "endpoints": [PLAIN], "mappings": 0}]
    assert map_(unit, 7, 0x8000, 0x8FFF) == wire.S_OK


def test_an_endpoint_that_was_attached_to_nothing_leaves_without_an_event() -> None:
    events: list[Event] = []
    unit = engine(events=events)

    unit.remove_endpoint(DOORBELL)

    assert events == []


def test_an_id_that_left_may_come_again_with_other_regions() -> None:
    unit = engine()
    unit.remove_endpoint(HOLED)
    unit.add_endpoint(EndpointSettings(HOLED, "other"))

    assert probe(unit, HOLED) == bytes(UNIT.probe_size) + wire.TAILS[wire.S_OK]
    attach(unit, 1, HOLED)
    assert map_(unit, 1, 0x8000, 0x8FFF) == wire.S_OK


def test_a_snapshot_holds_what_is_there_now() -> None:
    unit = engine()
    unit.add_endpoint(ADDED)
    unit.remove_endpoint(PLAIN)
    attach(unit, 3, NEW)
    saved = unit.snapshot()
    unit.device_reset()

    unit.restore(saved)

    assert unit.snapshot() == saved
    assert unit.describe_endpoint(NEW)["domain"] == 3
    assert attach(unit, 3, PLAIN) == wire.S_NOENT


def test_a_driver_that_probes_and_attaches_is_told_of() -> None:
    unit = engine()
    reached: list[tuple[int, str]] = []
    unit.reached = lambda endpoint, stage: reached.append((endpoint, stage))

    probe(unit, DOORBELL)
    attach(unit, 1, DOORBELL)
    probe(unit, 999)
    attach(unit, 1, 999)

    assert reached == [(DOORBELL, "probed"), (DOORBELL, "attached")]
