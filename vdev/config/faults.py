"""Fault plans as data: what every one must satisfy, whatever its rules mean. docs/faults.md has all of it."""

from __future__ import annotations

from math import isfinite

from vdev.config.schema import Config, FaultsConfig
from vdev.errors import ConfigError

INTEGERS = range(-(1 << 63), 1 << 64)  # what the copy that the backend reads can hold
SEEDS = range(1 << 64)


def check_faults(config: Config) -> None:
    """Raise ConfigError for the first value under the key `faults` that none can be."""
    if config.faults is not None:
        check_plan(config.faults, "faults.")


def check_plan(plan: FaultsConfig, prefix: str = "") -> None:
    """The same for a plan; `prefix` is before its keys in errors."""
    if plan.seed is not None:
        check_seed(plan.seed, f"{prefix}seed")
    for number, rule in enumerate(plan.rules):
        name = rule.get("id")
        _check(rule, f"{prefix}rules[{name if isinstance(name, str) and name else number}]")


def check_seed(seed: int, key: str) -> None:
    """ConfigError, about `key`, unless a plan can have this seed."""
    if seed not in SEEDS:
        raise ConfigError(key, f"{seed} is not in 0..2^64-1", "any other number does, such as 7")


def _check(value: object, key: str) -> None:
    if isinstance(value, dict):
        for name, inside in value.items():
            _check(inside, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            _check(inside, f"{key}[{number}]")
    elif isinstance(value, int) and value not in INTEGERS:
        raise ConfigError(key, f"{value:#x} has more than 64 bits", "no fault takes so large a number")
    elif isinstance(value, float) and not isfinite(value):
        raise ConfigError(key, f"{value} is not finite", "give a number")
