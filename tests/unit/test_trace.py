"""The trace in memory: on and off, times, bounds, domains, filters, and readers that are too slow."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from tests.support.trace import ENDPOINT, FAULT, MAPPED, REFUSED, TraceRig
from vdev.errors import ConfigError
from vdev.iommu.events import EndpointAttached, EndpointDetached, UnitReset
from vdev.trace.recorder import CHUNK, MAX_NOTE, MAX_WAITING, Selection, TraceOptions


@pytest.fixture
def rig() -> TraceRig:
    return TraceRig()


def newest(rig: TraceRig, **selection: Any) -> list[dict[str, Any]]:
    return rig.trace.newest(Selection(**selection))


def parsed(chunk: bytes) -> list[dict[str, Any]]:
    return [json.loads(text) for text in chunk.splitlines()]


def test_a_recording_connects_the_sources_for_its_length_only(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions())
    rig.trace.stop()

    assert rig.switched == [True, False]


def test_what_was_recorded_stays_after_the_stop_until_the_next_start(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions())
    rig.emit(FAULT)
    rig.trace.stop()
    kept = [record["type"] for record in newest(rig)]
    rig.trace.start(TraceOptions())

    assert kept == ["START", "FAULT", "STOP"]
    assert [record["type"] for record in newest(rig)] == ["START"]


def test_a_second_recording_is_refused_while_one_runs(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions())

    with pytest.raises(ConfigError, match="trace-stop"):
        rig.trace.start(TraceOptions())


def test_memory_keeps_the_newest_and_says_how_many_were_overwritten(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions(records=10))
    for _ in range(25):
        rig.emit(MAPPED)

    described = rig.trace.describe()

    assert (described["records"], described["overwritten"]) == (10, 16)
    assert [record["seq"] for record in newest(rig, last=3)] == [23, 24, 25]


@pytest.mark.parametrize("records", [0, 1_000_001])
def test_a_ring_of_senseless_size_is_refused(rig: TraceRig, records: int) -> None:
    with pytest.raises(ConfigError, match="1000000"):
        rig.trace.start(TraceOptions(records=records))

    assert rig.switched == []


def test_a_request_is_timed_and_times_count_from_the_beginning(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions())

    def handle(readable: bytes | memoryview, writable_nbytes: int) -> bytes:
        rig.emit(MAPPED, after_us=12.3)
        return b"answer"

    rig.now_ns += 1_000_000_000
    answer = rig.trace.timed(handle)(b"", 4)
    rig.emit(FAULT)

    _, request, fault = newest(rig)
    assert answer == b"answer"
    assert (request["t"], request["duration_us"]) == (1.000012, 12.3)
    assert "duration_us" not in fault


def test_a_request_handled_outside_the_timed_wrapper_has_no_duration(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions())

    rig.emit(MAPPED)

    assert "duration_us" not in newest(rig)[-1]


def test_a_map_names_the_endpoints_that_are_in_its_domain_at_that_moment(rig: TraceRig) -> None:
    rig.attached = {("iommu0", 1): (0x200,)}
    rig.trace.start(TraceOptions())
    rig.emit(EndpointAttached("iommu0", ENDPOINT, 1, False))
    rig.emit(MAPPED)
    rig.emit(EndpointDetached("iommu0", 0x200, 1))
    rig.emit(MAPPED)
    rig.emit(UnitReset("iommu0", "device"))
    rig.emit(MAPPED)

    maps = [record.get("endpoints") for record in newest(rig) if record["type"] == "MAP"]

    assert maps == [["02:00.0", "01:00.0"], ["01:00.0"], None]


def test_a_recording_with_a_filter_keeps_only_what_fits(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions(statuses=["!OK"]))
    rig.emit(MAPPED)
    rig.emit(REFUSED)
    rig.emit(FAULT)

    assert [record.get("status") for record in newest(rig)] == [None, "INVAL", "not-mapped"]


def test_a_query_chooses_among_what_is_kept_and_counts_only_what_fits(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions())
    for event in (FAULT, MAPPED, FAULT, MAPPED, REFUSED):
        rig.emit(event)

    chosen = newest(rig, last=2, types=["map"])

    assert [(record["seq"], record["status"]) for record in chosen] == [(4, "OK"), (5, "INVAL")]


def test_a_note_is_cut_and_is_nothing_while_the_trace_is_off(rig: TraceRig) -> None:
    rig.trace.note("unheard")
    rig.trace.start(TraceOptions())
    rig.trace.note("x" * 10_000)

    (_, note) = newest(rig)
    assert note["fields"]["text"] == "x" * MAX_NOTE


async def test_a_follower_gets_what_is_there_then_what_comes_and_is_all_that_keeps_the_trace_on(rig: TraceRig) -> None:
    async with aclosing(rig.trace.follow(Selection())) as lines:
        first = parsed(await anext(lines))
        rig.emit(FAULT)
        second = parsed(await anext(lines))
        while_followed = list(rig.switched)

    assert (first, [record["type"] for record in second]) == ([], ["FAULT"])
    assert (while_followed, rig.switched) == ([True], [True, False])
    assert rig.trace.describe()["followers"] == 0


async def test_a_follower_that_does_not_want_to_wait_gets_what_is_there(rig: TraceRig) -> None:
    rig.trace.start(TraceOptions())
    rig.emit(FAULT)

    chunks = [parsed(chunk) async for chunk in rig.trace.follow(Selection(follow=False))]

    assert [record["type"] for chunk in chunks for record in chunk] == ["START", "FAULT"]


async def test_a_reader_too_slow_loses_records_and_is_told_how_many_where_they_are_missing(rig: TraceRig) -> None:
    async with aclosing(rig.trace.follow(Selection(last=0))) as lines:
        await anext(lines)
        for _ in range(MAX_WAITING + 7):
            rig.emit(MAPPED)
        records: list[dict[str, Any]] = []
        while not records or records[-1]["kind"] != "lost":
            records += parsed(await anext(lines))
        rig.emit(FAULT)
        records += parsed(await anext(lines))

    assert [record["type"] for record in records[MAX_WAITING:]] == ["LOST", "FAULT"]
    assert records[MAX_WAITING]["fields"] == {"count": 7}
    assert records[-1]["seq"] == MAX_WAITING + 7


async def test_a_filtered_follower_hears_of_its_own_only_and_others_get_their_turn(rig: TraceRig) -> None:
    async with aclosing(rig.trace.follow(Selection(types=["FAULT"]))) as lines:
        await anext(lines)
        for _ in range(3 * CHUNK):
            rig.emit(MAPPED)
        rig.emit(FAULT)

        records = parsed(await anext(lines))

    assert [record["type"] for record in records] == ["FAULT"]


async def test_a_wrong_filter_is_refused_before_anything_is_connected(rig: TraceRig) -> None:
    with pytest.raises(ConfigError, match="there is no 'accel9'"):
        rig.trace.check(Selection(endpoints=["accel9"]))

    assert rig.switched == []
