"""Fault plans of a real `vdev serve`: from its configuration, from a file, by commands; without a guest."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve_process import ONE_UNIT, ServeProcess
from vdev.faults.actions import BOUND, FREE, POINTS
from vdev.qapi.check import check_return
from vdev.qapi.model import Enum
from vdev.qapi.schema import schema

WAIT_S = 20.0
PLAN = """
faults:
  seed: 7
  rules:
    - {id: from-the-start, at: timer, do: config-change}
    - {at: request, do: status, match: {type: MAP}, when: {nth: [1, 3]}, with: {status: NOMEM}}
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    served = ServeProcess(ONE_UNIT + PLAN, tmp_path_factory.mktemp("serve") / "run")
    yield served
    served.kill()


@pytest.fixture
def clean(process: ServeProcess) -> ServeProcess:
    process.ask("fault-clear")
    return process


def ask(process: ServeProcess, command: str, **arguments: object) -> Any:
    """What the command returns, which is as described."""
    returned = process.ask(command, **{name.replace("_", "-"): value for name, value in arguments.items()})
    check_return(schema().commands[command].returns, returned)
    return returned


def logged(process: ServeProcess, rule: str, count: int = 1) -> list[dict[str, Any]]:
    """The firings of `rule`, once there are so many."""
    deadline = time.monotonic() + WAIT_S
    while len(found := ask(process, "query-fault-log", rule=rule)) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return list(found)


def test_the_configurations_plan_is_in_place_from_the_start(process: ServeProcess) -> None:
    (firing,) = logged(process, "from-the-start")

    plan = ask(process, "query-fault-plan")
    assert (firing["at"], firing["do"], firing["n"]) == ("timer", "config-change", 1)
    assert plan["seed"] == 7
    assert [(rule["id"], rule["fired"]) for rule in plan["rules"]] == [("from-the-start", 1), ("r2", 0)]
    assert plan["rules"][1]["when"] == {"nth": [1, 3]}


def test_a_rule_is_added_looked_at_and_removed(clean: ServeProcess) -> None:
    added = ask(clean, "fault-add", at="timer", do="config-change", when={"delay": 0, "period": 0.01}, times=3)
    firings = logged(clean, added["id"], 3)

    (rule,) = ask(clean, "query-fault-plan")["rules"]
    removed = ask(clean, "fault-remove", id=added["id"])

    assert (rule["times"], rule["with"]) == (3, {"function": "iommu0"})
    assert [firing["n"] for firing in firings] == [1, 2, 3]
    assert all(firing["seq"] >= added["since"] for firing in firings)
    assert removed == {"matched": 3, "fired": 3, "released": 0}
    assert ask(clean, "query-fault-plan")["rules"] == []


def test_a_plan_replaces_another_as_a_whole_or_not_at_all(clean: ServeProcess) -> None:
    drop = {"at": "request", "do": "drop"}
    ask(clean, "fault-load", plan={"rules": [{"id": "old", **drop}]})

    with pytest.raises(RuntimeError, match=r"faults\.rules\[bad\]\.do"):
        ask(clean, "fault-load", plan={"seed": 9, "rules": [drop, {"id": "bad", "at": "dma", "do": "x"}]}, replace=True)
    kept = ask(clean, "query-fault-plan")
    loaded = ask(clean, "fault-load", plan={"seed": 9, "rules": [{"id": "new", **drop}]}, replace=True)
    plan = ask(clean, "query-fault-plan")

    assert [rule["id"] for rule in kept["rules"]] == ["old"]
    assert kept["seed"] != 9
    assert loaded["ids"] == ["new"]
    assert ([rule["id"] for rule in plan["rules"]], plan["seed"]) == (["new"], 9)


def test_seed_release_and_clear_are_answered_as_described(clean: ServeProcess) -> None:
    clean.ask("fault-seed", seed=(1 << 64) - 1)

    assert ask(clean, "query-fault-plan")["seed"] == (1 << 64) - 1
    assert ask(clean, "fault-release") == {"released": 0}
    assert ask(clean, "fault-clear") == {"removed": 0, "undone": [], "terminal": []}


@pytest.mark.parametrize(
    ("command", "arguments", "problem"),
    [
        ("fault-add", {"at": "request", "do": "drop", "when": {"every": 0}}, r"faults\.rules\[r\d+\]\.when\.every"),
        ("fault-add", {"at": "request", "do": "drop", "with": 3}, r"faults\.rules\[r\d+\]\.with"),
        ("fault-load", {"plan": 3}, "faults: "),
        ("fault-load", {"plan": {"rules": [3]}}, "faults"),
        ("fault-remove", {"id": "nobody"}, "there is no rule 'nobody'"),
        ("fault-remove", {"id": "nobody", "release": True}, "there is no rule 'nobody'"),
        ("fault-release", {"id": "nobody"}, "there is no rule 'nobody'"),
        ("query-fault-log", {"limit": 0}, "limit: 0 is not in 1..4096"),
        ("fault-qemu-done", {"rule": "r1", "n": 1}, "nothing is asked of QEMU"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(
    clean: ServeProcess, command: str, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RuntimeError, match=problem):
        clean.ask(command, **arguments)

    assert ask(clean, "query-fault-plan")["rules"] == []


def test_the_actions_are_those_of_the_table(process: ServeProcess) -> None:
    actions = ask(process, "query-fault-actions")

    bound = [(point, action["do"]) for action in actions if not action["free"] for point in action["at"]]
    assert bound == [(point, name) for point, known in BOUND.items() for name in known]
    assert [action["do"] for action in actions if action["free"]] == list(FREE)
    assert all(action["at"] == list(POINTS) for action in actions if action["free"])


def test_the_schema_has_the_points_of_the_table() -> None:
    described = schema().types["FaultPoint"]

    assert isinstance(described, Enum)
    assert [value.name for value in described.values] == list(POINTS)


def serve(directory: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`vdev serve` of what cannot be served."""
    (directory / "config.yaml").write_text(text)
    command = [sys.executable, "-m", "vdev", "serve", str(directory / "config.yaml"), "--runtime-dir", str(directory)]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=WAIT_S, check=False)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("{at: nowhere, do: drop}", "vdev: faults.rules[r1].at: 'nowhere' is no point"),
        ("{id: x, at: dma, do: delay}", "vdev: faults.rules[x].with.seconds: the action delay needs it"),
        ("{at: timer, do: remove, with: {function: no}}", "vdev: faults.rules[r1].with.function: there is no function"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("of_file", [False, True])
def test_a_wrong_rule_is_wrong_input_wherever_it_is_written(
    tmp_path: Path, rule: str, problem: str, of_file: bool
) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "plan.yaml").write_text(f"rules: [{rule}]")
    own = "" if of_file else f"faults: {{rules: [{rule}]}}"

    done = serve(tmp_path, ONE_UNIT + own, *(["--faults", str(tmp_path / "plan.yaml")] if of_file else []))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(problem)


def test_a_plan_file_that_is_not_there_is_wrong_input(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    done = serve(tmp_path, ONE_UNIT, "--faults", str(tmp_path / "nowhere.yaml"))

    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
