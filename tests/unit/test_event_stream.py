"""events-follow: the schema's events as lines, within their limits, to followers that read and to those that do not."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from vdev.control.event_limits import PER_SECOND
from vdev.control.event_log import EventLog
from vdev.control.event_stream import MAX_WAITING, Around, EventStream, events_commands
from vdev.control.monitor_events import EVENTS, is_told
from vdev.control.pasid_events import PasidLease, PasidsReclaimed
from vdev.faults.events import FaultInjected, FaultWantsQemu
from vdev.faults.rule import Occurrence
from vdev.iommu.events import (
    BypassChanged,
    EndpointAdded,
    EndpointAttached,
    EndpointDetached,
    EndpointRemoved,
    EndpointStage,
    FaultRaised,
    FaultsDropped,
    PasidQuotaChanged,
    PasidQuotaExceeded,
    RequestHandled,
    UnitReset,
)
from vdev.qapi.check import check_data, check_return
from vdev.qapi.schema import schema
from vdev.wire import viommu as wire

WALL_US = 1_700_000_000_000_250
DETACH = wire.Detach(wire.T_DETACH, bytes(3), 2, 0x100)
STAMP = {"seconds": 1_700_000_000, "microseconds": 250}
SAMPLES: list[tuple[object, str, dict[str, Any]]] = [
    (
        FaultRaised("u", 0x100, "not-mapped", 2, 0x5000), "FAULT",
        {"unit": "u", "id": 0x100, "endpoint": "accel0", "reason": "not-mapped", "access": "write", "iova": 0x5000,
         "suppressed": 0},
    ),
    (
        FaultRaised("u", 0x999, "no-domain", 1, 0), "FAULT",
        {"unit": "u", "id": 0x999, "reason": "no-domain", "access": "read", "iova": 0, "suppressed": 0},
    ),
    (
        FaultRaised("u", 0x100, "pasid-not-attached", 1, 0x5000, 0x11), "FAULT",
        {"unit": "u", "id": 0x100, "endpoint": "accel0", "reason": "pasid-not-attached", "access": "read",
         "iova": 0x5000, "pasid": 0x11, "suppressed": 0},
    ),
    (FaultsDropped("u", 17), "FAULTS_DROPPED", {"unit": "u", "total": 17}),
    (
        RequestHandled("u", "DETACH", wire.S_INVAL, DETACH, "why"), "REQUEST_REFUSED",
        {"unit": "u", "type": "DETACH", "status": "INVAL", "id": 0x100, "domain": 2, "problem": "why", "suppressed": 0},
    ),
    (
        RequestHandled("u", "0x77", None, None, "unknown type", (8, 0)), "REQUEST_REFUSED",
        {"unit": "u", "type": "0x77", "problem": "unknown type", "suppressed": 0},
    ),
    (
        EndpointAttached("u", 0x100, 3, True), "ENDPOINT_ATTACHED",
        {"unit": "u", "id": 0x100, "endpoint": "accel0", "domain": 3, "bypass": True, "suppressed": 0},
    ),
    (
        EndpointDetached("u", 0x100, 3), "ENDPOINT_DETACHED",
        {"unit": "u", "id": 0x100, "endpoint": "accel0", "domain": 3, "suppressed": 0},
    ),
    (UnitReset("u", "host"), "UNIT_RESET", {"unit": "u", "kind": "host", "suppressed": 0}),
    (BypassChanged("u", False), "BYPASS_CHANGED", {"unit": "u", "bypass": False}),
    (PasidQuotaExceeded(10, 12), "PASID_QUOTA_EXCEEDED", {"quota": 10, "used": 12, "suppressed": 0}),
    (PasidQuotaChanged(1000, 1500), "PASID_QUOTA_CHANGED", {"before": 1000, "after": 1500}),
    (PasidLease("held"), "PASID_LEASE", {"state": "held"}),
    (PasidLease("lost", "it is gone"), "PASID_LEASE", {"state": "lost", "problem": "it is gone"}),
    (
        PasidsReclaimed((1, 2, 3, 7), "stuck"), "PASID_RECLAIMED",
        {"count": 4, "pasids": [{"first": 1, "last": 3}, {"first": 7, "last": 7}], "reason": "stuck"},
    ),
    (
        FaultInjected("r1", 2, "request", "status", {"unit": "u", "type": "MAP", "domain": 1, "iova": 0x1000,
                      "iova_end": 0x1FFF}, "", {"status": "NOMEM"}), "FAULT_INJECTED",
        {"rule": "r1", "n": 2, "at": "request", "do": "status", "unit": "u", "type": "MAP", "domain": 1,
         "text": "rule r1, 2: status (status=NOMEM) at request: unit=u type=MAP domain=1 iova=0x1000..0x1fff",
         "iova": 0x1000, "iova-end": 0x1FFF, "suppressed": 0},
    ),
    (
        FaultInjected("r1", 1, "dma", "drop", {"unit": "u", "endpoint": 0x100, "access": "read"}), "FAULT_INJECTED",
        {"rule": "r1", "n": 1, "at": "dma", "do": "drop", "unit": "u", "id": 0x100, "endpoint": "accel0",
         "access": "read", "text": "rule r1, 1: drop at dma: unit=u endpoint=01:00.0 access=read", "suppressed": 0},
    ),
    (
        FaultInjected("r1", 1, "timer", "remove", {}, "not done: it is gone"), "FAULT_INJECTED",
        {"rule": "r1", "n": 1, "at": "timer", "do": "remove", "note": "not done: it is gone",
         "text": "rule r1, 1: remove at timer; not done: it is gone", "suppressed": 0},
    ),
    (
        FaultWantsQemu("r1", 1, "pcie_aer_inject_error accel0 UNSUP"), "FAULT_WANTS_QEMU",
        {"rule": "r1", "n": 1, "command-line": "pcie_aer_inject_error accel0 UNSUP"},
    ),
    (EndpointAdded("u", 1, "e"), "ENDPOINT_ADDED", {"unit": "u", "id": 1, "endpoint": "e"}),
    (EndpointRemoved("u", 1, "e"), "ENDPOINT_REMOVED", {"unit": "u", "id": 1, "endpoint": "e"}),
    (
        EndpointStage("u", 1, "e", "probed"), "ENDPOINT_STAGE",
        {"unit": "u", "id": 1, "endpoint": "e", "stage": "probed"},
    ),
]  # fmt: skip


class Rig:
    """A stream behind an event log, with a clock and timers of the test's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.log = EventLog(lambda: self.now)
        self.names = {("u", 0x100): "accel0"}
        self.stream = EventStream(
            Around(
                self._connect,
                names=lambda unit, number: self.names.get((unit, number)),
                clock=lambda: self.now,
                wall_us=lambda: WALL_US,
                schedule=lambda delay_s, callback: self.timers.append((self.now + delay_s, callback)),
            )
        )

    def _connect(self, follower: Callable[[object], None] | None) -> None:
        self.log.follower = follower

    def pass_to(self, now: float) -> None:
        """Time goes on, and timers fire."""
        for when, callback in [timer for timer in self.timers if timer[0] <= now]:
            self.timers.remove((when, callback))
            self.now = when
            callback()
        self.now = now


async def lines(stream: AsyncGenerator[bytes, None]) -> list[dict[str, Any]]:
    """What waits; TimeoutError when nothing does."""
    async with asyncio.timeout(5):
        return [json.loads(line) for line in (await anext(stream)).splitlines()]


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(("event", "name", "data"), SAMPLES)
async def test_an_event_is_told_in_the_schemas_words(rig: Rig, event: object, name: str, data: dict[str, Any]) -> None:
    follower = rig.stream.follow()
    rig.log.emit(event)

    (told,) = await lines(follower)

    check_data(schema().events[name].members, data)
    assert told == {"event": name, "data": data, "timestamp": STAMP}
    await follower.aclose()


def test_every_typed_event_has_a_sample_and_its_limit_is_what_the_schema_says() -> None:
    assert {type(event) for event, _, _ in SAMPLES} == set(EVENTS)
    for told in EVENTS.values():
        described = schema().events[told.name]
        counted = any(member.name == "suppressed" for member in described.members)
        assert counted == (told.key is not None and told.counted)
        assert ("10 a second" in " ".join(described.doc.split())) == (told.key is not None)


def test_whatever_a_rule_can_meet_is_in_the_schemas_words() -> None:
    met = Occurrence("request", "u", "MAP", 0x100, 1, 2, 0x1000, 0x2000, "read", "accel0", 3, 0x10)
    assert all(getattr(met, field.name) not in (None, "") for field in fields(Occurrence))

    for one in (met, replace(met, endpoint=0x999), Occurrence("timer")):
        event = FaultInjected("r", 1, one.point, "x", one.fields(), "why")
        told = EVENTS[FaultInjected].data(event, lambda unit, number: None)
        check_data(schema().events["FAULT_INJECTED"].members, {**told, "suppressed": 0})


def test_granted_requests_and_others_business_are_not_told() -> None:
    assert not is_told(RequestHandled("u", "MAP", wire.S_OK))
    assert not is_told(object())


async def test_granted_requests_reach_no_follower(rig: Rig) -> None:
    follower = rig.stream.follow()
    reached: list[object] = []
    rig.log.follower = reached.append

    rig.log.emit(RequestHandled("u", "MAP", wire.S_OK))
    rig.log.emit(RequestHandled("u", "MAP", wire.S_INVAL))

    assert len(reached) == 1
    await follower.aclose()


async def test_a_flood_is_told_ten_times_and_its_end_a_second_later(rig: Rig) -> None:
    follower = rig.stream.follow()
    for iova in range(500):
        rig.log.emit(FaultRaised("u", 0x100, "not-mapped", 1, iova))
    at_once = await lines(follower)
    rig.pass_to(101.0)
    later = await lines(follower)

    assert [event["data"]["iova"] for event in at_once] == list(range(PER_SECOND))
    assert [(event["data"]["iova"], event["data"]["suppressed"]) for event in later] == [(499, 489)]
    assert rig.timers == []
    await follower.aclose()


async def test_of_an_uncounted_kind_the_newest_is_always_told(rig: Rig) -> None:
    follower = rig.stream.follow()
    for count in range(501):
        rig.log.emit(BypassChanged("u", bool(count % 2)))
    await lines(follower)
    rig.pass_to(101.0)

    assert [event["data"] for event in await lines(follower)] == [{"unit": "u", "bypass": False}]
    await follower.aclose()


async def test_the_name_is_that_of_the_time_of_the_event(rig: Rig) -> None:
    follower = rig.stream.follow()
    for iova in range(PER_SECOND + 1):
        rig.log.emit(FaultRaised("u", 0x100, "not-mapped", 1, iova))
    await lines(follower)
    rig.names = {("u", 0x100): "another"}
    rig.pass_to(101.0)

    assert [event["data"]["endpoint"] for event in await lines(follower)] == ["accel0"]
    await follower.aclose()


async def test_one_that_does_not_read_loses_events_and_learns_how_many(rig: Rig) -> None:
    silent, reader = rig.stream.follow(), rig.stream.follow()
    total = MAX_WAITING + 30
    read: list[dict[str, Any]] = []
    for number in range(total):
        rig.log.emit(EndpointAdded("u", number, "e"))
        read += await lines(reader)

    told: list[dict[str, Any]] = []
    while len(told) < MAX_WAITING + 1:
        told += await lines(silent)

    assert [event["data"]["id"] for event in read] == list(range(total))
    assert [event["data"]["id"] for event in told[:MAX_WAITING]] == list(range(MAX_WAITING))
    assert told[MAX_WAITING] == {"event": "EVENTS_LOST", "data": {"count": 30}, "timestamp": STAMP}
    check_data(schema().events["EVENTS_LOST"].members, told[MAX_WAITING]["data"])
    for follower in (silent, reader):
        await follower.aclose()


async def test_nothing_is_connected_before_the_first_and_after_the_last(rig: Rig) -> None:
    assert rig.log.follower is None
    first, second = rig.stream.follow(), rig.stream.follow()
    rig.log.emit(UnitReset("u", "device"))
    for follower in (first, second):
        assert len(await lines(follower)) == 1
    await first.aclose()
    assert rig.log.follower is not None

    await second.aclose()

    assert rig.log.follower is None


async def test_a_stream_that_nobody_began_is_forgotten(rig: Rig) -> None:
    follower = rig.stream.follow()
    del follower
    gc.collect()
    rig.log.emit(UnitReset("u", "device"))

    assert rig.stream.nfollowers == 0
    assert rig.log.follower is None


def test_the_command_answers_the_empty_object(rig: Rig) -> None:
    reply = events_commands(rig.stream)["events-follow"].answer()

    check_return(schema().commands["events-follow"].returns, reply)


def test_a_reclaim_of_very_many_pasids_is_told_in_so_many_ranges_and_counted() -> None:
    told = EVENTS[PasidsReclaimed]

    data = told.data(PasidsReclaimed(tuple(range(2, 2002, 2)), ""), lambda unit, number: None)

    assert data["count"] == 1000
    assert data["pasids"] == [{"first": pasid, "last": pasid} for pasid in range(2, 130, 2)]
