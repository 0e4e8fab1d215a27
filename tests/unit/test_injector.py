"""The injector: plans come and go as wholes, what is due comes in its time, and `clear` leaves nothing."""

from __future__ import annotations

import pytest

from tests.support.injection import PLAIN, WITH_PASIDS, Injected
from vdev.errors import ConfigError
from vdev.faults.actions import FREE
from vdev.faults.agenda import MAX_DUE
from vdev.faults.events import FaultInjected, FaultsCleared
from vdev.faults.rule import Occurrence
from vdev.injector import known_actions
from vdev.iommu.pasid_set import Refusal


def test_every_free_action_of_the_table_is_carried_out_by_somebody() -> None:
    assert sorted(known_actions()) == sorted(FREE)


def test_a_plan_with_one_bad_rule_adds_none() -> None:
    scene = Injected()
    plan = {"seed": 3, "rules": [{"at": "timer", "do": "config-change"}, {"at": "timer", "do": "nothing"}]}

    with pytest.raises(ConfigError, match=r"faults\.rules\[r2\]\.do: 'nothing' is no action at the point timer"):
        scene.injector.load(plan)
    assert scene.injector.describe() == {"seed": 0, "rules": [], "held-by-none": 0, "waiting": 0}


def test_a_plan_that_takes_the_place_of_another_is_checked_first() -> None:
    scene = Injected()
    kept = scene.add("timer", "config-change", when={"delay": 9})

    with pytest.raises(ConfigError):
        scene.injector.load({"rules": [{"at": "x", "do": "y"}]}, replace=True)
    assert [rule["id"] for rule in scene.injector.describe()["rules"]] == [kept]

    assert scene.injector.load({"rules": [{"id": "new", "at": "timer", "do": "config-change"}]}, replace=True) == [
        "new"
    ]
    assert [rule["id"] for rule in scene.injector.describe()["rules"]] == ["new"]


def test_what_is_no_plan_is_refused() -> None:
    scene = Injected()

    with pytest.raises(ConfigError, match=r"^faults: .*unknown field `rule`"):
        scene.injector.load({"rule": []})
    with pytest.raises(ConfigError, match=r"^faults\.seed: -1 is not in 0"):
        scene.injector.load({"seed": -1})
    with pytest.raises(ConfigError, match=r"^faults\.seed"):
        scene.injector.seed(1 << 64)


def test_rules_are_numbered_by_all_that_ever_were_added() -> None:
    scene = Injected()

    first = scene.add("timer", "config-change", when={"delay": 1})
    scene.injector.remove(first)
    assert scene.add("timer", "config-change", when={"delay": 1}) == "r2"


def test_a_name_that_somebody_gave_is_passed_over() -> None:
    scene = Injected()
    scene.add("timer", "config-change", id="r2", when={"delay": 9})
    rule = {"at": "timer", "do": "config-change", "when": {"delay": 9}}

    assert scene.injector.add(rule) == "r3"
    assert scene.injector.load({"rules": [rule, {**rule, "id": "r4"}, rule]}) == ["r5", "r4", "r7"]
    assert scene.injector.load({"rules": [rule]}, replace=True) == ["r8"]


def test_a_timer_fires_at_its_time() -> None:
    scene = Injected()
    scene.add("timer", "config-change", when={"delay": 0.5})

    scene.pass_time(0.49)
    assert scene.firings == []
    scene.pass_time(0.01)
    assert scene.firings == [("r1", 1)]
    scene.pass_time(10)
    assert scene.firings == [("r1", 1)]


def test_a_timer_is_refused_where_too_much_waits_already() -> None:
    scene = Injected()
    while scene.injector.has_room:
        scene.injector.later(3600, lambda: None)

    with pytest.raises(ConfigError, match=r"^faults\.rules: 4096 things wait for their time already, 4096 may"):
        scene.add("timer", "config-change")
    assert scene.injector.describe()["rules"] == []


def test_a_timer_without_a_delay_fires_in_the_next_slice() -> None:
    scene = Injected()

    scene.add("timer", "config-change")
    assert scene.firings == []
    scene.pass_time(0)
    assert scene.firings == [("r1", 1)]


def test_a_timer_with_a_period_fires_until_it_has_fired_enough() -> None:
    scene = Injected()
    scene.add("timer", "config-change", when={"delay": 1, "period": 0.5}, times=3)

    scene.pass_time(1.6)
    assert scene.firings == [("r1", 1), ("r1", 2)]
    scene.pass_time(60)
    assert scene.firings == [("r1", 1), ("r1", 2), ("r1", 3)]
    assert scene.injector.describe()["waiting"] == 0


def test_a_timer_that_was_removed_does_not_fire() -> None:
    scene = Injected()
    scene.injector.remove(scene.add("timer", "config-change", when={"delay": 1}))

    scene.pass_time(2)
    assert scene.firings == []


def test_a_timer_of_a_new_rule_with_an_old_name_is_its_own() -> None:
    scene = Injected()
    scene.add("timer", "config-change", id="a", when={"delay": 1})
    scene.injector.remove("a")
    scene.add("timer", "config-change", id="a", when={"delay": 5})

    scene.pass_time(2)
    assert scene.firings == []
    scene.pass_time(3)
    assert scene.firings == [("a", 1)]


def test_what_waits_for_its_time_is_bounded() -> None:
    scene = Injected()
    happened: list[int] = []

    waiting = [scene.injector.later(1, lambda: happened.append(1)) for _ in range(MAX_DUE)]
    assert all(waiting)
    assert scene.injector.later(1, lambda: happened.append(2)) is None
    scene.pass_time(1)
    assert happened == [1] * MAX_DUE
    assert scene.injector.later(1, lambda: None) is not None


def test_what_was_cancelled_takes_no_room() -> None:
    scene = Injected()
    for _ in range(MAX_DUE):
        due = scene.injector.later(3600, lambda: None)
        assert due is not None
        due.cancel()

    assert scene.injector.describe()["waiting"] == 0
    assert scene.injector.later(1, lambda: None) is not None


def test_what_was_cancelled_does_not_happen() -> None:
    scene = Injected()
    happened: list[str] = []
    due = scene.injector.later(1, lambda: happened.append("first"))
    scene.injector.later(1, lambda: happened.append("second"))

    assert due is not None
    due.cancel()
    scene.pass_time(1)
    assert happened == ["second"]


def test_a_firing_is_in_the_log_with_what_it_met() -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None
    scene.add("pasid", "exhausted", id="none-left", when={"nth": 2})

    scene.pasids.refusal("iommu0", 7, 20)
    scene.now_ns += 1000
    scene.pasids.refusal("iommu0", 8, 20)

    (logged,) = scene.injector.log()
    assert (logged.seq, logged.time_ns) == (0, scene.now_ns)
    assert logged.event == FaultInjected("none-left", 1, "pasid", "exhausted", {"unit": "iommu0", "pasid": 8})
    assert scene.injector.log(since=1) == scene.injector.log(rule="other") == scene.injector.log(limit=0) == []
    assert logged.event in scene.events


def test_rules_say_what_they_have_met_and_done() -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None
    scene.add("pasid", "exhausted", when={"nth": 2})

    for _ in range(3):
        scene.pasids.refusal("iommu0", 1, 20)
    (rule,) = scene.injector.describe()["rules"]
    assert (rule["matched"], rule["fired"], rule["held"]) == (3, 1, 0)


@pytest.mark.parametrize(
    ("do", "expected"),
    [("exhausted", Refusal.SUPPLY), ("unreachable", Refusal.UNREACHABLE), ("quota", Refusal.QUOTA)],
)
def test_a_pasid_is_refused_for_a_reason_of_choice(do: str, expected: Refusal) -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None
    scene.add("pasid", do)

    assert scene.pasids.refusal("iommu0", 1, 20) is expected


def test_a_quota_that_is_not_used_up_refuses_nothing() -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None
    scene.add("pasid", "quota", with_={"quota": 1})

    assert scene.pasids.refusal("iommu0", 1, 20) is None
    scene.pasids.ask("iommu0", 1, 20, lambda found: None)
    assert scene.pasids.refusal("iommu0", 1, 20) is Refusal.QUOTA


def test_without_rules_nothing_stands_in_the_way_of_a_pasid() -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None

    assert scene.pasids.filter is None
    scene.add("pasid", "exhausted")
    assert scene.pasids.filter is not None
    scene.injector.clear()
    assert scene.pasids.filter is None
    assert scene.pasids.refusal("iommu0", 1, 20) is None


def test_orders_to_the_authority_say_which_rule_gave_them_and_clear_takes_the_quota_back() -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None
    before = scene.pasids.quota
    scene.add("timer", "quota-order", with_={"quota": 3})
    scene.add("timer", "reclaim", with_={"pasid": 9})
    scene.add("timer", "reclaim", with_={"all": True})
    scene.add("timer", "reclaim")

    scene.pass_time(0)
    cleared = scene.injector.clear()

    assert scene.orders == [
        ("pasid-quota", {"quota": 3, "reason": "injected by rule r1"}),
        ("pasid-reclaim", {"pasid": 9, "force": True, "reason": "injected by rule r2"}),
        ("pasid-reclaim", {"all": True, "force": True, "reason": "injected by rule r3"}),
        ("pasid-quota", {"quota": before, "reason": "faults cleared"}),
    ]
    assert [one.event.note for one in scene.injector.log()] == ["", "PASID 0x9", "", "not done: the guest has none"]
    assert cleared.removed == 4
    assert cleared.undone == [f"a quota of {before} PASIDs is ordered"]
    assert [line.split(":")[0] for line in cleared.terminal] == ["reclaim"]
    assert FaultsCleared(4, tuple(cleared.undone), tuple(cleared.terminal)) in scene.events


def test_the_lowest_pasid_of_the_guest_is_taken_unless_one_is_named() -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None
    scene.pasids.ask_for_host(lambda found: None)
    for first in (7, 5):
        scene.pasids.ask("iommu0", first, 20, lambda found: None)
    scene.allocator.answer()

    scene.add("timer", "reclaim")
    scene.pass_time(0)
    assert [arguments["pasid"] for _, arguments in scene.orders] == [5]


def test_nothing_to_clear_is_nothing_to_tell() -> None:
    scene = Injected()

    cleared = scene.injector.clear()
    assert (cleared.removed, cleared.undone, cleared.terminal) == (0, [], [])
    assert scene.events == []


def test_a_backend_stalls_for_as_long_as_it_is_told() -> None:
    scene = Injected()
    scene.add("timer", "stall", with_={"seconds": 2.5})

    scene.pass_time(0)
    assert scene.stalls == [2.5]


def test_a_backend_that_is_to_die_says_so_before() -> None:
    scene = Injected()
    scene.add("timer", "die")

    scene.pass_time(0)
    assert scene.deaths == 1
    assert isinstance(scene.events[0], FaultInjected)


def test_any_point_sets_a_free_action_off() -> None:
    scene = Injected(WITH_PASIDS)
    assert scene.pasids is not None
    scene.add("pasid", "stall", with_={"seconds": 1}, when={"nth": 2})

    assert scene.pasids.refusal("iommu0", 1, 20) is None
    assert scene.stalls == []
    assert scene.pasids.refusal("iommu0", 1, 20) is None
    assert scene.stalls == [1.0]


def test_releasing_what_is_not_there_is_refused() -> None:
    scene = Injected()

    with pytest.raises(ConfigError, match="there is no rule 'x', and nothing is held for it"):
        scene.injector.release("x")
    assert scene.injector.release() == 0


def test_an_occurrence_without_rules_costs_no_event() -> None:
    scene = Injected(PLAIN)

    assert scene.injector.meet(Occurrence("request", unit="iommu0")) is None
    assert scene.events == []
