"""Fault plans in a configuration and in files of their own: shape and merging; what rules mean is not known here."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdev.config import Config, FaultsConfig, load_plan, parse_config, with_plan
from vdev.errors import ConfigError

UNITS = "units: [{name: iommu0}]\n"
DROP = {"at": "request", "do": "drop"}


def config(words: str = "") -> Config:
    return parse_config(UNITS + words, "x.yaml")


def plan_file(directory: Path, text: str) -> Path:
    path = directory / "plan.yaml"
    path.write_text(text)
    return path


def test_a_configuration_has_no_plan_unless_it_says_so() -> None:
    assert config().faults is None


def test_rules_are_kept_as_they_are_written() -> None:
    found = config(
        "faults:\n  seed: 0x10\n  rules:\n"
        "    - {at: dma, do: delay, match: {iova: 0x1000-0x1fff}, with: {seconds: 0.5}}\n"
    )

    rule = {"at": "dma", "do": "delay", "match": {"iova": "0x1000-0x1fff"}, "with": {"seconds": 0.5}}
    assert found.faults == FaultsConfig(seed=16, rules=(rule,))


def test_a_plan_of_a_file_comes_behind_that_of_the_configuration(tmp_path: Path) -> None:
    own = config("faults: {seed: 1, rules: [{id: own, at: request, do: drop}]}")

    found = with_plan(own, plan_file(tmp_path, "rules: [{at: request, do: drop}]"))

    assert found.faults == FaultsConfig(seed=1, rules=({"id": "own", **DROP}, DROP))


def test_the_seed_of_the_file_wins(tmp_path: Path) -> None:
    own = config("faults: {seed: 1}")

    assert with_plan(own, plan_file(tmp_path, "seed: 2")).faults == FaultsConfig(seed=2)


def test_without_a_file_nothing_changes() -> None:
    own = config()

    assert with_plan(own, None) is own


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("faults: {rules: [3]}", "x.yaml: faults.rules[0]: 3 is a whole number, not keys with values"),
        ("faults: {sead: 3}", "x.yaml: faults.sead: there is no such key (did you mean seed?)"),
        ("faults: {seed: no}", "x.yaml: faults.seed: 'no' is text, not a whole number"),
        ("faults: {seed: -1}", "x.yaml: faults.seed: -1 is not in 0..2^64-1"),
        ("faults: {seed: 0x10000000000000000}", "x.yaml: faults.seed: 18446744073709551616 is not in 0..2^64-1"),
        (
            "faults: {rules: [{id: a, with: {value: 0x10000000000000000}}]}",
            "x.yaml: faults.rules[a].with.value: 0x10000000000000000 has more than 64 bits",
        ),
        (
            "faults: {rules: [{}, {when: {nth: [1, 0x10000000000000000]}}]}",
            "x.yaml: faults.rules[1].when.nth[1]: 0x10000000000000000 has more than 64 bits",
        ),
        ("faults: {rules: [{when: {probability: 1e999}}]}", "x.yaml: faults.rules[0].when.probability: inf is not"),
    ],
)
def test_what_no_plan_can_be_is_refused_by_its_key(words: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(words)

    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: 3", "plan.yaml: rules: 3 is a whole number, not a list"),
        ("units: []", "plan.yaml: units: there is no such key"),
        ("seed: -1", "plan.yaml: seed: -1 is not in 0..2^64-1"),
        ("", "plan.yaml: the file: is empty"),
        ("rules: [", "plan.yaml: the file: not valid YAML at line 1"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_by_its_name(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plan(plan_file(tmp_path, text))

    assert str(caught.value).startswith(problem)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: .* cannot be read"):
        load_plan(tmp_path / "nowhere.yaml")
