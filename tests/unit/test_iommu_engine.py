"""Request framing in both modes, PROBE, features, config space, events, snapshot and restore."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

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
    attach,
    detach,
    engine,
    map_,
    map_request,
    probe_request,
    send,
    unmap,
)
from vdev.errors import ConfigError, TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.events import Event, RequestHandled
from vdev.iommu.settings import EndpointSettings, ReservedRegion, UnitSettings
from vdev.iommu.snapshot import SnapshotError
from vdev.wire import viommu as wire

STRICT = replace(UNIT, mode="strict")
UNKNOWN = bytes([0x77]) + bytes(39)


def test_an_unknown_type_is_answered_unsupp_in_compat_and_unwritten_in_strict() -> None:
    assert engine().handle(UNKNOWN, 516) == bytes([wire.S_UNSUPP, 0, 0, 0])
    assert engine(STRICT).handle(UNKNOWN, 516) == b""


def test_probe_not_offered_is_an_unknown_type() -> None:
    assert engine(replace(UNIT, probe_size=0)).handle(probe_request(PLAIN), 4) == bytes([wire.S_UNSUPP, 0, 0, 0])
    assert engine(replace(STRICT, probe_size=0)).handle(probe_request(PLAIN), 4) == b""


@pytest.mark.parametrize("readable", [b"", b"\3", b"\3\0\0", map_request(1, 0, 0xFFF, 0)[:-1], b"\1\0\0\0"])
def test_a_request_too_short_is_invalid_in_compat_and_unwritten_in_strict(readable: bytes) -> None:
    assert engine().handle(readable, 4) == bytes([wire.S_INVAL, 0, 0, 0])
    assert engine(STRICT).handle(readable, 4) == b""


@pytest.mark.parametrize("settings", [UNIT, STRICT])
@pytest.mark.parametrize("writable_nbytes", [0, 3])
def test_a_request_without_room_for_a_tail_changes_nothing(settings: UnitSettings, writable_nbytes: int) -> None:
    unit = engine(settings)
    before = unit.snapshot()
    request = wire.Attach(wire.T_ATTACH, bytes(3), 1, PLAIN).pack()
    assert unit.handle(request, writable_nbytes) == b""
    assert unit.snapshot() == before


def test_longer_parts_than_needed_are_accepted() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    assert unit.handle(memoryview(map_request(1, 0, 0xFFF, 0) + b"more"), 600) == wire.TAILS[wire.S_OK]
    assert len(unit.handle(probe_request(PLAIN) + b"more", 600)) == UNIT.probe_size + 4


def test_the_reserved_bytes_of_the_head_are_ignored() -> None:
    request = bytearray(wire.Attach(wire.T_ATTACH, b"\xff\xff\xff", 1, PLAIN).pack())
    assert send(engine(), bytes(request)) == wire.S_OK


def test_probe_lists_the_regions_of_its_endpoint_and_zeros() -> None:
    reply = engine().handle(probe_request(HOLED), UNIT.probe_size + 4)

    found = [
        wire.ResvMem.parse(wire.Property(kind, len(value)).pack() + value) for kind, value in wire.properties(reply)
    ]
    assert len(reply) == UNIT.probe_size + 4
    assert [(item.subtype, item.start, item.end + 1) for item in found] == [
        (wire.RESV_MEM_T_MSI, MSI.start, MSI.stop),
        (wire.RESV_MEM_T_RESERVED, HOLE.start, HOLE.stop),
    ]
    assert all(item.length == 20 and item.reserved == bytes(3) for item in found)
    assert reply[48:] == bytes(UNIT.probe_size + 4 - 48)


def test_probe_ignores_its_reserved_bytes() -> None:
    reply = engine().handle(probe_request(PLAIN, b"\xff" * 64), UNIT.probe_size + 4)
    assert reply == bytes(UNIT.probe_size + 4)


def test_probe_of_an_unknown_endpoint_is_refused_at_full_length() -> None:
    reply = engine().handle(probe_request(444), UNIT.probe_size + 4)
    assert reply == bytes(UNIT.probe_size) + wire.TAILS[wire.S_NOENT]


@pytest.mark.parametrize("settings", [UNIT, STRICT])
@pytest.mark.parametrize("writable_nbytes", [4, 5, 28, 515])
def test_probe_into_a_buffer_too_small_writes_no_properties(settings: UnitSettings, writable_nbytes: int) -> None:
    reply = engine(settings).handle(probe_request(DOORBELL), writable_nbytes)
    assert reply == bytes(writable_nbytes - 4) + wire.TAILS[wire.S_INVAL]


def test_a_short_probe_has_its_tail_at_the_usual_place() -> None:
    assert engine().handle(probe_request(PLAIN)[:71], 600) == bytes(512) + wire.TAILS[wire.S_INVAL]


def test_offered_features_follow_the_settings() -> None:
    always = wire.F_INPUT_RANGE | wire.F_DOMAIN_RANGE | wire.F_MAP_UNMAP
    bare = engine(replace(UNIT, mmio=False, bypass_offered=False, probe_size=0))

    assert engine().offered_features == always | wire.F_PROBE | wire.F_MMIO | wire.F_BYPASS_CONFIG
    assert bare.offered_features == always
    assert not (engine().offered_features | bare.offered_features) & wire.F_BYPASS


def test_the_config_space_is_64_bytes_with_inclusive_ends() -> None:
    raw = engine(replace(UNIT, domain_start=2, domain_stop=100)).config_bytes()

    config = wire.Config.parse(raw)
    assert len(raw) == 64
    assert config == wire.Config((1 << 64) - 4096, 0, (1 << 39) - 1, 2, 99, 512, 1)
    assert raw[37:] == bytes(27)


@pytest.mark.parametrize("value", [2, 3, 0x80, 255, -1])
def test_bypass_takes_only_zero_and_one(value: int) -> None:
    unit = engine()
    unit.write_bypass(0)
    unit.write_bypass(value)
    assert unit.config_bytes()[wire.BYPASS_OFFSET] == 0


def test_bypass_not_offered_reads_zero_whatever_is_written() -> None:
    unit = engine(replace(UNIT, bypass_offered=False))
    unit.write_bypass(1)
    assert unit.config_bytes()[wire.BYPASS_OFFSET] == 0


def test_a_handled_request_is_told_with_its_decoded_fields() -> None:
    events: list[Event] = []
    unit = engine(events=events)

    map_(unit, 3, 0x1000, 0x1FFF, 0x5000, READ)

    (event,) = events
    assert isinstance(event, RequestHandled)
    assert (event.unit, event.type_name, event.status) == ("iommu0", "MAP", wire.S_NOENT)
    assert (event.endpoint, event.domain, event.problem) == (None, 3, "no domain 3")
    assert event.fields == {
        "domain": 3, "virt_start": 0x1000, "virt_end": 0x1FFF, "phys_start": 0x5000, "flags": READ
    }  # fmt: skip


def test_requests_that_cannot_be_parsed_are_told_too() -> None:
    events: list[Event] = []
    unit = engine(STRICT, events)

    for readable in (UNKNOWN, b"", map_request(1, 0, 0, 0)[:9]):
        unit.handle(readable, 4)

    told = [(event.type_name, event.status) for event in events if isinstance(event, RequestHandled)]
    assert told == [("0x77", None), ("EMPTY", None), ("MAP", None)]
    sizes = [event.fields for event in events if isinstance(event, RequestHandled)]
    assert sizes[2] == {"readable_nbytes": 9, "writable_nbytes": 4}


def test_describe_counts_requests_by_type_and_refusals_by_status() -> None:
    unit = engine()
    attach(unit, 1, PLAIN)
    map_(unit, 1, 0, 0xFFF)
    map_(unit, 1, 0, 0xFFF)
    unit.handle(b"", 0)

    counters = unit.describe()["counters"]
    assert counters["requests"] == {"ATTACH": 1, "DETACH": 0, "MAP": 2, "UNMAP": 0, "PROBE": 0}
    assert counters["refused"] == {"INVAL": 1, "unwritten": 1}


def test_the_sequences_of_qemus_own_device_test_get_the_same_answers() -> None:
    unit = engine(BYTES)
    assert [
        attach(unit, 0, 0), attach(unit, 0, 444), detach(unit, 0, 1), attach(unit, 1, 0), detach(unit, 0, 0),
        detach(unit, 1, 0), attach(unit, 1, 0), map_(unit, 1, 0, 0xFFF, 0xA1000, READ),
        map_(unit, 1, 0x2000, 0x2FFF, 0xB1000, READ), detach(unit, 1, 0),
    ] == [0, wire.S_NOENT, wire.S_NOENT, 0, wire.S_INVAL, 0, 0, 0, 0, 0]  # fmt: skip
    assert [
        attach(unit, 1, 0), map_(unit, 0, 0, 0xFFF), map_(unit, 1, 0, 0xFFF), map_(unit, 1, 0, 0xFFFF),
        unmap(unit, 4, 0x10, 0xFFF), unmap(unit, 1, 0x10, 0xFFF), unmap(unit, 1, 0, 0x1000),
    ] == [0, wire.S_NOENT, 0, wire.S_INVAL, wire.S_NOENT, wire.S_RANGE, 0]  # fmt: skip


def _busy() -> Engine:
    unit = engine()
    attach(unit, 1, PLAIN)
    attach(unit, 1, HOLED)
    attach(unit, 2, DOORBELL, wire.ATTACH_F_BYPASS)
    map_(unit, 1, 0x1000, 0x2FFF, 0x5000, READ)
    unit.write_bypass(0)
    unit.fault(PLAIN, TranslationFault(wire.FAULT_R_MAPPING, "not-mapped", 0x77), READ)
    return unit


def test_a_restored_unit_behaves_like_the_one_saved() -> None:
    saved = _busy().snapshot()
    unit = engine(accept=0)

    unit.restore(copy.deepcopy(saved))

    assert unit.snapshot() == saved
    assert unit.translate(HOLED, 0x2000, 4, READ) == [(0x6000, 4)]
    assert map_(unit, 1, 0x8000, 0x8FFF) == wire.S_INVAL
    assert attach(unit, 3, DOORBELL, wire.ATTACH_F_BYPASS) == wire.S_OK


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 3),
        ("features", 1 << 50),
        ("features", "many"),
        ("domains", [{"id": 1}]),
        ("domains", [{"id": 1, "bypass": False, "endpoints": [444], "mappings": []}]),
        ("domains", [{"id": 1, "bypass": False, "endpoints": [0], "mappings": [[0, 4096, 0, 3], [0, 4096, 0, 3]]}]),
        ("domains", [{"id": 1, "bypass": False, "endpoints": [0], "mappings": [[0, 4096]]}]),
        ("domains", [{"id": 1, "bypass": False, "endpoints": [0], "mappings": [[0, 4096, 0, 8]]}]),
        ("domains", [{"id": n, "bypass": False, "endpoints": [0], "mappings": []} for n in (1, 2)]),
        ("pending_faults", ["00"]),
        ("pending_faults", ["zz"]),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused_and_changes_nothing(key: str, value: Any) -> None:
    unit = _busy()
    before = unit.snapshot()
    with pytest.raises(SnapshotError):
        unit.restore({**before, key: value})
    assert unit.snapshot() == before


@pytest.mark.parametrize(
    "regions",
    [
        (MSI, ReservedRegion(0, 16, is_msi=True)),
        (HOLE, ReservedRegion(0x9000, 0xB000)),
        (ReservedRegion(8, 8),),
    ],
)
def test_reserved_regions_a_driver_must_not_see_are_refused(regions: tuple[ReservedRegion, ...]) -> None:
    with pytest.raises(ConfigError):
        EndpointSettings(1, "bad", regions)


@pytest.mark.parametrize(
    "change",
    [
        {"page_size_mask": 0},
        {"page_size_mask": 1 << 64},
        {"input_stop": 0},
        {"input_stop": (1 << 64) + 1},
        {"domain_start": 5, "domain_stop": 5},
        {"domain_stop": (1 << 32) + 1},
        {"probe_size": -1},
        {"probe_size": (1 << 16) + 4},
    ],
)
def test_settings_the_config_space_cannot_carry_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replace(UNIT, **change)  # type: ignore[arg-type]


def test_an_endpoint_id_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError):
        Engine(UNIT, (*ENDPOINTS, EndpointSettings(PLAIN, "again")))


def test_properties_that_do_not_fit_probe_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="probe_size"):
        engine(replace(UNIT, probe_size=47))
