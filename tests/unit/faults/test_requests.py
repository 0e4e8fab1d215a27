"""The point request: what the driver of a unit gets back while rules stand there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import fault_scene, flight
from tests.support.fault_scene import FaultScene, mapped
from tests.support.flight import OK, Attachment
from vdev.config import Reserved
from vdev.faults.requests import STATUS_BY_NAME
from vdev.wire import viommu as wire

attach = flight.attach  # a fixture
NOMEM, NOENT = wire.TAILS[wire.S_NOMEM], wire.TAILS[wire.S_NOENT]
MAPS = {"type": "MAP"}


scene = fault_scene.scene  # a fixture


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
