"""What steps do and when they fail, on a machine that a test has prepared (tests/support/scenario.py)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from guest_tests.scenario.scene import CommandRefused
from tests.support.scenario import FakeMachine, Played, file_of, played, raised, scenario_in

INJECT = "- inject: {id: r1, at: request, do: hold, match: {type: MAP}}"
DIES = "the backend was ended by SIGKILL; QEMU was stopped at once"


def play(directory: Path, steps: str, machine: FakeMachine | None = None, head: str = "", **more: Any) -> Played:
    """Play these steps."""
    return played(scenario_in(directory, file_of(steps, head)), machine or FakeMachine(), **more)


def why(result: Played) -> tuple[str, str, str]:
    """The step that failed, what it expected, what it found."""
    assert result.failure is not None
    return result.failure.step, result.failure.expected, result.failure.found


def test_a_guest_steps_result_is_there_for_later_steps(tmp_path: Path) -> None:
    machine = FakeMachine(calls={"work:copy": {"iova": 0x10000}, "work:fill": "ok"})
    steps = """
- guest: {call: "work:copy", as: first}
- guest: {call: "work:fill", with: {iova: "{{first.iova}}", text: "at {{first.iova}}"}, as: second}
- expect: {that: second, is: ok}
"""

    result = play(tmp_path, steps, machine)

    assert (result.failure, result.ndone) == (None, 3)
    assert machine.asked[1] == ("work:fill", {"iova": 0x10000, "text": "at 65536"})
    assert result.lines == [
        "guest: work:copy",
        ": returned {iova: 0x10000}",
        "guest: work:fill {iova: 0x10000, text: at 65536}",
        ": returned ok",
        "expect: second is ok",
    ]


def test_a_path_that_leads_nowhere_fails_the_step(tmp_path: Path) -> None:
    machine = FakeMachine(calls={"work:copy": {"places": [1, 2]}})
    steps = """
- guest: {call: "work:copy", as: first}
- expect: {that: first.places.-1, is: 2}
- expect: {that: first.places.7, is: 2}
"""

    result = play(tmp_path, steps, machine)

    assert why(result) == (
        "steps[2]", "first.places.7", "first.places.7: first.places is [1, 2], without '7'",
    )  # fmt: skip


RAISES = {
    "unasked": ('{call: "work:copy"}', ("work:copy returns", "it raised ValueError: odd")),
    "other words": ('{call: "work:copy", raises: even}', ("it raises 'even'", "it raised ValueError: odd")),
}


@pytest.mark.parametrize("name", RAISES)
def test_a_function_that_raises_fails_its_step_with_the_guests_traceback(name: str, tmp_path: Path) -> None:
    step, wanted = RAISES[name]

    result = play(tmp_path, f"- guest: {step}", FakeMachine(calls={"work:copy": raised("ValueError: odd")}))

    assert why(result) == ("steps[0]", *wanted)
    assert result.failure is not None
    assert result.failure.detail.startswith("Traceback")


def test_a_function_that_raises_as_it_should_is_good(tmp_path: Path) -> None:
    machine = FakeMachine(calls={"work:copy": raised("ValueError: odd")})

    result = play(tmp_path, '- guest: {call: "work:copy", raises: odd, as: said}', machine)

    assert (result.failure, result.values["said"]) == (None, "ValueError: odd")


def test_a_function_that_does_not_raise_as_it_should_fails_its_step(tmp_path: Path) -> None:
    result = play(tmp_path, '- guest: {call: "work:copy", raises: odd}', FakeMachine(calls={"work:copy": 3}))

    assert why(result) == ("steps[0]", "it raises 'odd'", "it returned 3")


MEANWHILE = f"""
{INJECT}
- guest:
    call: "work:copy"
    as: first
    meanwhile:
      - wait: {{event: FAULT_INJECTED, where: {{rule: r1}}}}
      - release: r1
"""


def held_call(machine: FakeMachine) -> Any:
    """A function of the guest that returns when nothing is held any more."""

    async def wait_for_release(**arguments: Any) -> str:
        await machine.released.wait()
        return "done"

    return wait_for_release


def test_steps_meanwhile_are_done_while_the_function_runs(tmp_path: Path) -> None:
    machine = FakeMachine(events=[("FAULT_INJECTED", {"rule": "r1"})], held={"r1": 1})
    machine.calls["work:copy"] = held_call(machine)

    result = play(tmp_path, MEANWHILE, machine)

    assert (result.failure, result.values["first"]) == (None, "done")
    assert result.lines[-3:] == ["release: r1", ": released 1", ": returned done"]


def test_a_step_that_fails_meanwhile_is_told_when_the_function_has_come_to_its_end(tmp_path: Path) -> None:
    machine = FakeMachine(held={"r1": 1})
    machine.calls["work:copy"] = held_call(machine)

    def clear() -> dict[str, int]:
        machine.released.set()
        return {"removed": 1}

    machine.commands["__org.vdev_fault-clear"] = clear

    result = play(tmp_path, MEANWHILE, machine)

    assert why(result) == (
        "steps[1].guest.meanwhile[0]", "the event FAULT_INJECTED {rule: r1}", "it did not come within 5 s",
    )  # fmt: skip
    assert machine.released.is_set()


def test_rules_are_added_as_they_are_given(tmp_path: Path) -> None:
    machine = FakeMachine()
    steps = """
- inject:
    - {id: r1, at: request, do: status, with: {status: NOMEM}, when: {nth: 2}, times: 1}
    - {id: r2, at: dma, do: delay, with: {seconds: 0.5}, match: {access: write}}
"""

    result = play(tmp_path, steps, machine)

    assert result.failure is None
    assert machine.asked == [
        ("__org.vdev_fault-add", {
            "id": "r1", "at": "request", "do": "status", "with": {"status": "NOMEM"}, "when": {"nth": 2}, "times": 1,
        }),
        ("__org.vdev_fault-add", {
            "id": "r2", "at": "dma", "do": "delay", "with": {"seconds": 0.5}, "match": {"access": "write"},
        }),
    ]  # fmt: skip
    assert result.lines[0] == (
        "inject: r1: at request do status with {status: NOMEM} when {nth: 2} times 1; "
        "r2: at dma do delay with {seconds: 0.5} match {access: write}"
    )


def test_a_rule_that_vdev_refuses_fails_its_step_with_vdevs_words(tmp_path: Path) -> None:
    machine = FakeMachine(commands={"__org.vdev_fault-add": CommandRefused("there is no unit 'x'")})

    result = play(tmp_path, INJECT, machine)

    assert why(result) == ("steps[0]", "fault-add is done", "it is refused: there is no unit 'x'")


def test_each_event_is_waited_for_once(tmp_path: Path) -> None:
    machine = FakeMachine(events=[("STOP", {}), ("RESUME", {}), ("STOP", {})])
    steps = "- wait: {event: STOP}\n- wait: {event: STOP}\n- wait: {event: STOP, within: 0.1}"

    assert why(play(tmp_path, steps, machine)) == ("steps[2]", "the event STOP", "it did not come within 0.1 s")


def test_an_event_must_say_all_that_is_wanted(tmp_path: Path) -> None:
    machine = FakeMachine(events=[("E", {"unit": "a", "at": {"n": 1}}), ("E", {"unit": "b", "at": {"n": 1}})])

    result = play(tmp_path, "- wait: {event: E, where: {unit: b, at.n: 1}, as: seen}", machine)

    assert result.values["seen"] == {"unit": "b", "at": {"n": 1}}
    assert machine.events == [("E", {"unit": "a", "at": {"n": 1}})]


QMP = {
    "refused unasked": ("{execute: stop}", CommandRefused("no"), ("stop is done", "it is refused: no")),
    "other words": (
        "{execute: stop, error: never}",
        CommandRefused("no"),
        ("it is refused with 'never'", "it is refused: no"),
    ),
    "not refused": ("{execute: stop, error: never}", {}, ("it is refused with 'never'", "it returned {}")),
    "silence": ("{execute: stop, within: 2}", TimeoutError(), ("stop is answered", "no answer within 2 s")),
}


@pytest.mark.parametrize("name", QMP)
def test_a_command_that_comes_out_otherwise_fails_its_step(name: str, tmp_path: Path) -> None:
    step, answer, wanted = QMP[name]

    assert why(play(tmp_path, f"- qmp: {step}", FakeMachine(commands={"stop": answer}))) == ("steps[0]", *wanted)


def test_a_command_that_is_refused_as_it_should_be_is_good(tmp_path: Path) -> None:
    machine = FakeMachine(commands={"migrate": CommandRefused("vfio-user cannot migrate")})

    result = play(tmp_path, "- qmp: {execute: migrate, error: cannot migrate, as: said}", machine)

    assert (result.failure, result.values["said"]) == (None, "vfio-user cannot migrate")


EXPECTED = {
    "{that: v.number, is: 7}": "",
    "{that: v.number, is: 8}": "v.number is 8",
    "{that: v.number, is: true}": "v.number is true",
    "{that: v.one, is: true}": "v.one is true",
    "{that: v.number, is-not: 8}": "",
    "{that: v.number, is-not: 7}": "v.number is-not 7",
    "{that: v.text, contains: refused}": "",
    "{that: v.text, contains: granted}": "v.text contains granted",
    "{that: v.list, contains: 2}": "",
    "{that: v.number, contains: 2}": "v.number contains 2",
    "{that: v.number, at-least: 7}": "",
    "{that: v.number, at-least: 8}": "v.number at-least 8",
    "{that: v.number, at-most: 7}": "",
    "{that: v.number, at-most: 6.5}": "v.number at-most 6.5",
    "{that: v.text, at-most: 6}": "v.text at-most 6",
    "{that: v.number, in: [6, 7]}": "",
    "{that: v.number, in: [6, 8]}": "v.number in [6, 8]",
    "{that: v.nothing, is: null}": "",
    '{that: v.number, is: "{{v.seven}}"}': "",
    "{that: v.number, at-least: 1, at-most: 3}": "v.number at-most 3",
}


@pytest.mark.parametrize("step", EXPECTED)
def test_an_expectation_holds_or_says_what_was_expected(step: str, tmp_path: Path) -> None:
    value = {"number": 7, "seven": 7, "one": 1, "text": "it was refused", "list": [1, 2], "nothing": None}
    machine = FakeMachine(calls={"work:copy": value})

    result = play(tmp_path, f'- guest: {{call: "work:copy", as: v}}\n- expect: {step}', machine)

    assert (result.failure.expected if result.failure else "") == EXPECTED[step]


FIRED = {"2": True, "1": False, '">=2"': True, '">=3"': False, '"<=2"': True, '"<=1"': False}


@pytest.mark.parametrize("count", FIRED)
def test_rules_must_have_fired_as_often_as_is_said(count: str, tmp_path: Path) -> None:
    machine = FakeMachine()
    machine.commands["fire"] = lambda: machine.rules.update(r1=2)

    result = play(tmp_path, f"{INJECT}\n- qmp: {{execute: fire}}\n- expect: {{fired: {{r1: {count}}}}}", machine)

    assert (result.failure is None) is FIRED[count]


def test_firings_of_rules_that_were_cleared_still_count(tmp_path: Path) -> None:
    machine = FakeMachine()
    machine.commands["fire"] = lambda: machine.rules.update(r1=machine.rules["r1"] + 1)
    steps = f"""
{INJECT}
- qmp: {{execute: fire}}
- clear: {{}}
{INJECT}
- qmp: {{execute: fire}}
- expect: {{fired: {{r1: 2}}}}
"""

    assert play(tmp_path, steps, machine).failure is None


def test_a_repeat_counts_its_rounds_from_one(tmp_path: Path) -> None:
    machine = FakeMachine(calls={"work:copy": lambda number: number * 10})
    steps = """
- repeat:
    times: 3
    steps: [{guest: {call: "work:copy", with: {number: "{{round}}"}, as: last}}]
- expect: {that: last, is: 30}
"""

    result = play(tmp_path, steps, machine)

    assert (result.failure, result.ndone) == (None, 5)
    assert [arguments["number"] for _, arguments in machine.asked] == [1, 2, 3]


def test_a_release_of_what_is_not_held_fails(tmp_path: Path) -> None:
    assert why(play(tmp_path, f"{INJECT}\n- release: r1")) == ("steps[1]", "r1 holds something", "nothing")


@pytest.mark.parametrize(("ends", "reason"), [("backend", DIES), ("vm", "QEMU was ended by SIGKILL")])
def test_a_machine_may_end_where_a_step_says_so(ends: str, reason: str, tmp_path: Path) -> None:
    machine = FakeMachine()
    machine.commands["quit"] = lambda: machine.end(reason)

    result = play(tmp_path, f"- {{qmp: {{execute: quit}}, ends: {ends}}}\n- note: it is over", machine)

    assert (result.failure, result.ndone) == (None, 2)
    assert result.lines == ["qmp: quit", f": {reason}", "note: it is over"]


def test_another_end_than_the_one_that_was_named_fails_the_step(tmp_path: Path) -> None:
    machine = FakeMachine()
    machine.commands["quit"] = lambda: machine.end(DIES)

    result = play(tmp_path, "- {qmp: {execute: quit}, ends: vm}", machine)

    assert why(result) == ("steps[0]", "QEMU or the guest ends", DIES)


def test_a_machine_that_does_not_end_fails_the_step_that_says_so(tmp_path: Path) -> None:
    result = play(tmp_path, "- {qmp: {execute: quit}, ends: backend}", FakeMachine(commands={"quit": {}}))

    assert why(result) == ("steps[0]", "the backend ends", "it goes on")


def test_a_machine_that_goes_unasked_fails_the_step_at_hand_with_its_last_words(tmp_path: Path) -> None:
    machine = FakeMachine()

    async def die(**arguments: Any) -> None:
        machine.end(DIES)
        await asyncio.sleep(60)

    machine.calls["work:copy"] = die
    steps = '- repeat: {times: 2, steps: [{guest: {call: "work:copy"}}]}'

    result = play(tmp_path, steps, machine)

    assert why(result) == ("steps[0].repeat.steps[0]", "the machine goes on", DIES)
    assert result.gone is not None
    assert result.gone.sections == [("console", "its last words")]


def test_all_together_may_not_take_longer_than_the_scenario_says(tmp_path: Path) -> None:
    result = play(tmp_path, "- note: first\n- pause: 10", seconds=0.05)

    assert why(result) == ("steps[1]", "all is done within 0.05 s", "it was at steps[1] by then")
