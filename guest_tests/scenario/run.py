"""`qmp-bridge run SCENARIO.yaml`: start a machine, play the scenario on it, report what happened."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from guest_tests.runner.evidence import FIRINGS
from guest_tests.runner.guest import Guest
from guest_tests.runner.pool import NeverCameUp, Pool, PoolOptions
from guest_tests.runner.suite import Machine
from guest_tests.scenario import report
from guest_tests.scenario.actions import check_actions
from guest_tests.scenario.model import Overrides, Scenario, load_scenario, walk
from guest_tests.scenario.play import NotGreen, Player
from guest_tests.scenario.scene import MachineGone, Scene, StepFailed
from guest_tests.scenario.stage import Stage
from guest_tests.scenario.timeline import Failure, Outcome, Sections, Timeline
from qmp_bridge.vm_options import apply_vm_options
from vdev.config.text import parse_yaml
from vdev.errors import ConfigError, PartsError

MAX_FIRINGS = 1_000  # of the fault log, in a report
LOG_STEP = 100
EVIDENCE_S = 5.0
Say = Callable[[str], None]


def overrides_in(arguments: argparse.Namespace) -> Overrides:
    """What the command line says instead of the file. Raises ConfigError."""
    variables: dict[str, Any] = {}
    for given in [*arguments.var, *([f"driver={arguments.driver}"] if arguments.driver is not None else [])]:
        name, equals, value = given.partition("=")
        if not equals or not name:
            raise ConfigError("--var", f"{given!r} is not NAME=VALUE", "write --var driver=right, say")
        variables[name] = _plain(name, value)
    return Overrides(arguments.attach, arguments.seed, variables)


def _plain(name: str, text: str) -> Any:
    """A value as the file would have it."""
    value = parse_yaml(text) if text.strip() else ""
    if not isinstance(value, str | int | float | bool):
        raise ConfigError(f"vars.{name}", f"{text!r} is not one plain value", "a word or a number")
    return value


def run(arguments: argparse.Namespace, say: Say, show: Say) -> int:
    """Play the scenario of the command line: 0 when it is green, else 1. `say` hears of progress, `show` the report.

    Raises ConfigError and PartsError for wrong input, before anything has started.
    """
    scenario = load_scenario(arguments.scenario, overrides_in(arguments))
    scenario = replace(scenario, config=apply_vm_options(scenario.config, arguments))
    for path in filter(None, (arguments.report, arguments.json)):
        _write(path, "")  # before all that takes time
    progress: Say = (lambda text: None) if arguments.quiet else say
    pool = Pool(PoolOptions(arguments.logs, arguments.cold, (), say, live=1))
    try:
        outcome = play_on(pool, scenario, progress)
    finally:
        pool.close()
    text = report.text(outcome)
    show(text)
    _write(arguments.report, text)
    _write(arguments.json, json.dumps(report.as_data(outcome), indent=1, default=str) + "\n")
    return 0 if outcome.is_green else 1


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be written: {error.strerror}", "name a file that can be") from None


def machine_of(scenario: Scenario) -> Machine:
    """The machine of `scenario` as the runner's pool knows machines."""
    return Machine(
        id=scenario.name,
        suite=scenario.inside or scenario.path.resolve().parent / "no-modules",
        config=scenario.config,
        driver=scenario.driver,
        attach=scenario.attach,
        kernel=None,
        append="",
        modules=(),
        tier="normal",
    )


def play_on(pool: Pool, scenario: Scenario, progress: Say) -> Outcome:
    """Start the machine of `scenario` in `pool`, play it, end the machine.

    Raises ConfigError and PartsError where the machine cannot be started for want of good input.
    """
    machine = machine_of(scenario)
    timeline = Timeline(time.monotonic, progress)
    try:
        guest = pool.guest(machine)
    except NeverCameUp as error:
        if isinstance(error.__cause__, ConfigError | PartsError):
            raise error.__cause__ from None
        outcome = outcome_of(scenario, timeline)
        outcome.failure = Failure("machine", "start", "", "the machine starts", str(error))
        outcome.sections, outcome.logs = error.sections, str(error.logs or "")
        return outcome
    try:
        return pool.do(play(guest, scenario, progress))
    finally:
        pool.end(machine)


def outcome_of(scenario: Scenario, timeline: Timeline) -> Outcome:
    """An outcome in which nothing has happened yet."""
    attach = scenario.attach or " and ".join(dict.fromkeys(unit.attach for unit in scenario.config.units))
    return Outcome(
        name=scenario.name,
        about=scenario.about,
        path=str(scenario.path),
        machine=f"{scenario.config.vm.name}, {attach}, driver {scenario.driver}",
        seed=scenario.seed,
        variables=dict(scenario.variables),
        lines=timeline.lines,
    )


async def play(guest: Guest, scenario: Scenario, progress: Say) -> Outcome:
    """Play `scenario` on a guest that has just started; what came of it."""
    timeline = Timeline(time.monotonic, progress)
    outcome = outcome_of(scenario, timeline)
    try:
        async with Stage.set_up(guest, scenario.name) as stage:
            outcome.machine += f", {stage.words}"
            scene = Scene(stage, {**scenario.variables, "round": None})
            await _play(scene, stage, scenario, timeline, outcome)
    except MachineGone as gone:
        _lost(outcome, gone)
    outcome.seconds = timeline.now
    outcome.left_out = timeline.left_out
    return outcome


async def _play(scene: Scene, stage: Stage, scenario: Scenario, timeline: Timeline, outcome: Outcome) -> None:
    player = Player(scene, timeline)
    try:
        check_actions(rules_of(scenario), await scene.ours("query-fault-actions"))
        await scene.ours("fault-seed", seed=scenario.seed)
        await player.play(scenario.steps, scenario.timeout)
    except NotGreen as red:
        outcome.failure = red.failure
        timeline.add("FAILED", f"expected {red.failure.expected}; found {red.failure.found}", red.failure.step)
        if red.gone is not None:
            _lost(outcome, red.gone)
        else:
            outcome.sections = await _evidence(stage)
    except StepFailed as failed:
        outcome.failure = Failure("machine", "start", "", failed.expected, failed.found)
    outcome.nsteps = player.ndone
    if player.is_over or outcome.logs:
        return
    with suppress(MachineGone, StepFailed):
        outcome.firings = await firings(scene, timeline.started)
        outcome.sections = [section for section in outcome.sections if section[0] != FIRINGS]  # it has them with times
        await scene.clear()


async def _evidence(stage: Stage) -> Sections:
    try:
        async with asyncio.timeout(EVIDENCE_S):
            return await stage.evidence()
    except TimeoutError:
        return [("evidence", f"the guest is busy with a call and did not let go of it within {EVIDENCE_S:g} s")]
    except MachineGone as gone:
        return gone.sections


def rules_of(scenario: Scenario) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All rules of its steps, by key."""
    for step in walk(scenario.steps):
        rules = step.does.rules_added()
        for number, rule in enumerate(rules):
            where = f"[{number}]" if len(rules) > 1 else ""
            yield f"{scenario.path}: {step.key}.inject{where}", rule


def _lost(outcome: Outcome, gone: MachineGone) -> None:
    outcome.failure = outcome.failure or Failure("machine", "end", "", "the machine goes on", gone.reason)
    outcome.sections, outcome.logs = gone.sections, gone.logs


async def firings(scene: Scene, started: float) -> list[dict[str, Any]]:
    """The fault log, oldest first, with `at-seconds` since the clock was at `started`. Raises StepFailed."""
    found: list[dict[str, Any]] = []
    since = 0
    while len(found) < MAX_FIRINGS:
        page: list[Mapping[str, Any]] = await scene.ours("query-fault-log", since=since, limit=LOG_STEP)
        found += [{**one, "at-seconds": round(one["time"] - started, 6)} for one in page]
        if len(page) < LOG_STEP:
            break
        since = page[-1]["seq"] + 1
    return found
