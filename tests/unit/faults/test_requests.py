"""The point request: what the driver of a unit gets back while rules stand there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import flight
from tests.support.fault_scene import FaultScene
from tests.support.flight import OK, RING_SIZE, Attachment, FlightScene
from tests.support.pasid_allocator import PlainAllocator
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES
from vdev.config import Reserved
from vdev.faults.point import NO_ROOM
from vdev.faults.requests import REORDER_SECONDS, STATUS_BY_NAME
from vdev.functions.vhost import VhostCarrier
from vdev.iommu.events import ReplyHeld
from vdev.iommu.pasid_set import PasidSet
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

attach = flight.attach  # a fixture
NOMEM, NOENT = wire.TAILS[wire.S_NOMEM], wire.TAILS[wire.S_NOENT]
MAPS = {"type": "MAP"}


@pytest.fixture
def scene(attach: Attachment) -> FaultScene:
    """accel0 in domain 1."""
    scene = FaultScene(attach)
    assert scene.ask(scene.attach()) == [OK]
    return scene


def mapped(scene: FlightScene) -> int:
    return scene.engine.table.nmappings


# --- status


@pytest.mark.parametrize("word", STATUS_BY_NAME)
def test_any_status_can_be_answered_and_nothing_is_carried_out(scene: FaultScene, word: str) -> None:
    scene.add("request", "status", match=MAPS, parameters={"status": word})

    assert scene.ask(*scene.maps(1)) == [wire.TAILS[STATUS_BY_NAME[word]]]
    assert mapped(scene) == 0


def test_a_request_may_be_carried_out_and_answered_as_if_it_were_not(scene: FaultScene) -> None:
    scene.add("request", "status", match=MAPS, parameters={"status": "NOMEM", "perform": True})

    assert scene.ask(*scene.maps(1)) == [NOMEM]
    assert mapped(scene) == 1


def test_a_refusal_may_be_told_as_granted(scene: FaultScene) -> None:
    scene.add("request", "status", match=MAPS, parameters={"status": "OK", "perform": True})

    assert scene.ask(*scene.maps(1, 1)) == [OK, OK]
    assert mapped(scene) == 1


@pytest.mark.parametrize("perform", [False, True])
def test_a_trace_shows_the_answer_the_driver_got_and_the_rule(scene: FaultScene, perform: bool) -> None:
    scene.add("request", "status", id="no-room", match=MAPS, parameters={"status": "NOMEM", "perform": perform})

    scene.ask(*scene.maps(1))

    assert scene.told[-1] == ("MAP", wire.S_NOMEM, "injected by rule no-room")


def test_what_comes_after_is_told_as_it_is(scene: FaultScene) -> None:
    scene.add("request", "status", times=1, parameters={"status": "NOMEM", "perform": True})

    scene.ask(*scene.maps(1, 1))

    assert [told[1] for told in scene.told[-2:]] == [wire.S_NOMEM, wire.S_INVAL]


def test_rules_work_while_a_trace_is_on(scene: FaultScene) -> None:
    timed: list[int] = []

    def wrap(handle: Any) -> Any:
        def timed_handle(readable: bytes | memoryview, writable_nbytes: int) -> bytes:
            timed.append(len(readable))
            answer: bytes = handle(readable, writable_nbytes)
            return answer

        return timed_handle

    scene.machine.trace_to(scene.events.append, wrap)
    scene.add("request", "status", match=MAPS, parameters={"status": "NOMEM"})
    during = scene.ask(*scene.maps(1))
    scene.machine.trace_to(None, wrap)

    assert (during, len(timed)) == ([NOMEM], 1)
    assert scene.ask(*scene.maps(1)) == [NOMEM]


def test_a_probe_is_answered_in_its_shape(scene: FaultScene) -> None:
    scene.add("request", "status", match={"type": "PROBE"}, parameters={"status": "DEVERR"})

    answer = probed(scene)

    assert answer == bytes(len(answer) - 4) + wire.TAILS[wire.S_DEVERR]


def test_what_cannot_be_parsed_is_no_request_of_ours(scene: FaultScene) -> None:
    scene.add("request", "status", id="all", parameters={"status": "NOMEM"})

    scene.requests.submit([b"\x7f\0\0\0"], [4])
    scene.requests.submit([wire.Map(wire.T_MAP, bytes(3), 1, 0, 0xFFF, 0, 3).pack()[:20]], [4])
    scene.device.queue_notified(0)
    scene.run()

    assert scene.answers() == [wire.TAILS[wire.S_UNSUPP], wire.TAILS[wire.S_INVAL]]
    assert scene.firings == []


def test_a_rule_may_name_the_endpoint_whose_domain_it_is(scene: FaultScene) -> None:
    scene.ask(scene.attach("accel1", 2))
    scene.add("request", "status", match={"type": "MAP", "endpoint": "accel1"}, parameters={"status": "NOMEM"})

    assert scene.ask(scene.map(0x1000, 0), scene.map(0x1000, 0, domain=2)) == [OK, NOMEM]


def test_the_first_of_two_rules_has_the_request(scene: FaultScene) -> None:
    scene.add("request", "status", id="first", when={"nth": 2}, match=MAPS, parameters={"status": "NOMEM"})
    scene.add("request", "status", id="second", match=MAPS, parameters={"status": "NOENT"})

    assert scene.ask(*scene.maps(1, 2, 3)) == [NOENT, NOMEM, NOENT]


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
    scene.pass_time(2)

    assert (scene.held(), cleared.undone, scene.answers()) == (0, [], [])
    assert bytes(scene.ram) == before
    assert scene.ask(scene.attach()) == [OK]


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


# --- the used ring


def test_a_chain_is_used_twice(scene: FaultScene) -> None:
    scene.add("request", "twice", when={"nth": 2}, match=MAPS)
    before = len(scene.used())

    scene.post(*scene.maps(1, 2, 3))

    first, second, again, third = scene.used()[before:]
    assert (second == again, len({first, second, third})) == (True, 3)
    assert second[1] == wire.TAIL_NBYTES
    assert mapped(scene) == 3


@pytest.mark.parametrize("nbytes", [0, 1, 5, 0xFFFF_FFFF])
def test_the_used_length_is_what_the_rule_says_and_the_answer_is_whole(scene: FaultScene, nbytes: int) -> None:
    scene.add("request", "used-length", match=MAPS, parameters={"nbytes": nbytes})

    scene.post(*scene.maps(1))

    assert scene.used()[-1][1] == nbytes
    assert scene.answers() == [OK]


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


# --- properties


def probed(scene: FaultScene) -> bytes:
    """The answer to a PROBE of accel0."""
    request = wire.Probe(wire.T_PROBE, bytes(3), scene.number["accel0"])
    scene.requests.submit([request.pack()], [scene.engine.settings.probe_size + wire.TAIL_NBYTES])
    scene.device.queue_notified(0)
    scene.run()
    (done,) = scene.requests.reap()
    return done.data[: done.used_nbytes]


REGIONS = ({"start": 0xFEE0_0000, "end": 0xFEEF_FFFF, "kind": "msi"}, {"start": 0x1000, "end": 0x1FFF})


@pytest.fixture
def reserving(attach: Attachment) -> FaultScene:
    """Whose endpoints have two reserved regions."""
    return FaultScene(attach, reserved=tuple(Reserved(**region) for region in REGIONS))


@pytest.mark.parametrize("nbytes", [0, 10, 24, 1000])
def test_properties_end_early(reserving: FaultScene, nbytes: int) -> None:
    whole = probed(reserving)
    reserving.add("request", "probe-truncate", parameters={"nbytes": nbytes})

    answer = probed(reserving)

    assert answer == whole[: min(nbytes, len(whole) - 4)].ljust(len(whole) - 4, b"\0") + OK
    assert len(list(wire.properties(whole[:-4]))) == 2


def test_properties_have_wrong_bytes_and_the_tail_has_none(reserving: FaultScene) -> None:
    whole = probed(reserving)
    reserving.add("request", "probe-corrupt", parameters={"offset": 2, "value": 0x5A, "nbytes": 3})
    few = probed(reserving)
    reserving.faults.clear()
    reserving.add("request", "probe-corrupt", parameters={"offset": 20, "value": 0x5A, "nbytes": 65535})
    many = probed(reserving)

    assert few == whole[:2] + b"\x5a" * 3 + whole[5:]
    assert many == whole[:20] + b"\x5a" * (len(whole) - 24) + OK


@pytest.mark.parametrize("do", ["probe-truncate", "probe-corrupt"])
def test_only_probes_are_met_by_what_is_done_to_properties(reserving: FaultScene, do: str) -> None:
    rule = reserving.add("request", do)

    reserving.ask(reserving.attach())
    probed(reserving)

    (described,) = reserving.faults.describe()["rules"]
    assert (described["id"], described["matched"], described["match"]) == (rule, 1, {"type": "PROBE"})


# --- nothing is left


def test_without_rules_the_cores_run_what_they_ran_before(scene: FaultScene) -> None:
    def hooks() -> tuple[object, object]:
        return scene.device.handle, scene.device.hold

    before = hooks()
    rule = scene.add("request", "status", parameters={"status": "NOMEM"})
    during = hooks()
    scene.faults.remove(rule)

    assert before[0] != during[0]
    assert during[1] is not None
    assert hooks() == before == (scene.engine.handle, None)
