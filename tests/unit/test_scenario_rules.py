"""Rules of a scenario against the table of actions, which vdev gives once the machine is up and no step is done."""

from __future__ import annotations

from typing import Any

import pytest

from guest_tests.scenario.actions import check_actions
from vdev.errors import ConfigError
from vdev.fault_commands import known_actions

KEY = "steps[3].inject"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an action of another point": (
        {"at": "dma", "do": "status"},
        "steps[3].inject.do: there is no action 'status' at the point dma (known here: unsupported-request, ",
    ),
    "an action there is not": (
        {"at": "request", "do": "hodl"},
        "steps[3].inject.do: there is no action 'hodl' at the point request (did you mean hold?)",
    ),
    "a parameter there is not": (
        {"at": "request", "do": "hold", "with": {"second": 3}},
        "steps[3].inject.with.second: the action hold has no such parameter (did you mean seconds?)",
    ),
    "a parameter of an action without": (
        {"at": "request", "do": "drop", "with": {"seconds": 3}},
        "steps[3].inject.with.seconds: the action drop has no such parameter (it has none)",
    ),
    "a parameter that is missing": (
        {"at": "dma", "do": "delay"},
        "steps[3].inject.with.seconds: this key is missing (how much later",
    ),
}
GOOD: dict[str, dict[str, Any]] = {
    "a bound action": {"at": "request", "do": "status", "with": {"status": "NOMEM"}},
    "a free action at any point": {"at": "request", "do": "remove", "with": {"function": "accel0"}},
    "one that a result names": {"at": "request", "do": "{{first.action}}"},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_that_vdev_would_refuse_is_named_with_the_cure(name: str) -> None:
    rule, wanted = WRONG[name]

    with pytest.raises(ConfigError) as caught:
        check_actions([(KEY, rule)], known_actions())

    assert str(caught.value).startswith(wanted)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_rule_is_let_through(name: str) -> None:
    check_actions([(KEY, GOOD[name])], known_actions())
