"""Replies and events as text for people."""

from __future__ import annotations

import time
from typing import Any

import pytest

from vdev.ctl.text import event_line, lines_of
from vdev.qapi.model import Builtin, ListOf, Type
from vdev.qapi.schema import schema

TYPES = schema().types
ANY = Builtin("any")


def text(given: Type | None, value: Any) -> str:
    return "\n".join(lines_of(given, value))


def test_a_list_of_flat_objects_is_a_table_with_addresses_in_hex() -> None:
    mappings = [
        {"virt-start": 0x1000, "virt-end": 0x1FFF, "phys-start": 0x8000000, "flags": ["read", "write"]},
        {"virt-start": 0x10000, "virt-end": 0x10FFF, "phys-start": 0, "flags": []},
    ]

    assert text(ListOf(TYPES["Mapping"]), mappings) == (
        "virt-start  virt-end  phys-start  flags\n"
        "    0x1000    0x1fff   0x8000000  read, write\n"
        "   0x10000   0x10fff         0x0  none"
    )


def test_what_is_absent_in_a_row_is_a_dash_and_what_no_row_has_is_left_out() -> None:
    slots = [{"bdf": "01:00.0", "unit": "iommu0", "port": "port1", "endpoint": "accel0"}]
    free = [{"bdf": "02:00.0", "unit": "iommu0", "port": "port2"}]

    assert text(ListOf(TYPES["Slot"]), slots + free).splitlines()[-1] == "02:00.0  iommu0  port2  -"
    assert "endpoint" not in text(ListOf(TYPES["Slot"]), free)


def test_an_object_has_a_line_for_each_member_and_others_indented() -> None:
    translation = {
        "endpoint": "accel0",
        "allowed": False,
        "reason": "not-mapped",
        "steps": [{"step": "domain", "ok": True, "text": "domain 1"}, {"step": "mapping", "ok": False, "text": "none"}],
        "pieces": [],
    }

    assert text(TYPES["Translation"], translation) == (
        "endpoint: accel0\n"
        "allowed:  no\n"
        "reason:   not-mapped\n"
        "steps:\n"
        "  step     ok   text\n"
        "  domain   yes  domain 1\n"
        "  mapping  no   none\n"
        "pieces:   none"
    )


def test_objects_with_structure_stand_below_each_other() -> None:
    group = {"id": 256, "unit": "iommu0", "endpoints": ["a", "b"], "reserved": [{"start": 0xFEE00000, "end": 1 << 63}]}

    assert text(ListOf(TYPES["Group"]), [group, {**group, "reserved": []}]) == (
        "- id:        256\n"
        "  unit:      iommu0\n"
        "  endpoints: a, b\n"
        "  reserved:\n"
        "         start                 end\n"
        "    0xfee00000  0x8000000000000000\n"
        "- id:        256\n"
        "  unit:      iommu0\n"
        "  endpoints: a, b\n"
        "  reserved:  none"
    )


def test_what_has_no_type_is_shown_by_what_it_is() -> None:
    value = {"a": [1, 2], "iova": 4096, "deep": {"x": [{"y": None}], "z": {}}, "share": 0.25, "on": True}

    assert text(ANY, value) == (
        "a:     1, 2\niova:  0x1000\ndeep:\n  x:\n    - y: none\n  z: none\nshare: 0.25\non:    yes"
    )


@pytest.mark.parametrize(
    ("given", "value", "shown"),
    [(None, {}, ""), (ListOf(ANY), [], "none"), (ANY, {}, ""), (ANY, "word", "word"), (Builtin("int"), 42, "42")],
)
def test_little_is_shown_as_little(given: Type | None, value: Any, shown: str) -> None:
    assert text(given, value) == shown


def test_an_event_is_one_line_with_local_time() -> None:
    event = {
        "event": "FAULT",
        "timestamp": {"seconds": 1700000000, "microseconds": 1500},
        "data": {"unit": "iommu0", "id": 256, "access": "write", "iova": 4096, "suppressed": 0},
    }
    clock = time.strftime("%H:%M:%S", time.localtime(1700000000))

    line = event_line(event, schema().events["FAULT"].members)

    assert line == f"{clock}.001500 FAULT unit=iommu0 id=256 access=write iova=0x1000 suppressed=0"
