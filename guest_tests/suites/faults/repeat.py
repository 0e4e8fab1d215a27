"""The same seed does the same again: one check for every action.

A rule that fires by chance meets the same traffic three times: twice with one seed, once with another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from guest_tests.payload.fault_fixtures import Faults

CHANCE = 0.5
SEED, OTHER_SEED = 11, 12
OCCURRENCES = 20  # of what the rule meets: two seeds agree about all of them once in a million


@dataclass
class Run:
    """What one seed made of the traffic: the firings by number and by what they met, and what the driver saw."""

    firings: list[tuple[int, Mapping[str, Any]]]
    effects: Any


def run_by_chance(faults: Faults, seed: int, traffic: Callable[[], Any], rule: Mapping[str, Any]) -> Run:
    """`traffic` under `rule` (arguments of `Faults.add`), which fires by chance; what is held is let go at the end."""
    faults.seed(seed)
    with faults.injected(**{"id": "by-chance", "when": {"probability": CHANCE}, **rule}) as added:
        effects = traffic()
    assert 0 < added.fired < added.matched, f"fired {added.fired} of {added.matched} times"
    return Run([(one["n"], one["fields"]) for one in added.log()], effects)


def assert_repeats(faults: Faults, traffic: Callable[[], Any], at: str, do: str, **rule: Any) -> None:
    """Firings and effects are those of the seed. `traffic` makes some OCCURRENCES and returns what it saw of them:
    plain data, with nothing in it that differs from time to time by itself."""
    given = {"at": at, "do": do, **rule}
    first, again, other = (run_by_chance(faults, seed, traffic, given) for seed in (SEED, SEED, OTHER_SEED))
    assert again == first
    assert other.firings != first.firings
    assert other.effects != first.effects
