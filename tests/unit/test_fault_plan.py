"""A plan at work: what each rule counts, and which of them has its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vdev.errors import ConfigError
from vdev.faults.plan import MAX_RULES, Plan
from vdev.faults.rule import NS, Occurrence, World, parse_rule

WORLD = World({"iommu0": "vfio-user"}, {"accel0": ("iommu0", 0x100)})


def plan(*rules: Mapping[str, Any], seed: int = 0) -> Plan:
    made = Plan(lambda unit, number: "accel0", seed)
    for number, given in enumerate(rules):
        made.add(parse_rule(given, number, WORLD), 0)
    return made


def request(kind: str = "MAP") -> Occurrence:
    return Occurrence("request", unit="iommu0", type=kind)


def fired(made: Plan, met: Occurrence, now_ns: int = 0) -> list[tuple[str, int]]:
    return [(firing.rule.id, firing.n) for firing in made.meet(met, now_ns)]


def test_the_first_rule_that_fires_has_its_way() -> None:
    made = plan(
        {"id": "third", "at": "request", "do": "drop", "when": {"nth": 3}},
        {"id": "all", "at": "request", "do": "hold"},
    )

    assert [fired(made, request()) for _ in range(4)] == [[("all", 1)], [("all", 2)], [("third", 1)], [("all", 3)]]


def test_a_rule_that_was_overruled_has_counted_all_the_same() -> None:
    made = plan(
        {"id": "first", "at": "request", "do": "drop", "when": {"nth": 1}},
        {"id": "second", "at": "request", "do": "hold", "when": {"nth": 2}},
    )

    assert [fired(made, request()) for _ in range(3)] == [[("first", 1)], [("second", 1)], []]
    assert [armed.met for armed in made.rules.values()] == [3, 3]


def test_free_actions_are_done_beside_it_all_of_them() -> None:
    made = plan(
        {"id": "one", "at": "request", "do": "config-change"},
        {"id": "two", "at": "request", "do": "drop"},
        {"id": "three", "at": "request", "do": "flood"},
    )

    assert fired(made, request()) == [("one", 1), ("two", 1), ("three", 1)]
    assert fired(made, request()) == [("two", 2)]


def test_a_rule_fires_so_many_times_at_most() -> None:
    made = plan({"id": "a", "at": "request", "do": "drop", "when": {"every": 2}, "times": 2})

    assert [len(fired(made, request())) for _ in range(8)] == [0, 1, 0, 1, 0, 0, 0, 0]


def test_what_does_not_fit_does_not_count() -> None:
    made = plan({"id": "a", "at": "request", "do": "drop", "match": {"type": "UNMAP"}, "when": {"nth": 2}})

    kinds = ("UNMAP", "MAP", "MAP", "UNMAP", "UNMAP")
    assert [bool(fired(made, request(kind))) for kind in kinds] == [False, False, False, True, False]


def test_what_comes_outside_of_the_window_does_not_count() -> None:
    made = plan({"id": "a", "at": "request", "do": "drop", "when": {"nth": 2, "window": [1, 2]}})

    times_ns = (0, NS, NS * 3 // 2, NS * 5 // 2)
    assert [bool(fired(made, request(), now_ns)) for now_ns in times_ns] == [False, False, True, False]


def test_the_same_seed_and_traffic_fire_alike_whatever_other_rules_there_are() -> None:
    lucky = {"id": "lucky", "at": "request", "do": "drop", "when": {"probability": 0.5}}
    other = {"id": "other", "at": "request", "do": "config-change", "when": {"probability": 0.5}, "times": 100}

    def run(made: Plan) -> list[bool]:
        return [("lucky" in dict(fired(made, request()))) for _ in range(64)]

    alone = run(plan(lucky, seed=5))
    assert alone == run(plan(lucky, seed=5)) == run(plan(other, lucky, seed=5))
    assert alone != run(plan(lucky, seed=6))


def test_rules_of_other_points_are_not_asked() -> None:
    made = plan({"id": "a", "at": "interrupt", "do": "lose"})

    assert made.points() == {"interrupt"}
    assert fired(made, request()) == []
    assert made.rules["a"].met == 0


def test_a_point_without_rules_is_none_any_more() -> None:
    made = plan({"id": "a", "at": "request", "do": "drop"}, {"id": "b", "at": "request", "do": "drop"})

    made.remove("a")
    assert made.points() == {"request"}
    made.remove("b")
    assert made.points() == set()


def test_an_id_is_taken_once() -> None:
    made = plan({"id": "a", "at": "request", "do": "drop"})

    with pytest.raises(ConfigError, match=r"faults\.rules\[a\]\.id: there is a rule 'a' already"):
        made.check_room(["a"])
    with pytest.raises(ConfigError, match=r"there is a rule 'b' already"):
        made.check_room(["b", "b"])


def test_rules_are_bounded() -> None:
    made = plan(*({"id": f"n{n}", "at": "request", "do": "drop"} for n in range(MAX_RULES)))

    with pytest.raises(ConfigError, match=r"more than 256 rules"):
        made.check_room(["more"])


def test_removing_what_is_not_there_says_what_is() -> None:
    made = plan({"id": "a", "at": "request", "do": "drop"})

    with pytest.raises(ConfigError, match=r"there is no rule 'b' \(there are: a\)"):
        made.remove("b")
