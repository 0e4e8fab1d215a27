"""Scenario files: what is wrong in one is named with its key, the rule and the cure, before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guest_tests.scenario.model import Overrides, load_scenario, walk
from tests.support.scenario import MACHINE, file_of, scenario_in
from vdev.errors import ConfigError

INJECT = "- inject: {id: r1, at: request, do: drop}"
CALL = '- guest: {call: "work:copy", as: first}'
KINDS = "guest, inject, wait, qmp, expect, repeat, release, clear, note, pause"


def error_of(directory: Path, text: str, **overrides: Any) -> str:
    """What is said about the file, without its own name."""
    with pytest.raises(ConfigError) as caught:
        scenario_in(directory, text, **overrides)
    return str(caught.value).removeprefix(f"{directory / 'test.yaml'}: ")


WRONG_STEPS = {
    "no kind": ("- {}", f"steps[0]: a step says one thing, this says 0: nothing (one of {KINDS})"),
    "two kinds": (
        "- {note: a, pause: 1}",
        f"steps[0]: a step says one thing, this says 2: note, pause (one of {KINDS})",
    ),
    "unknown kind": ("- injekt: {}", "steps[0].injekt: there is no such step (did you mean inject?)"),
    "unknown ending": (
        "- {note: a, ends: world}",
        "steps[0].ends: 'world' is not a possible value (one of backend, vm)",
    ),
    "no function": (
        "- guest: {}",
        "steps[0].guest.call: this key is missing (MODULE:FUNCTION of the guest's directory, such as work:copy)",
    ),
    "not a function": (
        "- guest: {call: copy}",
        "steps[0].guest.call: 'copy' is not MODULE:FUNCTION "
        "(MODULE:FUNCTION of the guest's directory, such as work:copy)",
    ),
    "no such module": (
        '- guest: {call: "wrok:copy"}',
        "steps[0].guest.call: INSIDE has no wrok.py (write MODULE:FUNCTION of a file there)",
    ),
    "unknown key": (
        '- guest: {call: "work:copy", wiht: {}}',
        "steps[0].guest.wiht: there is no such key (did you mean with?)",
    ),
    "arguments that are no mapping": (
        '- guest: {call: "work:copy", with: 3}',
        "steps[0].guest.with: 3 is a whole number, not keys with values "
        "(the function's arguments by name, such as {nbytes: 4096})",
    ),
    "a time-out that is none": (
        '- guest: {call: "work:copy", within: 0}',
        "steps[0].guest.within: 0 is not in 0..600 s (seconds, such as 30)",
    ),
    "a result without a name": (
        '- guest: {call: "work:copy", as: First}',
        "steps[0].guest.as: 'First' is not a name (a small letter, then small letters, digits, - and _)",
    ),
    "a result of the runner's": (
        '- guest: {call: "work:copy", as: round}',
        "steps[0].guest.as: 'round' is a name of the runner's own (choose another)",
    ),
    "a result called as a variable": (
        '- guest: {call: "work:copy", as: size}',
        "steps[0].guest.as: 'size' is a variable (choose another name)",
    ),
    "a guest step meanwhile": (
        '- guest: {call: "work:copy", meanwhile: [{guest: {call: "work:copy"}}]}',
        "steps[0].guest.meanwhile[0]: a guest does one thing at a time (meanwhile has no guest steps)",
    ),
    "a rule without a point": (
        "- inject: {do: drop}",
        "steps[0].inject.at: this key is missing (a point, such as request)",
    ),
    "the second rule of a list": (
        "- inject: [{at: request, do: drop}, {at: request}]",
        "steps[0].inject[1].do: this key is missing (an action, such as drop)",
    ),
    "no rules": (
        "- inject: []",
        "steps[0].inject: the list is empty (a rule, or a list of rules, such as {id: r1, at: request, do: drop})",
    ),
    "a point there is not": (
        "- inject: {at: requests, do: drop}",
        "steps[0].inject.at: Parameter 'at' does not accept value 'requests' (docs/faults.md has what a rule may say)",
    ),
    "a match there is not": (
        "- inject: {at: request, do: drop, match: {kind: MAP}}",
        "steps[0].inject.match.kind: Parameter 'match.kind' is unexpected (docs/faults.md has what a rule may say)",
    ),
    "a rule's odd name": (
        "- inject: {id: R1, at: request, do: drop}",
        "steps[0].inject.id: 'R1' is not the id of a rule (1 to 40 small letters, digits and -)",
    ),
    "two rules of one name": (
        f"{INJECT}\n{INJECT}",
        "steps[1].inject.id: 'r1' is the id of an earlier rule (ids are unique)",
    ),
    "an event for ever": (
        "- wait: {event: STOP, within: 1000}",
        "steps[0].wait.within: 1000 is not in 0..600 s (seconds, such as 30)",
    ),
    "an event of no rule": (
        f"{INJECT}\n- wait: {{event: FAULT_INJECTED, where: {{rule: other}}}}",
        "steps[1].wait.where.rule: nothing before this step injects 'other' (known here: r1)",
    ),
    "a command without a name": (
        "- qmp: {arguments: {}}",
        "steps[0].qmp.execute: this key is missing (a command, such as query-status or __org.vdev_query-units)",
    ),
    "nothing to look at": (
        "- expect: {is: 3}",
        "steps[0].expect.that: this key is missing (a dotted path into a result, such as first.status)",
    ),
    "nothing said about it": (
        f"{CALL}\n- expect: {{that: first}}",
        "steps[1].expect: it says nothing about it (one of is, is-not, contains, at-least, at-most, in)",
    ),
    "a result that is not there": (
        f"{CALL}\n- expect: {{that: frist.status, is: 3}}",
        "steps[1].expect.that: nothing before this step is called 'frist' (did you mean first?)",
    ),
    "a path with holes": (
        f"{CALL}\n- expect: {{that: first..status, is: 3}}",
        "steps[1].expect.that: 'first..status' is no name, or names with dots between (write first.status, say)",
    ),
    "a count that is none": (
        f"{INJECT}\n- expect: {{fired: {{r1: often}}}}",
        """steps[1].expect.fired.r1: 'often' is not a count (such as 2, ">=1" or "<=3")""",
    ),
    "a count of no rule": (
        "- expect: {fired: {r1: 1}}",
        "steps[0].expect.fired.r1: nothing before this step injects 'r1' (give the inject step an id)",
    ),
    "two expectations": (
        f"{INJECT}\n{CALL}\n- expect: {{that: first, is: 1, fired: {{r1: 1}}}}",
        "steps[2].expect: `fired` stands alone (make two steps of it)",
    ),
    "too often": (
        "- repeat: {times: 0, steps: [{note: a}]}",
        "steps[0].repeat.times: 0 is not in 1..10000 (a number, such as 3)",
    ),
    "nothing to repeat": (
        "- repeat: {times: 2, steps: []}",
        "steps[0].repeat.steps: the list is empty (a list of steps)",
    ),
    "a mistake inside": (
        "- repeat: {times: 2, steps: [{pause: x}]}",
        "steps[0].repeat.steps[0].pause: 'x' is text, not a number (such as 0.5)",
    ),
    "more than can be done": (
        "- repeat: {times: 5000, steps: [{note: a}, {note: b}, {note: c}]}",
        "steps[0].repeat.steps[1]: with it more than 10000 steps are done (repeat less often)",
    ),
    "a round of nothing": (
        "- note: round {{round}}",
        "steps[0].note.text: nothing before this step is called 'round' (known here: size, seed, attach)",
    ),
    "a release of nothing": (
        "- release: r1",
        "steps[0].release.rule: nothing before this step injects 'r1' (give the inject step an id)",
    ),
    "a release of no text": (
        "- release: 3",
        "steps[0].release: 3 is a whole number, not text (the id of a rule that holds something)",
    ),
    "a clear of something": ("- clear: {all: true}", "steps[0].clear.all: there is no such key (known here: )"),
    "a note of no text": ("- note: 3", "steps[0].note: 3 is a whole number, not text (a line of text)"),
    "a pause that is long": ("- pause: 100", "steps[0].pause: 100 is not in 0..60 s (seconds, such as 0.5)"),
    "a variable there is not": (
        "- note: a {{siez}}",
        "steps[0].note.text: nothing before this step is called 'siez' (did you mean size?)",
    ),
    "more after the end": (
        "- {qmp: {execute: quit}, ends: vm}\n- clear: {}",
        "steps[1]: the machine is gone after the step with `ends` (only note and expect follow)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_a_wrong_step_is_named_with_the_rule_and_the_cure(name: str, tmp_path: Path) -> None:
    steps, wanted = WRONG_STEPS[name]

    found = error_of(tmp_path, file_of(steps, "vars: {size: 4096}"))

    assert found == wanted.replace("INSIDE", str(tmp_path / "inside"))


WRONG_FILES = {
    "no steps": (
        "scenario: a\nmachine: {units: []}",
        "steps: this key is missing (give a list such as - note: nothing happens)",
    ),
    "unknown key": (file_of("- note: a", "sede: 3"), "sede: there is no such key (did you mean seed?)"),
    "a name that is none": (
        file_of("- note: a").replace("scenario: test", "scenario: A test"),
        "scenario: 'A test' is not a scenario's name (a name of small letters, digits and -, such as quota-runs-out)",
    ),
    "empty steps": (
        f"scenario: a\nmachine: {MACHINE}\nsteps: []",
        "steps: the list is empty (give a list such as - note: nothing happens)",
    ),
    "time that is too long": (
        file_of("- note: a", "timeout: 9999"),
        "timeout: 9999 is not in 0..3600 s (seconds, such as 120)",
    ),
    "a seed that is none": (
        file_of("- note: a", "seed: -1"),
        "seed: -1 is not in 0..2^64-1 (any other number does, such as 7)",
    ),
    "a variable's name": (
        file_of("- note: a", "vars: {Size: 3}"),
        "vars.Size: 'Size' is not a name (a small letter, then small letters, digits, - and _)",
    ),
    "a variable of the runner's": (
        file_of("- note: a", "vars: {seed: 3}"),
        "vars.seed: 'seed' is a name of the runner's own (choose another)",
    ),
    "an attachment": (
        file_of("- note: a", "attach: pci"),
        "attach: 'pci' is not a possible value (one of vfio-user, vhost-user)",
    ),
    "a machine with a mistake": (
        file_of("- note: a").replace("01:00.0", "01:00.9"),
        "machine: endpoints[accel0].bdf: '01:00.9': not a PCI address "
        "(write BUS:SLOT.FUNCTION in hexadecimal, such as 01:00.0)",
    ),
    "a machine with an initrd of its own": (
        file_of("- note: a").replace("{units", "{vm: {kernel: cloud, initrd: none}, units"),
        "machine: vm.initrd: with vm.initrd the guest has nobody who could do the scenario's guest steps "
        "(leave it out, or set vm.kernel: the runner brings its own initrd)",
    ),
    "no directory for the guest": (
        file_of('- guest: {call: "work:copy"}').replace("guest: inside", ""),
        "guest: steps[0] calls a function, and this key is missing "
        "(a directory with the modules that guest steps call)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_named_with_the_rule_and_the_cure(name: str, tmp_path: Path) -> None:
    text, wanted = WRONG_FILES[name]

    assert error_of(tmp_path, text) == wanted


def test_a_seed_of_the_command_line_is_checked_before_anything_boots(tmp_path: Path) -> None:
    found = error_of(tmp_path, file_of("- note: a"), seed=1 << 64)

    assert found == "seed: 18446744073709551616 is not in 0..2^64-1 (any other number does, such as 7)"


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = file_of("- note: a").replace("guest: inside", "guest: outside")

    assert f"guest: {tmp_path / 'outside'} is not a directory" in error_of(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: .*No such file.* \(make it readable UTF-8\)"):
        load_scenario(tmp_path / "none.yaml", Overrides())


def test_a_variable_the_scenario_has_not_is_refused(tmp_path: Path) -> None:
    text = file_of("- note: a", "vars: {driver: right}")

    found = error_of(tmp_path, text, variables={"drvier": "wrong"})

    assert found == "vars.drvier: the scenario has no variable 'drvier' (did you mean driver?)"


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    text = file_of("- note: '{{driver}} {{seed}} {{attach}}'", "vars: {driver: right}\nseed: 7")

    scenario = scenario_in(tmp_path, text, attach="vhost-user", seed=8, variables={"driver": "wrong"})

    assert (scenario.attach, scenario.seed, scenario.variables) == ("vhost-user", 8, {"driver": "wrong"})
    assert [getattr(step.does, "text", None) for step in scenario.steps] == ["wrong 8 vhost-user"]


def test_a_variable_stands_for_a_value_of_its_own_type(tmp_path: Path) -> None:
    text = file_of("- pause: '{{seconds}}'", "vars: {seconds: 0.25}")

    (step,) = scenario_in(tmp_path, text).steps

    assert getattr(step.does, "seconds", None) == 0.25


def test_steps_inside_steps_know_where_they_stand(tmp_path: Path) -> None:
    steps = """
- repeat:
    times: 2
    steps:
      - guest: {call: "work:copy", meanwhile: [{note: a}]}
"""

    scenario = scenario_in(tmp_path, file_of(steps))

    assert [step.key for step in walk(scenario.steps)] == [
        "steps[0]",
        "steps[0].repeat.steps[0]",
        "steps[0].repeat.steps[0].guest.meanwhile[0]",
    ]


def test_a_rule_may_have_the_name_of_one_that_was_cleared(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, file_of(f"{INJECT}\n- clear: {{}}\n{INJECT}\n- expect: {{fired: {{r1: 0}}}}"))

    assert len(scenario.steps) == 4


def test_names_that_only_the_run_knows_are_let_through(tmp_path: Path) -> None:
    steps = """
- repeat: {times: 2, steps: [{inject: {id: "r-{{round}}", at: request, do: drop}}]}
- expect: {fired: {r-1: 0}}
"""

    assert len(scenario_in(tmp_path, file_of(steps)).steps) == 2
