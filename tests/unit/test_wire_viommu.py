"""The records of vdev/wire/viommu.py against a table of sizes and offsets taken from the specification."""

from __future__ import annotations

from dataclasses import fields
from struct import unpack_from

import pytest

from vdev.wire import viommu as wire
from vdev.wire.record import Record

RECORDS: tuple[type[Record], ...] = (
    wire.Config,
    wire.Head,
    wire.Attach,
    wire.Detach,
    wire.Map,
    wire.Unmap,
    wire.Probe,
    wire.Property,
    wire.ResvMem,
    wire.Fault,
)
SIZES = {
    wire.Config: 64,
    wire.Head: 4,
    wire.Attach: 20,
    wire.Detach: 20,
    wire.Map: 36,
    wire.Unmap: 28,
    wire.Probe: 72,
    wire.Property: 4,
    wire.ResvMem: 24,
    wire.Fault: 24,
}
# record, field: offset, format
OFFSETS: dict[tuple[type[Record], str], tuple[int, str]] = {
    (wire.Config, "page_size_mask"): (0, "<Q"),
    (wire.Config, "input_start"): (8, "<Q"),
    (wire.Config, "input_end"): (16, "<Q"),
    (wire.Config, "domain_start"): (24, "<I"),
    (wire.Config, "domain_end"): (28, "<I"),
    (wire.Config, "probe_size"): (32, "<I"),
    (wire.Config, "bypass"): (36, "<B"),
    (wire.Config, "reserved"): (37, "<3s"),
    (wire.Config, "extension"): (40, "<24s"),
    (wire.Head, "type"): (0, "<B"),
    (wire.Attach, "domain"): (4, "<I"),
    (wire.Attach, "endpoint"): (8, "<I"),
    (wire.Attach, "flags"): (12, "<I"),
    (wire.Attach, "reserved"): (16, "<4s"),
    (wire.Detach, "domain"): (4, "<I"),
    (wire.Detach, "endpoint"): (8, "<I"),
    (wire.Detach, "reserved"): (12, "<8s"),
    (wire.Map, "domain"): (4, "<I"),
    (wire.Map, "virt_start"): (8, "<Q"),
    (wire.Map, "virt_end"): (16, "<Q"),
    (wire.Map, "phys_start"): (24, "<Q"),
    (wire.Map, "flags"): (32, "<I"),
    (wire.Unmap, "domain"): (4, "<I"),
    (wire.Unmap, "virt_start"): (8, "<Q"),
    (wire.Unmap, "virt_end"): (16, "<Q"),
    (wire.Unmap, "reserved"): (24, "<4s"),
    (wire.Probe, "endpoint"): (4, "<I"),
    (wire.Probe, "reserved"): (8, "<64s"),
    (wire.ResvMem, "type"): (0, "<H"),
    (wire.ResvMem, "length"): (2, "<H"),
    (wire.ResvMem, "subtype"): (4, "<B"),
    (wire.ResvMem, "reserved"): (5, "<3s"),
    (wire.ResvMem, "start"): (8, "<Q"),
    (wire.ResvMem, "end"): (16, "<Q"),
    (wire.Fault, "reason"): (0, "<B"),
    (wire.Fault, "reserved"): (1, "<3s"),
    (wire.Fault, "flags"): (4, "<I"),
    (wire.Fault, "endpoint"): (8, "<I"),
    (wire.Fault, "reserved1"): (12, "<I"),
    (wire.Fault, "address"): (16, "<Q"),
}


def _sample(record: type[Record]) -> Record:
    return record.parse(bytes(range(1, record.layout.size + 1)))


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_has_the_size_of_the_specification(record: type[Record]) -> None:
    assert record.layout.size == SIZES[record]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_names_every_value_of_its_layout(record: type[Record]) -> None:
    values = record.layout.unpack(bytes(record.layout.size))

    assert record.__slots__ == tuple(field.name for field in fields(record))  # type: ignore[arg-type]
    assert len(values) == len(record.__slots__)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_survives_a_round_trip_at_any_offset(record: type[Record]) -> None:
    sample = _sample(record)

    assert sample.pack() == bytes(range(1, record.layout.size + 1))
    assert record.parse(memoryview(b"???" + sample.pack()), 3) == sample


@pytest.mark.parametrize(("key", "place"), OFFSETS.items(), ids=lambda part: str(part))
def test_a_field_lies_where_the_specification_puts_it(key: tuple[type[Record], str], place: tuple[int, str]) -> None:
    record, name = key
    sample = _sample(record)

    assert unpack_from(place[1], sample.pack(), place[0])[0] == getattr(sample, name)


def test_tails_are_four_bytes_with_the_status_first_and_zeros_after() -> None:
    expected = {status: bytes([status, 0, 0, 0]) for status in range(9)}

    assert dict(wire.TAILS.items()) == expected


def test_a_resv_mem_length_excludes_its_header() -> None:
    raw = wire.resv_mem(0xFEE00000, 0xFEF00000, is_msi=True)

    assert raw.hex() == "01001400" + "01000000" + "0000e0fe00000000" + "ffffeffe00000000"


def test_properties_are_walked_by_length_and_end_at_type_zero() -> None:
    unknown = wire.Property(0xF03, 6).pack() + b"sixsix"
    buf = unknown + wire.resv_mem(0, 16, is_msi=False) + bytes(8) + wire.resv_mem(32, 64, is_msi=False)

    found = list(wire.properties(buf))

    assert [kind for kind, _ in found] == [0xF03, wire.PROBE_T_RESV_MEM]
    assert found[0][1] == b"sixsix"


@pytest.mark.parametrize("buf", [b"", b"\1", wire.Property(1, 21).pack() + bytes(20)])
def test_a_property_cut_short_ends_the_list(buf: bytes) -> None:
    assert list(wire.properties(buf)) == []


def test_feature_bits_are_those_of_the_specification() -> None:
    by_name = {name: mask for mask, name in wire.FEATURE_NAMES.items()}

    assert by_name == {
        "INPUT_RANGE": 1 << 0,
        "DOMAIN_RANGE": 1 << 1,
        "MAP_UNMAP": 1 << 2,
        "BYPASS": 1 << 3,
        "PROBE": 1 << 4,
        "MMIO": 1 << 5,
        "BYPASS_CONFIG": 1 << 6,
    }
