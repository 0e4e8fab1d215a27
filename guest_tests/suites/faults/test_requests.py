"""Requests whose answers are not what they should be, as a driver sees them; and that the same seed does it again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from bursts import COME_S, DOMAIN, EP, FENCE, Burst, map_pages
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload.direct import NoAnswer, RequestRefused, RingFull, RingViolation, Status, Viommu
from guest_tests.payload.direct.wait import until
from guest_tests.payload.direct.wire import TAIL_NBYTES, Probe
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.host import Host

MAPS = {"type": "MAP"}
HURRY_S = 0.2  # for an answer that does not come


@pytest.fixture
def unit(viommu: Viommu) -> Viommu:
    """The unit with an endpoint in a domain, so that MAP has somewhere to map."""
    viommu.attach(domain=DOMAIN, endpoint=EP)
    return viommu


def anew(unit: Viommu) -> None:
    """As the fixture leaves it, whatever was before."""
    unit.start()
    unit.attach(domain=DOMAIN, endpoint=EP)


def nmappings(host: Host) -> int:
    (state,) = host.control("query-iommu")
    return int(state["mappings"])


def statuses(unit: Viommu, count: int) -> list[Any]:
    return [answer.status for answer in unit.submit(map_pages(count))]


# --- status


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("perform", [False, True])
def test_a_request_is_answered_with_any_status_carried_out_or_not(
    unit: Viommu, faults: Faults, host: Host, status: Status, perform: bool
) -> None:
    rule = faults.add("request", "status", match=MAPS, when={"nth": 2}, status=status.name, perform=perform)

    assert statuses(unit, 3) == [Status.OK, status, Status.OK]
    assert nmappings(host) == (3 if perform else 2)
    assert rule.fired == 1


def test_the_library_raises_what_it_is_told(unit: Viommu, faults: Faults) -> None:
    faults.add("request", "status", match={"type": "PROBE"}, status="DEVERR")

    with pytest.raises(RequestRefused, match="DEVERR"):
        unit.probe(EP)


def test_a_trace_has_the_answer_and_the_rule(unit: Viommu, faults: Faults, host: Host) -> None:
    faults.add("request", "status", id="no-room", match=MAPS, status="NOMEM")

    statuses(unit, 1)

    (record,) = host.control("query-trace", last=1, types=["MAP"])["newest"]
    assert (record["status"], record["fields"]["problem"]) == ("NOMEM", "injected by rule no-room")


# --- held and dropped


def test_an_answer_is_held_until_it_is_released_and_others_are_not(unit: Viommu, faults: Faults) -> None:
    rule = faults.add("request", "hold", match=MAPS, when={"nth": 2})

    burst = Burst(unit, map_pages(3))
    early, held = burst.numbers(), rule.held
    released = rule.release()

    assert (early, held, released) == ([0, 2, FENCE], 1, 1)
    assert burst.wait(4) == [0, 2, FENCE, 1]
    assert burst.chains[1].written() == bytes(TAIL_NBYTES)


def test_the_library_gives_up_and_takes_no_late_answer_for_the_next_one(
    unit: Viommu, faults: Faults, host: Host
) -> None:
    rule = faults.add("request", "hold", match=MAPS)

    with pytest.raises(NoAnswer):
        unit.requests.send_chain(unit.chain(map_pages(1)[0]), HURRY_S)
    rule.release()

    assert until(lambda: unit.requests.ring.has_used, COME_S)
    assert unit.probe(EP) is not None
    assert unit.requests.ring.nlate == 1
    assert nmappings(host) == 1


def test_an_answer_is_held_for_its_time_over_a_stop_of_the_machine(unit: Viommu, faults: Faults, host: Host) -> None:
    faults.add("request", "hold", match=MAPS, when={"nth": 1}, seconds=1.0)

    burst = Burst(unit, map_pages(2))
    host.pause(1.5)

    assert burst.wait(3) == [1, FENCE, 0]
    assert burst.chains[0].written() == bytes(TAIL_NBYTES)


def test_a_dropped_answer_comes_when_all_is_cleared(unit: Viommu, faults: Faults, host: Host) -> None:
    rule = faults.add("request", "drop", match=MAPS, when={"nth": 1})

    burst = Burst(unit, map_pages(2))
    early, released = burst.numbers(), rule.release()
    undone = faults.clear()["undone"]

    assert (early, released) == ([1, FENCE], 0)
    assert burst.wait(3) == [1, FENCE, 0]
    assert undone == ["requests of iommu0 are answered: 1"]
    assert nmappings(host) == 2


@pytest.mark.parametrize("do", ["hold", "drop"])
def test_a_ring_full_of_what_is_not_answered_works_again_afterwards(
    unit: Viommu, faults: Faults, host: Host, do: str
) -> None:
    faults.add("request", do, match=MAPS)
    nmaps = unit.requests.ring.size // 2  # two descriptors each

    burst = Burst(unit, map_pages(nmaps), fenced=False)
    assert until(lambda: sum(plan_held(host)) == nmaps, COME_S)
    with pytest.raises(RingFull):
        unit.chain(map_pages(1)[0])
    faults.clear()

    assert sorted(burst.wait(nmaps)) == list(range(nmaps))
    assert all(chain.written() == bytes(TAIL_NBYTES) for chain in burst.chains)


def plan_held(host: Host) -> list[int]:
    """How much is held for each rule."""
    return [rule["held"] for rule in host.control("query-fault-plan")["rules"]]


@pytest.mark.parametrize("do", ["hold", "drop", "reorder"])
def test_a_reset_forgets_what_was_not_answered(unit: Viommu, faults: Faults, host: Host, do: str) -> None:
    faults.add("request", do, match=MAPS)
    Burst(unit, map_pages(4), fenced=False)
    assert until(lambda: sum(plan_held(host)) == 4, COME_S)

    anew(unit)
    held = plan_held(host)
    faults.clear()

    assert held == [0]
    assert statuses(unit, 3) == [Status.OK] * 3


# --- the used ring


def test_a_chain_is_used_twice_and_the_library_takes_the_ring_for_broken(unit: Viommu, faults: Faults) -> None:
    faults.add("request", "twice", match=MAPS, when={"nth": 2})

    burst = Burst(unit, map_pages(3))

    assert burst.wait(5) == [0, 1, 1, 2, FENCE]
    assert burst.used()[1] == burst.used()[2] == (1, TAIL_NBYTES)
    with pytest.raises(RingViolation, match="which is not out"):
        unit.requests.ring.reap()


def test_such_a_ring_goes_over_a_stop_of_the_machine_and_ends_with_a_reset(
    unit: Viommu, faults: Faults, host: Host
) -> None:
    faults.add("request", "twice", match=MAPS)
    Burst(unit, map_pages(20)).wait(41)

    host.pause(0.2)
    assert [line.split(":")[0] for line in faults.clear()["terminal"]] == ["twice"]
    anew(unit)

    assert statuses(unit, 3) == [Status.OK] * 3


@pytest.mark.parametrize("nbytes", [0, 3, 5, 0xFFFF_FFFF])
def test_the_used_length_is_wrong_and_the_answer_is_whole(unit: Viommu, faults: Faults, nbytes: int) -> None:
    faults.add("request", "used-length", match=MAPS, when={"nth": 2}, nbytes=nbytes)

    burst = Burst(unit, map_pages(3))

    assert burst.used()[:3] == [(0, TAIL_NBYTES), (1, nbytes), (2, TAIL_NBYTES)]
    assert burst.chains[1].written() == bytes(TAIL_NBYTES)


def test_the_library_believes_no_length_it_has_no_room_for(unit: Viommu, faults: Faults) -> None:
    faults.add("request", "used-length", match=MAPS, when={"nth": 1}, nbytes=5)
    faults.add("request", "used-length", match=MAPS, when={"nth": 2}, nbytes=0)
    first, second = map_pages(2)

    with pytest.raises(RingViolation, match="used length 5 for a chain with 4"):
        unit.ask(first)
    with pytest.raises(RequestRefused, match=r"nothing \(used length 0 of 4\)"):
        unit.ask(second)


# --- the order


def test_answers_come_after_those_of_later_requests(unit: Viommu, faults: Faults) -> None:
    faults.add("request", "reorder", match=MAPS, when={"nth": [1, 4]}, behind=2)

    assert Burst(unit, map_pages(6)).wait(7) == [1, 2, 0, 4, 5, 3, FENCE]


def test_the_library_asks_one_at_a_time_and_waits_a_second(unit: Viommu, faults: Faults) -> None:
    faults.add("request", "reorder", match=MAPS, when={"nth": 2})
    first, second = map_pages(2)

    assert [unit.send(request, timeout_s=COME_S).status for request in (first, second)] == [Status.OK] * 2


# --- properties


def test_properties_are_cut_or_wrong(unit: Viommu, faults: Faults) -> None:
    whole = probed(unit)
    with faults.injected("request", "probe-truncate", nbytes=6):
        cut = probed(unit)
    with faults.injected("request", "probe-corrupt", offset=1, value=0x5A, nbytes=4):
        wrong = probed(unit)

    assert any(whole[6:])
    assert cut == whole[:6].ljust(len(whole), b"\0")
    assert wrong == whole[:1] + b"\x5a" * 4 + whole[5:]
    assert probed(unit) == whole


def probed(unit: Viommu) -> bytes:
    """The bytes of a PROBE's answer; the tail says OK."""
    return unit.ask(Probe(endpoint=EP), unit.config.probe_size + TAIL_NBYTES).written


def test_the_library_makes_nothing_of_a_property_it_does_not_know(unit: Viommu, faults: Faults) -> None:
    whole = unit.probe(EP)
    faults.add("request", "probe-truncate", nbytes=0)

    assert whole
    assert unit.probe(EP) == []


# --- the same seed


def some_statuses(unit: Viommu) -> list[Any]:
    anew(unit)
    return statuses(unit, OCCURRENCES)


def what_came(unit: Viommu, *, in_all: bool = False) -> list[tuple[int, int]]:
    """Used elements up to the fence, or all of them."""
    anew(unit)
    burst = Burst(unit, map_pages(OCCURRENCES))
    if in_all:
        burst.wait(OCCURRENCES + 1)
    return burst.used()


def some_probes(unit: Viommu) -> list[bytes]:
    return [probed(unit) for _ in range(OCCURRENCES)]


REPEATED: dict[str, tuple[dict[str, Any], Callable[[Viommu], Any]]] = {
    "status": ({"status": "NOMEM"}, some_statuses),
    "hold": ({}, what_came),
    "drop": ({}, what_came),
    "twice": ({}, what_came),
    "used-length": ({"nbytes": 7}, what_came),
    "reorder": ({"behind": 2}, partial(what_came, in_all=True)),
    "probe-truncate": ({"nbytes": 6}, some_probes),
    "probe-corrupt": ({"offset": 4}, some_probes),
}


@pytest.mark.parametrize("do", REPEATED)
def test_the_same_seed_does_it_again(unit: Viommu, faults: Faults, do: str) -> None:
    parameters, traffic = REPEATED[do]
    match = {} if do.startswith("probe-") else {"match": MAPS}

    assert_repeats(faults, lambda: traffic(unit), "request", do, **match, **parameters)
