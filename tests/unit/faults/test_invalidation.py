"""The point invalidation: what was unmapped lives on, or "done" is said too early. Real DMA shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import flight
from tests.support.fault_scene import FaultScene, translated
from tests.support.flight import BUFFER, EMPTY, FILLED, OK, PAGE, Attachment, status
from tests.support.virtio_pci import RAM_GPA
from vdev.config import EndpointConfig
from vdev.faults.point import NO_ROOM
from vdev.functions.dma import READ, WRITE
from vdev.functions.vhost import VhostCarrier
from vdev.wire import viommu as wire
from vdev.wire.accelerator import CompletionStatus

attach = flight.attach  # a fixture
UNMAPS = {"type": "UNMAP"}
MOST = 40  # mappings that may live on, where a test says so
STALE = [(RAM_GPA + BUFFER, 1)]  # where the first byte of the buffer lives on


@pytest.fixture
def scene(attach: Attachment) -> FaultScene:
    """accel0 in domain 1 with four pages of buffer."""
    scene = FaultScene(attach)
    scene.set_up()
    return scene


# --- stale


def test_dma_reaches_what_was_unmapped(scene: FaultScene) -> None:
    scene.add("invalidation", "stale")

    assert scene.ask(scene.unmap(BUFFER)) == [OK]
    scene.fill()

    assert scene.buffer() == FILLED
    assert status(scene) == CompletionStatus.OK


def test_what_is_mapped_there_anew_is_not_reached(scene: FaultScene) -> None:
    scene.add("invalidation", "stale")

    scene.ask(scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + 8 * PAGE))
    scene.fill()

    assert (scene.buffer(), scene.buffer(8)) == (FILLED, EMPTY)


def test_it_ends_after_its_time(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", parameters={"seconds": 2})
    scene.ask(scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + 8 * PAGE))

    scene.pass_time(2.1)
    scene.fill()

    assert (scene.buffer(), scene.buffer(8)) == (EMPTY, FILLED)
    assert scene.unit.doors["accel0"].translator is scene.engine


def test_it_ends_after_so_many_accesses(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", parameters={"accesses": 2})
    scene.ask(scene.unmap(BUFFER))

    seen = [translated(scene, BUFFER + 8) for _ in range(3)]

    assert seen == [[(RAM_GPA + BUFFER + 8, 1)], [(RAM_GPA + BUFFER + 8, 1)], "not-mapped"]


def test_after_clear_nothing_is_left_of_what_has_had_its_accesses(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", parameters={"accesses": 1, "seconds": 100})
    scene.ask(scene.unmap(BUFFER))
    assert translated(scene, BUFFER) == STALE

    cleared = scene.faults.clear()

    assert (cleared.undone, scene.faults.describe()["waiting"]) == ([], 0)
    assert scene.unit.doors["accel0"].translator is scene.engine


@pytest.mark.parametrize("how", ["clear", "release", "unit reset", "host reset"])
def test_it_ends_with(scene: FaultScene, how: str) -> None:
    scene.add("invalidation", "stale", parameters={"seconds": 100})
    scene.ask(scene.unmap(BUFFER))

    if how == "clear":
        assert scene.faults.clear().undone == ["stale translations of iommu0 end: 1"]
    elif how == "release":
        assert scene.faults.release() == 1
    elif how == "host reset":
        scene.device.host_reset()
    else:
        if isinstance(scene.function, VhostCarrier):
            scene.suspend_rings()
        scene.start_unit()

    assert translated(scene, BUFFER) != STALE
    assert scene.held() == 0


def test_it_outlives_its_rule(scene: FaultScene) -> None:
    rule = scene.add("invalidation", "stale", parameters={"seconds": 100})
    scene.ask(scene.unmap(BUFFER))

    scene.faults.remove(rule)

    assert (translated(scene, BUFFER), scene.held()) == (STALE, 1)
    assert scene.ask(scene.unmap(BUFFER + PAGE)) == [OK]
    assert translated(scene, BUFFER + PAGE) == "not-mapped"


def test_an_access_half_of_which_lives_on_is_translated_by_both(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", match={"iova": hex(BUFFER + PAGE)})
    elsewhere = RAM_GPA + BUFFER + 9 * PAGE
    scene.ask(scene.unmap(BUFFER + PAGE), scene.map(BUFFER + PAGE, elsewhere))

    assert translated(scene, BUFFER + 16, 3 * PAGE - 32) == [
        (RAM_GPA + BUFFER + 16, PAGE - 16), (RAM_GPA + BUFFER + PAGE, PAGE), (RAM_GPA + BUFFER + 2 * PAGE, PAGE - 16),
    ]  # fmt: skip


def test_where_nothing_is_mapped_beside_it_the_access_faults_there(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", match={"iova": hex(BUFFER)})
    scene.ask(scene.unmap(BUFFER), scene.unmap(BUFFER + PAGE))

    scene.fill(nbytes=2 * PAGE)

    assert status(scene) == CompletionStatus.TRANSLATION_FAULT
    assert wire.Fault.parse(scene.engine.pending_faults[0]).address == BUFFER + PAGE


def test_a_right_the_old_mapping_had_not_is_the_new_one_s(scene: FaultScene) -> None:
    scene.ask(scene.unmap(BUFFER))
    readable = scene.map(BUFFER, RAM_GPA + BUFFER)
    readable.flags = wire.MAP_F_READ
    scene.add("invalidation", "stale")
    scene.ask(readable, scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + 8 * PAGE))

    assert translated(scene, BUFFER, access=READ) == STALE
    assert translated(scene, BUFFER, access=WRITE) == [(RAM_GPA + BUFFER + 8 * PAGE, 1)]


def test_of_two_that_live_on_the_older_translates(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", parameters={"seconds": 1})
    scene.ask(scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + 8 * PAGE))
    scene.pass_time(0.5)
    scene.ask(scene.unmap(BUFFER))

    first = translated(scene, BUFFER)
    scene.pass_time(0.6)
    then = translated(scene, BUFFER)
    scene.pass_time(0.5)

    assert (first, then) == (STALE, [(RAM_GPA + BUFFER + 8 * PAGE, 1)])
    assert translated(scene, BUFFER) == "not-mapped"


def test_a_detached_endpoint_goes_on_in_the_domain_it_left(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", match={"type": "DETACH"})

    assert scene.ask(scene.detach()) == [OK]
    scene.fill()

    assert scene.buffer() == FILLED


def test_it_is_the_endpoint_s_own(scene: FaultScene) -> None:
    scene.set_up("accel1", domain=1, npages=0)
    scene.add("invalidation", "stale", match={"type": "DETACH", "endpoint": "accel0"})

    scene.ask(scene.detach("accel0"), scene.detach("accel1"))

    other = scene.unit.doors["accel1"]
    assert other.translator.translate(other.endpoint_id, BUFFER, 1, READ) != STALE
    assert translated(scene, BUFFER) == STALE


def test_an_endpoint_that_is_plugged_in_anew_has_nothing_of_it(scene: FaultScene) -> None:
    scene.add("invalidation", "stale", parameters={"seconds": 100})
    scene.ask(scene.unmap(BUFFER))

    scene.remove("accel0")
    scene.machine.add_endpoint(EndpointConfig(name="accel0", bdf="01:00.0"))
    scene.ask(scene.attach())

    assert translated(scene, BUFFER) == "not-mapped"


def test_only_what_was_granted_is_an_invalidation(scene: FaultScene) -> None:
    scene.add("invalidation", "early")

    scene.ask(scene.unmap(BUFFER, domain=9), scene.detach(domain=9))

    assert scene.firings == []


def test_what_was_carried_out_counts_whatever_is_answered(scene: FaultScene) -> None:
    scene.add("request", "status", match=UNMAPS, parameters={"status": "DEVERR", "perform": True})
    scene.add("invalidation", "stale", id="lives-on")

    assert scene.ask(scene.unmap(BUFFER)) == [wire.TAILS[wire.S_DEVERR]]
    assert translated(scene, BUFFER) == STALE


def test_what_was_not_carried_out_is_none(scene: FaultScene) -> None:
    scene.add("request", "status", match=UNMAPS, parameters={"status": "OK"})
    scene.add("invalidation", "stale", id="lives-on")

    scene.ask(scene.unmap(BUFFER))

    assert [one.rule for one in scene.firings] == ["r1"]
    assert scene.engine.table.nmappings == 5


def test_no_more_is_kept_than_there_is_room_for_and_that_is_said(
    scene: FaultScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdev.faults.invalidation.MAX_STALE", MOST)
    pages = [scene.map(at << 12, RAM_GPA) for at in range(0x1000, 0x1000 + MOST + 10)]
    for first in range(0, len(pages), 8):
        assert scene.ask(*pages[first : first + 8]) == [OK] * len(pages[first : first + 8])
    scene.add("invalidation", "stale")

    scene.ask(scene.unmap(0x100_0000, len(pages) * PAGE), scene.unmap(BUFFER))

    assert translated(scene, 0x100_0000) == [(RAM_GPA, 1)]
    assert translated(scene, 0x100_0000 + MOST * PAGE) == "not-mapped"
    assert translated(scene, BUFFER) == "not-mapped"
    assert [one.note for one in scene.firings] == [
        f"mappings that live on: {MOST}, and that do not for lack of room: 10",
        "mappings that live on: 0, and that do not for lack of room: 1",
    ]


def test_what_a_reset_has_ended_takes_no_room(scene: FaultScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdev.faults.invalidation.MAX_STALE", 4)
    scene.add("invalidation", "stale", parameters={"seconds": 3600})
    scene.ask(scene.unmap(BUFFER, 4 * PAGE))

    scene.device.host_reset()
    scene.ask(scene.attach(), scene.map(BUFFER, RAM_GPA + BUFFER), scene.unmap(BUFFER))

    assert translated(scene, BUFFER) == STALE
    assert scene.firings[-1].note == "mappings that live on: 1"


def test_of_what_was_not_mapped_nothing_lives_on(scene: FaultScene) -> None:
    scene.add("invalidation", "stale")

    scene.ask(scene.unmap(BUFFER + 64 * PAGE))

    assert [one.note for one in scene.firings] == ["nothing lives on: nothing was mapped"]
    assert scene.held() == 0


def test_when_too_much_waits_for_its_time_nothing_lives_on(scene: FaultScene) -> None:
    scene.leave_no_room()
    scene.add("invalidation", "stale")

    scene.ask(scene.unmap(BUFFER))

    assert translated(scene, BUFFER) == "not-mapped"
    assert [one.note for one in scene.firings] == [NO_ROOM]


# --- with accesses in flight


def test_a_flight_by_what_lives_on_is_waited_for_like_any_other(attach: Attachment) -> None:
    scene = FaultScene(attach, latency_us=10_000)
    scene.set_up()
    scene.add("invalidation", "stale", times=1)
    scene.ask(scene.unmap(BUFFER), scene.map(BUFFER, RAM_GPA + BUFFER + 8 * PAGE))
    scene.fill()

    early = scene.ask(scene.unmap(BUFFER))
    scene.land()

    assert (early, scene.answers()) == ([], [OK])
    assert (scene.buffer(), scene.buffer(8)) == (FILLED, EMPTY)


@pytest.mark.parametrize(("accesses", "ends", "lands"), [(None, False, True), (1, False, True), (None, True, False)])
def test_revalidation_asks_what_lives_on(attach: Attachment, accesses: int | None, ends: bool, lands: bool) -> None:
    scene = FaultScene(attach, latency_us=10_000)
    scene.set_up()
    scene.engine.settings = replace(scene.engine.settings, revalidate=True)
    scene.add("invalidation", "stale", parameters={} if accesses is None else {"accesses": accesses})
    scene.ask(scene.unmap(BUFFER))
    scene.fill()

    if ends:
        scene.faults.clear()
    scene.land()

    assert scene.buffer() == (FILLED if lands else EMPTY)


def test_done_is_said_before_the_access_lands(attach: Attachment) -> None:
    scene = FaultScene(attach, latency_us=10_000)
    scene.set_up()
    scene.add("invalidation", "early", match=UNMAPS)
    scene.fill()

    early = scene.ask(scene.unmap(BUFFER))
    before = scene.buffer()
    scene.land()

    assert (early, before, scene.buffer()) == ([OK], EMPTY, FILLED)
    assert [one.note for one in scene.firings] == ["accesses that land later: 1"]


def test_the_next_answer_waits_again(attach: Attachment) -> None:
    scene = FaultScene(attach, latency_us=10_000)
    scene.set_up()
    scene.add("invalidation", "early", when={"nth": 1})
    scene.fill()

    early = scene.ask(scene.unmap(BUFFER), scene.unmap(BUFFER))
    scene.land()

    assert (early, scene.answers()) == ([OK], [OK])
