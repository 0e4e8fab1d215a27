"""Every scenario of configs/scenarios is played in guests, and each planted driver is caught by one, for its mistake.

All but one restore the same saved guest, which the suite `pasids` has as well. VDEV_TIER=soak plays them over
vhost-user, too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guest_tests.payload.planted import DRIVERS
from guest_tests.runner.nodes import POOL
from guest_tests.scenario import example, report
from guest_tests.scenario.model import Overrides, Scenario, load_scenario
from guest_tests.scenario.run import play_on
from guest_tests.scenario.timeline import Outcome
from tests.booted.conftest import CONFIGS
from vdev.config.schema import ATTACHMENTS, Attach
from vdev.errors import ConfigError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

SCENARIOS = CONFIGS / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
SOAK = os.environ.get("VDEV_TIER") == "soak"
ON_BOTH = ("quota-stale-removal",)
PLAYED = [
    (name, attach)
    for name in NAMES
    for attach in ATTACHMENTS
    if attach == "vfio-user" or name in ON_BOTH or SOAK
]  # fmt: skip

# By planted driver: its scenario, the step that fails, what was expected, what was found (a regular expression).
CAUGHT = {
    "forgets-unmap": ("unmap-before-reuse", "steps[9]", "letter.bytes is [34]", r"\[51\]"),
    "reuses-pasid": (
        "pasid-hand-over", "steps[6]", "drive:admit returns",
        r"it raised RequestRefused: AttachPasid\(.*pasid=16,.*was answered NOENT \(6\)",
    ),
    "ignores-used-length": (
        "empty-answer", "steps[3]", "it raises 'nothing (used length 0 of 4)'", r"it returned {iova: 0x10100000, .*}",
    ),
    "maps-short": ("whole-buffer", "steps[3]", "filled.status is OK", "translation fault"),
    "loses-event-buffer": ("event-buffers", "steps[1].repeat.steps[3]", "heard.count is 256", "136"),
}  # fmt: skip


_played: dict[tuple[object, ...], Outcome] = {}


def play(
    request: pytest.FixtureRequest,
    name: str,
    attach: Attach = "vfio-user",
    driver: str | None = None,
    seed: int | None = None,
) -> Outcome:
    """Play a scenario on a machine of its own, or remember what came of it."""
    key = (name, attach, driver, seed)
    if key not in _played:
        overrides = Overrides(attach=attach, seed=seed, variables={"driver": driver} if driver else {})
        scenario = load_scenario(SCENARIOS / f"{name}.yaml", overrides)
        _played[key] = play_on(request.config.stash[POOL], scenario, lambda text: None)
    return _played[key]


def bridge_run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`qmp-bridge run`, as a person types it."""
    command = [sys.executable, "-m", "qmp_bridge", "run", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("name", "attach"), PLAYED, ids=lambda value: str(value))
def test_every_scenario_is_green(name: str, attach: Attach, request: pytest.FixtureRequest) -> None:
    outcome = play(request, name, attach)

    assert outcome.is_green, report.text(outcome)


@pytest.mark.parametrize("driver", CAUGHT)
def test_a_planted_driver_is_caught_by_its_scenario_for_its_mistake(
    driver: str, request: pytest.FixtureRequest
) -> None:
    name, step, expected, found = CAUGHT[driver]

    outcome = play(request, name, driver=driver)

    assert outcome.failure is not None, report.text(outcome)
    failure = outcome.failure
    assert (failure.step, failure.expected) == (step, expected), report.text(outcome)
    assert re.fullmatch(found, failure.found), failure.found
    assert "vdev trace, last records" in dict(outcome.sections)


def test_every_planted_driver_is_caught_by_a_scenario() -> None:
    assert set(CAUGHT) == set(DRIVERS) - {"right"}


def test_another_seed_is_another_fate(request: pytest.FixtureRequest) -> None:
    outcome = play(request, "refused-at-random", seed=8)

    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.found) == (
        "steps[3]", "[1, 11, 13, 17, 22, 23, 25, 32, 34, 36, 38, 40]",
    )  # fmt: skip


@pytest.mark.parametrize("name", example.DRIVERS)
def test_the_example_in_the_manual_is_what_a_run_prints(name: str, request: pytest.FixtureRequest) -> None:
    driver = example.DRIVERS[name]
    outcome = play(request, example.SCENARIO.stem, driver=None if driver == "right" else driver)

    printed = example.shortened(name, report.text(outcome))
    assert example.normalised(printed) == example.normalised(example.documented(name))


def test_the_command_says_what_happened_and_its_status_is_the_verdict(tmp_path: Path) -> None:
    path = str(SCENARIOS / "whole-buffer.yaml")

    done = bridge_run(path, "--driver", "maps-short", "--report", "r.txt", "--json", "r.json", cwd=tmp_path)

    assert done.returncode == 1, done.stderr
    assert done.stdout == (tmp_path / "r.txt").read_text()
    assert done.stdout.startswith("whole-buffer: NOT GREEN")
    assert "expect     filled.status is OK" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["failure"]["step"] == "steps[3]"


def test_wrong_input_is_refused_before_anything_has_started(tmp_path: Path) -> None:
    scenario = tmp_path / "wrong.yaml"
    scenario.write_text(f"scenario: wrong\nmachine: {SCENARIOS / 'machines/accelerators.yaml'}\nsteps: [{{note: 3}}]")

    done = bridge_run(str(scenario), cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("wrong.yaml: steps[0].note: 3 is a whole number, not text (a line of text)\n")
    assert list(tmp_path.iterdir()) == [scenario]


def in_file(directory: Path, steps: str) -> Scenario:
    """A scenario on the shipped ones' machine."""
    path = directory / "made.yaml"
    path.write_text(f"scenario: made\nmachine: {SCENARIOS / 'machines/accelerators.yaml'}\nsteps: {steps}\n")
    return load_scenario(path, Overrides())


def test_an_action_that_vdev_has_not_is_refused_before_the_first_step(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    said: list[str] = []
    scenario = in_file(tmp_path, "[{note: first}, {inject: {at: request, do: hodl}}]")

    with pytest.raises(ConfigError, match=r"steps\[1\].inject.do: there is no action 'hodl' .*did you mean hold"):
        play_on(request.config.stash[POOL], scenario, said.append)

    assert said == []


def test_a_machine_that_goes_unasked_leaves_its_evidence(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    scenario = in_file(tmp_path, "[{qmp: {execute: quit}}, {pause: 60}]")

    outcome = play_on(request.config.stash[POOL], scenario, lambda text: None)

    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.expected) == ("steps[1]", "the machine goes on")
    assert outcome.failure.found.startswith("QEMU exited with status 0")
    assert {"QMP, last messages", "vdev trace, last records"} <= set(dict(outcome.sections))
    assert Path(outcome.logs).is_dir()
