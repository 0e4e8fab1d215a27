"""ATTACH and DETACH: the device requirements of virtio 1.4, one behaviour per test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.iommu_requests import (
    DOORBELL,
    HOLED,
    PLAIN,
    READ,
    UNIT,
    attach,
    detach,
    engine,
    limited,
    map_,
    unmap,
)
from vdev.errors import TranslationFault
from vdev.iommu.events import EndpointAttached, EndpointDetached, Event, RequestHandled
from vdev.wire import viommu as wire


def _domains(unit: object) -> dict[int, list[int]]:
    return {domain["id"]: domain["endpoints"] for domain in unit.describe()["domains"]}  # type: ignore[attr-defined]


def test_attach_creates_the_domain() -> None:
    unit = engine()
    assert attach(unit, 7, PLAIN) == wire.S_OK
    assert _domains(unit) == {7: [PLAIN]}


def test_attach_with_reserved_bytes_set_is_refused() -> None:
    assert attach(engine(), 1, PLAIN, reserved=b"\0\0\0\1") == wire.S_INVAL


def test_attach_with_an_unknown_flag_is_refused() -> None:
    assert attach(engine(), 1, PLAIN, flags=2) == wire.S_INVAL


def test_attach_with_bypass_not_negotiated_is_refused() -> None:
    assert attach(engine(accept=0), 1, PLAIN, wire.ATTACH_F_BYPASS) == wire.S_INVAL


def test_attach_of_an_unknown_endpoint_is_refused() -> None:
    assert attach(engine(), 0, 444) == wire.S_NOENT


def test_attach_outside_the_domain_range_is_refused() -> None:
    unit = engine(replace(UNIT, domain_start=4, domain_stop=8))
    assert [attach(unit, domain, PLAIN) for domain in (3, 4, 7, 8)] == [wire.S_RANGE, 0, 0, wire.S_RANGE]


def test_a_second_endpoint_may_share_a_domain() -> None:
    unit = engine()
    assert [attach(unit, 1, PLAIN), map_(unit, 1, 0, 0xFFF, 0x5000), attach(unit, 1, DOORBELL)] == [0, 0, 0]
    assert unit.translate(DOORBELL, 0x10, 4, READ) == [(0x5010, 4)]


def test_attach_to_a_living_domain_with_the_other_bypass_flag_is_refused() -> None:
    unit = engine()
    assert attach(unit, 1, PLAIN) == 0
    assert attach(unit, 1, DOORBELL, wire.ATTACH_F_BYPASS) == wire.S_INVAL
    assert attach(unit, 1, PLAIN, wire.ATTACH_F_BYPASS) == wire.S_INVAL


def test_attach_to_another_domain_moves_the_endpoint() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    assert attach(unit, 2, PLAIN) == wire.S_OK
    assert _domains(unit) == {2: [PLAIN]}


def test_a_refused_attach_does_not_detach_the_endpoint() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    map_(unit, 1, 0, 0xFFF, 0x5000)
    attach(unit, 2, DOORBELL, wire.ATTACH_F_BYPASS)
    before = unit.snapshot()

    assert attach(unit, 2, PLAIN) == wire.S_INVAL

    assert unit.snapshot() == before
    assert unit.translate(PLAIN, 0, 4, READ) == [(0x5000, 4)]


def test_attach_to_the_same_domain_again_keeps_its_mappings() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    map_(unit, 1, 0, 0xFFF, 0x5000)
    assert attach(unit, 1, PLAIN) == wire.S_OK
    assert unit.translate(PLAIN, 0, 4, READ) == [(0x5000, 4)]


def test_attach_to_a_domain_whose_mappings_hide_a_reserved_region_is_refused() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    map_(unit, 1, 0x9000, 0x9FFF)

    assert attach(unit, 1, HOLED) == wire.S_UNSUPP
    assert unmap(unit, 1, 0x9000, 0x9FFF) == wire.S_OK
    assert attach(unit, 1, HOLED) == wire.S_OK


def test_a_domain_too_many_is_refused_with_nomem() -> None:
    unit = engine(limited(max_domains=2))
    assert [attach(unit, 1, PLAIN), attach(unit, 2, DOORBELL), attach(unit, 3, HOLED)] == [0, 0, wire.S_NOMEM]


def test_a_move_that_frees_its_old_domain_fits_under_the_cap() -> None:
    unit = engine(limited(max_domains=1))
    assert [attach(unit, 1, PLAIN), attach(unit, 2, PLAIN)] == [0, 0]
    assert [attach(unit, 2, DOORBELL), attach(unit, 3, DOORBELL)] == [0, wire.S_NOMEM]


def test_detach_ignores_its_reserved_bytes() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    assert detach(unit, 1, PLAIN, reserved=b"\xff" * 8) == wire.S_OK


def test_detach_of_an_unknown_endpoint_is_refused() -> None:
    assert detach(engine(), 0, 444) == wire.S_NOENT


@pytest.mark.parametrize(("domain", "endpoint"), [(2, PLAIN), (0, PLAIN), (1, DOORBELL), (9, DOORBELL)])
def test_detach_from_a_domain_the_endpoint_is_not_in_is_refused(domain: int, endpoint: int) -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    before = unit.snapshot()
    assert detach(unit, domain, endpoint) == wire.S_INVAL
    assert unit.snapshot() == before


def test_detach_from_a_bypass_domain_may_name_domain_zero() -> None:
    unit = engine()
    attach(unit, 5, PLAIN, wire.ATTACH_F_BYPASS)
    assert detach(unit, 0, PLAIN) == wire.S_OK
    assert _domains(unit) == {}


def test_a_detached_endpoint_reaches_no_mapping() -> None:
    unit = engine()
    unit.write_bypass(0)
    attach(unit, 1, PLAIN)
    attach(unit, 1, DOORBELL)
    map_(unit, 1, 0, 0xFFF)
    detach(unit, 1, PLAIN)

    with pytest.raises(TranslationFault) as caught:
        unit.translate(PLAIN, 0, 4, READ)

    assert caught.value.fault_reason == wire.FAULT_R_DOMAIN
    assert unit.translate(DOORBELL, 0, 4, READ) == [(0, 4)]


def test_a_domain_ends_with_its_last_endpoint_and_its_id_is_reusable() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    map_(unit, 1, 0, 0xFFF)
    detach(unit, 1, PLAIN)

    assert map_(unit, 1, 0x1000, 0x1FFF) == wire.S_NOENT
    assert attach(unit, 1, PLAIN) == wire.S_OK
    assert unit.describe()["mappings"] == 0
    assert map_(unit, 1, 0, 0xFFF) == wire.S_OK


def test_a_leaving_endpoint_takes_its_reserved_regions_along() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    attach(unit, 1, HOLED)
    assert map_(unit, 1, 0x8000, 0x8FFF) == wire.S_INVAL
    detach(unit, 1, HOLED)
    assert map_(unit, 1, 0x8000, 0x8FFF) == wire.S_OK


def test_a_move_is_told_as_detached_then_attached() -> None:
    events: list[Event] = []
    unit = engine(events=events)
    attach(unit, 1, PLAIN)
    events.clear()

    attach(unit, 2, PLAIN)
    attach(unit, 2, PLAIN)

    assert [event for event in events if not isinstance(event, RequestHandled)] == [
        EndpointDetached("iommu0", PLAIN, 1),
        EndpointAttached("iommu0", PLAIN, 2, bypass=False),
    ]
