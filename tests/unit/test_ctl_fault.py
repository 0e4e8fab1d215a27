"""`vdev ctl fault`: what each of its words asks for, and what it prints. Who answers has a table of answers here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.answering import Answering, Answers, Pages, Refusal, answering_in
from vdev.__main__ import main
from vdev.fault_commands import known_actions
from vdev.qapi.check import check_arguments
from vdev.qapi.schema import schema

Ask = Callable[..., "Said"]
RULE = {
    "id": "third-map", "at": "request", "do": "status", "match": {"type": "MAP", "iova": "0x1000"},
    "when": {"nth": [1, 3]}, "with": {"status": "NOMEM", "perform": False}, "times": 1, "matched": 5, "fired": 1,
    "held": 0,
}  # fmt: skip
TIMER = {
    "id": "r2", "at": "timer", "do": "remove", "match": {}, "when": {"delay": 0.5}, "with": {"function": "accel0"},
    "times": 2, "matched": 0, "fired": 0, "held": 0,
}  # fmt: skip
ALWAYS = {**TIMER, "id": "r3", "at": "dma", "do": "completer-abort", "when": {}, "with": {}, "held": 2}
del ALWAYS["times"]
PLAN = {"seed": 7, "rules": [RULE, TIMER, ALWAYS], "held-by-none": 0, "waiting": 1, "next-seq": 4}

TABLE = """\
seed: 7

id         at       do                                 match                  when                matched  fired  held
third-map  request  status status=NOMEM perform=false  type=MAP, iova=0x1000  nth=1,3, once             5      1     0
r2         timer    remove function=accel0             all                    delay=0.5, 2 times        0      0     0
r3         dma      completer-abort                    all                    always                    0      0     2
"""


class Said:
    """What one command line came to."""

    def __init__(self, status: int, out: str, err: str, asked: list[tuple[str, dict[str, Any]]]) -> None:
        self.status = status
        self.lines = out.splitlines()
        self.err = err
        self.asked = asked


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Ask]:
    """`ask(answers, *words)`: `vdev ctl fault WORDS`, with a control socket that answers so."""
    with answering_in(tmp_path) as make:

        def run(answers: Answers, *words: str) -> Said:
            vm: Answering = make("control.sock", answers)
            status = main(["ctl", "fault", *words, "--socket", str(tmp_path / "control.sock")])
            shown = capsys.readouterr()
            for command, arguments in vm.asked:
                check_arguments(schema().commands[command], arguments)
            return Said(status, shown.out, shown.err, vm.asked)

        yield run


def test_a_rule_is_added_as_a_plan_would_spell_it(ask: Ask) -> None:
    said = ask(
        {"fault-add": {"id": "third-map", "since": 0}},
        "add", "--at", "request", "--do", "status", "--id", "third-map", "--match", "type=MAP",
        "--match", "iova=0x1000-0x1fff", "--match", "domain=0x10", "--when", "nth=1,3", "--when", "probability=0.5",
        "--when", "window=[0, 2.5]", "--with", "status=NOMEM", "--with", "perform=true", "--times", "2",
    )  # fmt: skip

    assert said.asked == [(
        "fault-add",
        {
            "at": "request", "do": "status", "id": "third-map", "times": 2,
            "match": {"type": "MAP", "iova": "0x1000-0x1fff", "domain": 16},
            "when": {"nth": [1, 3], "probability": 0.5, "window": [0, 2.5]},
            "with": {"status": "NOMEM", "perform": True},
        },
    )]  # fmt: skip
    assert said.lines == ["third-map"]


def test_what_is_not_said_is_not_sent(ask: Ask) -> None:
    said = ask({"fault-add": {"id": "r1", "since": 0}}, "add", "--at", "dma", "--do", "completer-abort")

    assert said.asked == [("fault-add", {"at": "dma", "do": "completer-abort"})]


@pytest.mark.parametrize("replace", [True, False])
def test_a_plan_is_loaded_from_its_file(ask: Ask, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "plan.yaml").write_text("seed: 0x10\nrules:\n  - {at: request, do: drop, match: {domain: 0x2}}\n")
    words = ["load", str(tmp_path / "plan.yaml"), *(["--replace"] if replace else [])]

    said = ask({"fault-load": {"ids": ["r1", "r2"], "since": 0}}, *words)

    plan = {"seed": 16, "rules": [{"at": "request", "do": "drop", "match": {"domain": 2}}]}
    assert said.asked == [("fault-load", {"plan": plan, **({"replace": True} if replace else {})})]
    assert said.lines == ["r1", "r2"]


def test_the_rules_are_a_table(ask: Ask) -> None:
    said = ask({"query-fault-plan": PLAN}, "list")

    assert said.lines == TABLE.splitlines()


def test_no_rules_are_said_to_be_none_and_what_is_held_all_the_same_is_told(ask: Ask) -> None:
    said = ask({"query-fault-plan": {**PLAN, "rules": [], "held-by-none": 3}}, "list")

    assert said.lines == ["seed: 7", "held for rules that are gone: 3", "no rules"]


def firing(seq: int) -> dict[str, Any]:
    return {
        "seq": seq, "time": 12.5, "rule": "r1", "n": seq, "at": "dma", "do": "drop", "text": f"rule r1, {seq}: drop",
        "fields": {},
    }  # fmt: skip


def test_the_log_is_read_to_its_end(ask: Ask) -> None:
    pages = Pages([[firing(seq) for seq in range(1000)], [firing(1000)]])

    said = ask({"query-fault-log": pages}, "log", "--rule", "r1")

    assert [arguments for _, arguments in said.asked] == [
        {"rule": "r1", "limit": 1000}, {"rule": "r1", "limit": 1000, "since": 1000},
    ]  # fmt: skip
    assert len(said.lines) == 1001
    assert said.lines[-1] == " 1000       12.500000  rule r1, 1000: drop"


@pytest.mark.parametrize(
    ("words", "command", "arguments", "answer", "lines"),
    [
        (
            ["remove", "r1"], "fault-remove", {"id": "r1"}, {"matched": 3, "fired": 2, "released": 0},
            ["matched: 3", "fired: 2", "released: 0"],
        ),
        (
            ["remove", "r1", "--release"], "fault-remove", {"id": "r1", "release": True},
            {"matched": 3, "fired": 2, "released": 1}, ["matched: 3", "fired: 2", "released: 1"],
        ),
        (["release"], "fault-release", {}, {"released": 4}, ["released: 4"]),
        (["release", "r1"], "fault-release", {"id": "r1"}, {"released": 1}, ["released: 1"]),
        (
            ["clear"], "fault-clear", {}, {"removed": 2, "undone": ["accel0 is back"], "terminal": ["die: dead"]},
            ["rules: 2", "undone: accel0 is back", "for good: die: dead"],
        ),
        (["log", "--since", "5"], "query-fault-log", {"since": 5, "limit": 1000}, [], ["none"]),
    ],
)  # fmt: skip
def test_the_other_words_are_one_command_each(
    ask: Ask, words: list[str], command: str, arguments: dict[str, Any], answer: Any, lines: list[str]
) -> None:
    said = ask({command: answer}, *words)

    assert said.asked == [(command, arguments)]
    assert (said.status, said.lines) == (0, lines)


def test_actions_are_those_of_one_point_or_all(ask: Ask, tmp_path: Path) -> None:
    said = ask({"query-fault-actions": known_actions()}, "actions", "--at", "event")

    first = [line.split()[0] for line in said.lines[1:]]
    assert first[:4] == ["drop", "duplicate", "delay", "unknown-reason"]
    assert {"remove", "die"} <= set(first)
    assert "status" not in first
    (delay,) = [line for line in said.lines if line.startswith("delay ")]
    assert delay.split()[:3] == ["delay", "event", "seconds"]


def test_json_is_the_reply_as_it_came(ask: Ask) -> None:
    said = ask({"query-fault-plan": PLAN}, "list", "--json")

    assert json.loads(said.lines[0]) == PLAN


def test_what_vdev_refuses_is_said_and_the_status_is_1(ask: Ask) -> None:
    refusal = Refusal("faults.rules[r1].do: 'x' is no action at the point dma")

    said = ask({"fault-add": refusal}, "add", "--at", "dma", "--do", "x")

    assert (said.status, said.lines) == (1, [])
    assert said.err == f"vdev: {refusal}\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["add", "--at", "nowhere", "--do", "x"], "fault add: Parameter 'at' does not accept value 'nowhere'"),
        (["add", "--at", "dma", "--do", "x", "--match", "typ=MAP"], "fault add: Parameter 'match.typ' is unexpected"),
        (["add", "--at", "dma", "--do", "x", "--match", "MAP"], "--match: 'MAP' is not NAME=VALUE"),
        (["add", "--at", "dma", "--do", "x", "--with", "a=1", "--with", "a=2"], "--with: a is given twice"),
        (["add", "--at", "dma", "--do", "x", "--when", "nth="], "--when: 'nth=': what is behind = is empty"),
        (["load", "/nowhere/plan.yaml"], "plan.yaml: /nowhere/plan.yaml: cannot be read: No such file"),
    ],
)
def test_wrong_words_are_refused_before_anybody_is_asked(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["ctl", "fault", *words, "--socket", "/nowhere/control.sock"])

    assert status == 2
    assert capsys.readouterr().err.startswith(f"vdev: {problem}")


def test_vdev_ctl_names_it_among_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ctl", "--help"])

    assert "vdev ctl fault add|load|list" in capsys.readouterr().out
