"""The point request: answers that are held, dropped, or out of order."""

from __future__ import annotations

import pytest

from tests.support import fault_scene, flight
from tests.support.fault_scene import FaultScene, mapped
from tests.support.flight import OK, RING_SIZE, Attachment
from tests.support.pasid_allocator import PlainAllocator
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES
from vdev.faults.point import NO_ROOM
from vdev.faults.requests import REORDER_SECONDS
from vdev.functions.vhost import VhostCarrier
from vdev.iommu.events import ReplyHeld
from vdev.iommu.pasid_set import PasidSet
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

attach = flight.attach  # a fixture
NOMEM = wire.TAILS[wire.S_NOMEM]
MAPS = {"type": "MAP"}


scene = fault_scene.scene  # a fixture


# --- held, dropped


def test_an_answer_is_held_for_its_time_and_those_behind_it_are_not(scene: FaultScene) -> None:
    scene.add("request", "hold", when={"nth": 1}, match=MAPS, parameters={"seconds": 2})

    early = scene.ask(*scene.maps(1, 2))
    scene.pass_time(1.9)
    waiting = (scene.answers(), scene.held())
    scene.pass_time(0.2)

    assert (early, waiting) == ([OK], ([], 1))
    assert (scene.answers(), scene.held()) == ([OK], 0)
    assert mapped(scene) == 2


def test_without_a_time_it_is_held_until_it_is_released(scene: FaultScene) -> None:
    rule = scene.add("request", "hold", match=MAPS)

    scene.ask(*scene.maps(1, 2))
    scene.pass_time(5000)
    before = scene.answers()
    released = scene.faults.release(rule)
    scene.run()

    assert (before, released, scene.answers()) == ([], 2, [OK, OK])


def test_what_a_rule_holds_is_held_after_the_rule_is_gone(scene: FaultScene) -> None:
    rule = scene.add("request", "hold", match=MAPS)
    scene.ask(*scene.maps(1))

    scene.faults.remove(rule)
    scene.run()
    before = scene.answers()
    scene.faults.release(None)
    scene.run()

    assert (before, scene.answers()) == ([], [OK])


def test_a_trace_says_that_an_answer_was_held_and_why(scene: FaultScene) -> None:
    scene.add("request", "hold", id="slow", match=MAPS, parameters={"seconds": 1})
    scene.ask(*scene.maps(1))

    scene.pass_time(1)

    (told,) = [event for event in scene.events if isinstance(event, ReplyHeld)]
    assert (told.type_name, told.rule, told.fields["virt_start"]) == ("MAP", "slow", 0x1000)
    assert told.held_ns >= 900_000_000


def test_what_is_dropped_comes_only_when_all_is_cleared(scene: FaultScene) -> None:
    rule = scene.add("request", "drop", match=MAPS)
    early = scene.ask(*scene.maps(1))

    released = scene.faults.release(rule)
    scene.pass_time(5000)
    before = scene.answers()
    cleared = scene.faults.clear()
    scene.run()

    assert (early, released, before) == ([], 0, [])
    assert (scene.answers(), cleared.undone) == ([OK], ["requests of iommu0 are answered: 1"])
    assert mapped(scene) == 1


def test_a_ring_full_of_held_answers_goes_on_when_they_are_let_go(scene: FaultScene) -> None:
    scene.add("request", "hold", match=MAPS)
    pages = range(1, RING_SIZE // 2 + 1)  # two descriptors each

    early = scene.ask(*scene.maps(*pages))
    full = (scene.requests.free, scene.held())
    scene.faults.clear()
    scene.run()

    assert (early, full) == ([], ([], len(pages)))
    assert scene.answers() == [OK] * len(pages)
    assert scene.ask(*scene.maps(100)) == [OK]


@pytest.mark.parametrize("do", ["hold", "drop", "reorder"])
def test_a_reset_forgets_what_is_held(scene: FaultScene, do: str) -> None:
    scene.add("request", do, match=MAPS)
    scene.ask(*scene.maps(1))

    if isinstance(scene.function, VhostCarrier):
        scene.suspend_rings()
    scene.start_unit()
    before = bytes(scene.ram)
    cleared = scene.faults.clear()
    waiting = scene.faults.describe()["waiting"]
    scene.pass_time(2)

    assert (scene.held(), waiting, cleared.undone, scene.answers()) == (0, 0, [], [])
    assert bytes(scene.ram) == before
    assert scene.ask(scene.attach()) == [OK]


def test_what_resets_have_ended_leaves_room_for_others(scene: FaultScene) -> None:
    scene.add("request", "hold", match=MAPS, parameters={"seconds": 3600})

    for _ in range(3):
        assert scene.ask(*scene.maps(1, 2)) == []
        if isinstance(scene.function, VhostCarrier):
            scene.suspend_rings()
        scene.start_unit()
    scene.ask(*scene.maps(3))

    assert (scene.held(), scene.faults.describe()["waiting"]) == (1, 1)


def test_what_is_let_go_waits_for_its_time_no_longer(scene: FaultScene) -> None:
    scene.add("request", "hold", match=MAPS, parameters={"seconds": 3600})
    scene.ask(*scene.maps(1, 2))

    assert scene.faults.release() == 2

    assert scene.faults.describe()["waiting"] == 0


def test_what_is_due_while_the_rings_are_suspended_is_answered_when_they_are_back() -> None:
    scene = FaultScene("vhost-user")
    scene.ask(scene.attach())
    scene.add("request", "hold", match=MAPS, parameters={"seconds": 1})
    scene.ask(*scene.maps(1))

    bases = scene.suspend_rings()
    before = bytes(scene.ram)
    scene.pass_time(2)
    scene.faults.clear()
    scene.run()
    while_away = bytes(scene.ram)
    scene.enable_rings(*bases)
    scene.run()

    assert while_away == before
    assert scene.answers() == [OK]


def test_what_is_due_while_guest_memory_is_away_is_answered_when_it_is_back(scene: FaultScene) -> None:
    scene.add("request", "hold", match=MAPS, parameters={"seconds": 1})
    scene.ask(*scene.maps(1))

    memory = scene.function.memory
    (region,) = memory.remove(RAM_GPA, RAM_NBYTES)
    scene.function.memory_changed()
    scene.pass_time(2)
    before = scene.answers()
    memory.add(region)
    scene.function.memory_changed()
    scene.run()

    assert (before, scene.answers()) == ([], [OK])


def test_an_answer_that_waits_for_dma_is_held_after_that(attach: Attachment) -> None:
    scene = FaultScene(attach, latency_us=10_000)
    scene.set_up()
    scene.add("request", "hold", match={"type": "UNMAP"}, parameters={"seconds": 1})
    scene.fill()

    early = scene.ask(scene.unmap(flight.BUFFER))
    scene.land()
    landed = (scene.answers(), scene.nflights, scene.buffer())
    scene.pass_time(0.999)
    before = scene.answers()
    scene.pass_time(0.002)

    assert (early, landed, before) == ([], ([], 0, flight.FILLED), [])
    assert scene.answers() == [OK]
    assert [event.rule for event in scene.events if isinstance(event, ReplyHeld)] == ["r1"]


def test_an_answer_that_waits_for_the_host_is_changed_when_it_is_known(attach: Attachment) -> None:
    allocator = PlainAllocator()
    scene = FaultScene(attach, pasids=PasidSet(allocator))
    scene.add("request", "status", match={"type": "PASID_ALLOC"}, parameters={"status": "NOMEM", "perform": True})

    early = scene.ask(pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 5, 5))
    allocator.answer()
    scene.run()

    (answer,) = scene.answers()
    assert (early, answer[:4], answer[-4:]) == ([], b"\5\0\0\0", NOMEM)


def test_when_too_much_waits_for_its_time_nothing_more_is_held(scene: FaultScene) -> None:
    scene.leave_no_room()
    scene.add("request", "hold", match=MAPS, parameters={"seconds": 1})

    assert scene.ask(*scene.maps(1)) == [OK]
    assert scene.held() == 0
    assert [one.note for one in scene.firings] == [NO_ROOM]


# --- the order


def test_an_answer_comes_right_after_that_of_the_next_request(scene: FaultScene) -> None:
    scene.add("request", "reorder", when={"nth": 1}, match=MAPS)

    assert answered(scene, 3) == [2, 1, 3]


def test_it_may_be_after_several(scene: FaultScene) -> None:
    scene.add("request", "reorder", when={"nth": 2}, match=MAPS, parameters={"behind": 3})

    assert answered(scene, 6) == [1, 3, 4, 5, 2, 6]


def test_those_that_wait_for_the_same_one_follow_it_in_their_order(scene: FaultScene) -> None:
    scene.add("request", "reorder", when={"nth": [1, 2, 4]}, match=MAPS)

    assert answered(scene, 6) == [3, 1, 2, 5, 4, 6]


def test_where_no_later_request_comes_it_is_answered_all_the_same(scene: FaultScene) -> None:
    scene.add("request", "reorder", match=MAPS)

    early = scene.ask(*scene.maps(1))
    scene.pass_time(REORDER_SECONDS - 0.01)
    before = scene.answers()
    scene.pass_time(0.02)

    assert (early, before, scene.answers()) == ([], [], [OK])


def test_one_that_is_held_waits_for_nobody_and_one_that_is_refused_counts(scene: FaultScene) -> None:
    scene.add("request", "reorder", id="a", when={"nth": 1}, match=MAPS)
    scene.add("request", "hold", id="b", when={"nth": 2}, match=MAPS)
    scene.add("request", "status", id="c", when={"nth": 3}, match=MAPS, parameters={"status": "NOMEM"})

    assert answered(scene, 3) == [3, 1]


def answered(scene: FaultScene, count: int) -> list[int]:
    """So many MAPs in one go: their numbers, from 1, in the order of their used elements."""
    before = len(scene.used())
    scene.post(*scene.maps(*range(1, count + 1)))
    submitted = list(scene.requests.outstanding)
    return [submitted.index(head) + 1 for head, _ in scene.used()[before:]]
