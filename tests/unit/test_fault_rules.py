"""The text of a rule: what is accepted, and what each mistake is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vdev.errors import ConfigError
from vdev.faults.actions import BOUND, FREE, POINTS
from vdev.faults.rule import Occurrence, Rule, World, chance, parse_rule

WORLD = World({"iommu0": "vfio-user", "iommu1": "vhost-user"}, {"accel0": ("iommu0", 0x100)}, has_pasids=True)
NAMES = {("iommu0", 0x100): "accel0"}


def parsed(at: str, do: str, world: World = WORLD, **more: Any) -> Rule:
    given = {"at": at, "do": do, **{key.rstrip("_"): value for key, value in more.items()}}
    return parse_rule(given, 1, world)


def fits(rule: Rule, met: Occurrence) -> bool:
    return rule.fits(met, lambda unit, number: NAMES.get((unit, number)))


def test_a_rule_without_an_id_is_named_by_its_number() -> None:
    assert parse_rule({"at": "request", "do": "drop"}, 4, WORLD).id == "r4"


def test_parameters_that_are_left_out_have_their_defaults() -> None:
    rule = parsed("dma", "corrupt", with_={"nbytes": 4})

    assert rule.parameters == {"pattern": 0xA5, "offset": 0, "nbytes": 4}


def test_a_free_action_is_done_once_unless_it_is_told_otherwise() -> None:
    assert parsed("request", "spurious", with_={"function": "accel0"}).times == 1
    assert parsed("request", "spurious", with_={"function": "accel0"}, times=3).times == 3
    assert parsed("timer", "spurious", with_={"function": "accel0"}, when={"period": 1.0}).times is None
    assert parsed("request", "drop").times is None


MISTAKES: list[tuple[Mapping[str, Any], str]] = [
    ({"do": "drop"}, "faults.rules[r1]: Object missing required field `at`"),
    ({"at": "request", "do": "drop", "what": 1}, "faults.rules[r1]: Object contains unknown field `what`"),
    (
        {"id": "x", "at": "request", "do": "drop", "when": {"nth": "soon"}},
        "faults.rules[x].when.nth: Expected `int | array | null`, got `str`",
    ),
    ({"id": "Not A Name", "at": "request", "do": "drop"}, "faults.rules[r1].id: 'Not A Name' is no name"),
    ({"at": "sometimes", "do": "drop"}, "faults.rules[r1].at: 'sometimes' is no point (there are: request, "),
    (
        {"at": "request", "do": "lose"},
        "faults.rules[r1].do: 'lose' is no action at the point request (there are: status, hold, ",
    ),
    (
        {"at": "request", "do": "drop", "match": {"type": "MAPP"}},
        "faults.rules[r1].match.type: 'MAPP' is no request of it (there are: ATTACH, DETACH, MAP, ",
    ),
    (
        {"at": "invalidation", "do": "early", "match": {"type": "ATTACH"}},
        "faults.rules[r1].match.type: 'ATTACH' is no request of it (there are: UNMAP, DETACH, DETACH_PASID)",
    ),
    (
        {"at": "request", "do": "probe-corrupt", "match": {"type": "MAP"}},
        "faults.rules[r1].match.type: 'MAP' is no request of it (there are: PROBE)",
    ),
    (
        {"at": "interrupt", "do": "lose", "match": {"type": "MAP"}},
        "faults.rules[r1].match.type: an occurrence at the point interrupt has none (it has: ",
    ),
    ({"at": "timer", "do": "stall", "match": {"unit": "iommu0"}, "with": {"seconds": 1}}, "(leave match out)"),
    (
        {"at": "request", "do": "drop", "match": {"unit": "iommu7"}},
        "faults.rules[r1].match.unit: there is no unit 'iommu7' (there are: iommu0, iommu1)",
    ),
    (
        {"at": "request", "do": "drop", "match": {"endpoint": "rng9"}},
        "faults.rules[r1].match.endpoint: there is no endpoint 'rng9' (there are: accel0)",
    ),
    (
        {"at": "request", "do": "drop", "match": {"domain": -1}},
        "faults.rules[r1].match.domain: -1 is not within 0..4294967295",
    ),
    ({"at": "dma", "do": "corrupt", "match": {"access": "both"}}, "match.access: 'both' is neither read nor write"),
    ({"at": "dma", "do": "corrupt", "match": {"iova": "all"}}, "match.iova: 'all' is neither an address nor a range"),
    ({"at": "dma", "do": "corrupt", "match": {"iova": "0x2000-0x1000"}}, "'0x2000-0x1000' ends before it begins"),
    ({"at": "request", "do": "drop", "when": {"delay": 1}}, "when.delay: it has no meaning at the point request"),
    ({"at": "timer", "do": "die", "when": {"nth": 1}}, "when.nth: it has no meaning at the point timer"),
    ({"at": "request", "do": "drop", "when": {"nth": [1, 0]}}, "when.nth: 0 is not a number from 1 on"),
    ({"at": "request", "do": "drop", "when": {"every": 0}}, "when.every: 0 is not a number from 1 on"),
    ({"at": "request", "do": "drop", "when": {"after": -1}}, "when.after: -1 is not a number from 0 on"),
    ({"at": "request", "do": "drop", "when": {"probability": 1.5}}, "when.probability: 1.5 is not within 0..1"),
    ({"at": "request", "do": "drop", "when": {"window": [2, 1]}}, "when.window: [2.0, 1.0] is not [from, until]"),
    ({"at": "timer", "do": "die", "when": {"delay": -1}}, "when.delay: -1.0 is not within 0..86400 seconds"),
    ({"at": "timer", "do": "die", "when": {"period": 0}}, "when.period: 0.0 is not within 0.001..86400 seconds"),
    ({"at": "request", "do": "drop", "times": 0}, "faults.rules[r1].times: 0 is not a number from 1 on"),
    ({"at": "request", "do": "drop", "with": {"seconds": 1}}, "the action drop has no such parameter (leave with out)"),
    ({"at": "request", "do": "status"}, "faults.rules[r1].with.status: the action status needs it (of the answer)"),
    ({"at": "request", "do": "status", "with": {"status": "BAD"}}, "with.status: 'BAD' is no word for it (one of: OK"),
    (
        {"at": "request", "do": "status", "with": {"status": "OK", "perform": 1}},
        "with.perform: 1 is neither true nor false",
    ),
    (
        {"at": "request", "do": "hold", "with": {"seconds": 4000}},
        "faults.rules[r1].with.seconds: 4000 is not 0..3600 seconds",
    ),
    ({"at": "request", "do": "hold", "with": {"seconds": float("nan")}}, "with.seconds: nan is not 0..3600 seconds"),
    (
        {"at": "event", "do": "unknown-reason", "with": {"reason": 256}},
        "with.reason: 256 is not a whole number in 0..0xff",
    ),
    ({"at": "event", "do": "unknown-reason", "with": {"reason": True}}, "with.reason: True is not a whole number"),
    (
        {"at": "timer", "do": "remove"},
        "with.function: a timer is about no function (one of: iommu0, iommu1, accel0)",
    ),
    (
        {"at": "timer", "do": "needs-reset", "with": {"function": "accel0"}},
        "with.function: there is no unit 'accel0' (there are: iommu0, iommu1)",
    ),
    (
        {"at": "timer", "do": "needs-reset", "with": {"function": "iommu1"}},
        "with.function: iommu1 is attached by vhost-user, where that is QEMU's (attach: vfio-user)",
    ),
    (
        {"at": "timer", "do": "aer", "with": {"function": "iommu0"}},
        "with.function: there is no endpoint 'iommu0' (there are: accel0)",
    ),
    (
        {"at": "timer", "do": "flood", "with": {"unit": "iommu0", "endpoint": "rng7"}},
        "with.endpoint: there is no endpoint 'rng7'",
    ),
]


@pytest.mark.parametrize(("given", "words"), MISTAKES)
def test_each_mistake_names_the_key_the_rule_and_the_cure(given: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rule(given, 1, WORLD)

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("at", "do", "with_"),
    [("pasid", "exhausted", {}), ("timer", "reclaim", {}), ("timer", "quota-order", {"quota": 1})],
)
def test_a_vm_without_pasids_has_no_rules_about_them(at: str, do: str, with_: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\(set vm\.pasids\)"):
        parsed(at, do, World({"iommu0": "vfio-user"}, {}), with_=with_)


def test_an_endpoint_that_may_be_plugged_in_later_may_be_named() -> None:
    rule = parsed("dma", "corrupt", World({"iommu0": "vfio-user"}, {}, may_grow=True), match={"endpoint": "later0"})

    assert rule.match.endpoint == "later0"


def test_the_only_unit_need_not_be_named() -> None:
    rule = parsed("timer", "config-change", World({"iommu0": "vfio-user"}, {}))

    assert rule.parameters == {"function": "iommu0"}


def test_all_that_a_match_names_must_fit() -> None:
    rule = parsed("request", "drop", match={"type": "MAP", "domain": 3, "endpoint": "accel0"})

    assert fits(rule, Occurrence("request", unit="iommu0", type="MAP", domain=3, endpoint=0x100))
    assert not fits(rule, Occurrence("request", unit="iommu0", type="UNMAP", domain=3, endpoint=0x100))
    assert not fits(rule, Occurrence("request", unit="iommu0", type="MAP", domain=4, endpoint=0x100))
    assert not fits(rule, Occurrence("request", unit="iommu1", type="MAP", domain=3, endpoint=0x100))
    assert not fits(rule, Occurrence("request", unit="iommu0", type="MAP", domain=3))


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0x0, 0x1000, False), (0x0, 0x1001, True), (0x1FFF, 0x3000, True), (0x2000, 0x3000, False)],
)
def test_a_range_fits_what_overlaps_it(start: int, stop: int, expected: bool) -> None:
    rule = parsed("dma", "corrupt", match={"iova": "0x1000-0x1fff"})

    assert fits(rule, Occurrence("dma", start=start, stop=stop)) is expected


def test_a_single_address_is_a_range_of_one_byte() -> None:
    assert parsed("dma", "corrupt", match={"iova": 0x1000}).iova == (0x1000, 0x1001)
    assert parsed("dma", "corrupt", match={"iova": "0xffffffffffffffff"}).iova == ((1 << 64) - 1, 1 << 64)


def times(when: Mapping[str, Any], count: int = 12) -> list[int]:
    rule = parsed("request", "drop", when=when)
    return [n for n in range(1, count + 1) if rule.is_time(n, seed=0)]


def test_conditions_count_what_fits_and_hold_together() -> None:
    assert times({"nth": 3}) == [3]
    assert times({"nth": [2, 5]}) == [2, 5]
    assert times({"every": 4}) == [4, 8, 12]
    assert times({"after": 9}) == [10, 11, 12]
    assert times({"after": 2, "every": 5}) == [7, 12]
    assert times({"after": 2, "nth": 1}) == [3]
    assert times({"nth": [4, 6], "every": 4}) == [4]


def test_a_window_is_open_from_its_start_until_before_its_end() -> None:
    rule = parsed("request", "drop", when={"window": [0.5, 2]})

    assert [rule.is_open(seconds) for seconds in (0.49, 0.5, 1.99, 2.0)] == [False, True, True, False]


def test_chance_is_a_matter_of_seed_rule_and_number_only() -> None:
    drawn = [chance(7, "r1", n) for n in range(1000)]

    assert drawn == [chance(7, "r1", n) for n in range(1000)]
    assert drawn != [chance(8, "r1", n) for n in range(1000)]
    assert drawn != [chance(7, "r2", n) for n in range(1000)]
    assert all(0 <= number < 1 for number in drawn)
    assert 200 < sum(number < 0.25 for number in drawn) < 300


def test_never_and_always_are_probabilities() -> None:
    assert times({"probability": 0.0}) == []
    assert times({"probability": 1.0}) == list(range(1, 13))


def test_a_rule_is_described_so_that_it_could_be_added_again() -> None:
    rule = parsed("dma", "partial", with_={"nbytes": 8}, match={"iova": "0x10-0x20"}, when={"nth": 1}, times=2)

    assert parse_rule(rule.describe(), 99, WORLD) == rule


@pytest.mark.parametrize("point", POINTS)
def test_no_free_action_has_the_name_of_one_of_a_point(point: str) -> None:
    assert not BOUND[point].keys() & FREE.keys()
