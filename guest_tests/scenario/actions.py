"""What can be known of a rule without vdev's cores: its shape, by the schema of commands; its action, by vdev's table.

What is left, such as the range of a number, vdev itself says when the rule is added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guest_tests.scenario.names import marks
from vdev.config.text import closest
from vdev.errors import ArgumentError, ConfigError
from vdev.qapi.check import check_arguments
from vdev.qapi.schema import schema

_COMMAND = "fault-add"
_PARAMETER = re.compile(r"Parameter '([^'\\[]+)")
_CURE = "docs/faults.md has what a rule may say"

Row = Mapping[str, Any]  # of query-fault-actions


def check_rule(rule: Mapping[str, Any], key: str) -> None:
    """Raises ConfigError for a rule that `fault-add` would not take for its shape; {{results}} are let through."""
    try:
        check_arguments(schema().commands[_COMMAND], _settled(rule))
    except ArgumentError as error:
        named = _PARAMETER.match(str(error))
        raise ConfigError(f"{key}.{named[1]}" if named else key, str(error), _CURE) from None


def _settled(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without the members that have {{results}}, but for those that must be there."""
    kept = {name: _settled(one) if isinstance(one, Mapping) else one for name, one in value.items()}
    return {name: one for name, one in kept.items() if not any(marks(one))}


def check_actions(rules: Iterable[tuple[str, Mapping[str, Any]]], table: Sequence[Row]) -> None:
    """Raises ConfigError unless `table` has each rule's action at its point, with those parameters; rules by key."""
    for key, rule in rules:
        if any(marks([rule["at"], rule["do"]])):
            continue
        here = [row for row in table if rule["at"] in row["at"]]
        row = next((row for row in here if row["do"] == rule["do"]), None)
        if row is None:
            problem = f"there is no action {rule['do']!r} at the point {rule['at']}"
            raise ConfigError(f"{key}.do", problem, closest(rule["do"], [row["do"] for row in here]))
        _check_parameters(rule.get("with") or {}, row, f"{key}.with")


def _check_parameters(given: Mapping[str, Any], row: Row, key: str) -> None:
    known = {parameter["name"]: parameter for parameter in row["with"]}
    for name in given:
        if name not in known:
            cure = closest(name, list(known)) if known else "it has none"
            raise ConfigError(f"{key}.{name}", f"the action {row['do']} has no such parameter", cure)
    for name, parameter in known.items():
        if parameter["required"] and name not in given:
            raise ConfigError(f"{key}.{name}", "this key is missing", f"{parameter['about']}: {parameter['values']}")
