"""The guard's table: what is refused, and in which words."""

from __future__ import annotations

import pytest

from qmp_bridge.guard import HMP, QMP, REASONS, Rule, reason_for, rule_for

REFUSED_QMP = [name for name, rule in QMP.items() if rule in REASONS]
REFUSED_HMP = [name for name, rule in HMP.items() if rule in REASONS]
HUMAN = "human-monitor-command"


def hmp(line: object) -> dict[str, object]:
    return {"command-line": line}


def test_the_list_of_refused_commands_is_this() -> None:
    assert set(REFUSED_QMP) == {
        "migrate",
        "migrate-incoming",
        "migrate-recover",
        "snapshot-save",
        "snapshot-load",
        "xen-save-devices-state",
        "xen-load-devices-state",
    }
    assert set(REFUSED_HMP) == {"migrate", "migrate_incoming", "migrate_recover", "savevm", "loadvm"}


@pytest.mark.parametrize("name", REFUSED_QMP)
def test_a_refused_command_is_answered_with_the_reason(name: str) -> None:
    reason = reason_for(name, {"uri": "exec:cat"})
    assert reason is not None
    assert reason.startswith(f"vdev refuses {name}: QEMU neither has the state of vdev's functions")
    assert "Instead: " in reason


@pytest.mark.parametrize("name", REFUSED_HMP)
@pytest.mark.parametrize("line", ["{}", "  \t{} tag", "{}/x", "{}\n"])
def test_the_human_monitors_commands_are_refused_however_they_are_spelled(name: str, line: str) -> None:
    reason = reason_for(HUMAN, hmp(line.format(name)))
    assert reason is not None
    assert reason.startswith(f"vdev refuses {name}: ")


@pytest.mark.parametrize("line", ["", "  ", "info migrate", "migrate_cancel", "migrate_set_speed 1", "delvm x", "sav"])
def test_other_commands_of_the_human_monitor_pass(line: str) -> None:
    assert rule_for(HUMAN, hmp(line))[0] is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("query-status", {}), ("migrate_cancel", {}), ("snapshot-delete", {}), (HUMAN, hmp(5)), (HUMAN, {})],
)
def test_everything_else_is_qemus_alone(name: str, arguments: object) -> None:
    assert rule_for(name, arguments)[0] is None
    assert reason_for(name, arguments) is None


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [
        ("stop", {}, Rule.STOPS),
        ("cont", {}, Rule.CONTINUES),
        ("dump-guest-memory", {"paging": 0}, Rule.STOPS),
        (HUMAN, hmp("stop"), Rule.STOPS),
        (HUMAN, hmp(" s "), Rule.STOPS),
        (HUMAN, hmp("c"), Rule.CONTINUES),
    ],
)
def test_stop_and_cont_are_recognised_and_not_refused(name: str, arguments: object, rule: Rule) -> None:
    assert rule_for(name, arguments)[0] is rule
    assert reason_for(name, arguments) is None
