"""The command `qmp-bridge run` but for the machine: what is given on the command line, what becomes of a bad start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from guest_tests.runner.pool import NeverCameUp, Pool
from guest_tests.scenario.run import machine_of, overrides_in, play_on, run
from qmp_bridge.__main__ import _parser, main
from tests.support.scenario import file_of, scenario_in
from vdev.errors import ConfigError, PartsError, VdevError


class PoolWithout:
    """A pool that cannot start anything, for the reason given."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def guest(self, machine: object) -> object:
        raise NeverCameUp(f"it did not come up: {self.cause}", [("console", "a line")], Path("logs/1")) from self.cause


def arguments(*words: str) -> argparse.Namespace:
    """A command line of `run`."""
    return _parser().parse_args(["run", *words])


def test_variables_of_the_command_line_have_the_types_they_would_have_in_the_file() -> None:
    given = overrides_in(arguments("a.yaml", "--var", "count=3", "--var", "name=right one", "--driver", "none"))

    assert given.variables == {"count": 3, "name": "right one", "driver": "none"}


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("count", "--var: 'count' is not NAME=VALUE (write --var driver=right, say)"),
        ("=3", "--var: '=3' is not NAME=VALUE (write --var driver=right, say)"),
        ("a=[1]", "vars.a: '[1]' is not one plain value (a word or a number)"),
    ],
)
def test_a_variable_that_is_none_is_refused(word: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overrides_in(arguments("a.yaml", "--var", word))

    assert str(caught.value) == wanted


@pytest.mark.parametrize("error", [ConfigError("vm", "odd"), PartsError("QEMU", "none")])
def test_a_machine_that_cannot_be_had_is_wrong_input(error: VdevError, tmp_path: Path) -> None:
    pool: Any = PoolWithout(error)

    with pytest.raises(type(error)) as caught:
        play_on(pool, scenario_in(tmp_path, file_of("- note: a")), lambda text: None)

    assert caught.value is error


def test_a_machine_that_dies_while_it_starts_is_not_green(tmp_path: Path) -> None:
    pool: Any = PoolWithout(VdevError("the guest died of a panic"))

    outcome = play_on(pool, scenario_in(tmp_path, file_of("- note: a")), lambda text: None)

    assert outcome.failure is not None
    assert outcome.failure.found == "it did not come up: the guest died of a panic"
    assert (outcome.sections, outcome.logs) == ([("console", "a line")], "logs/1")


def test_a_report_that_cannot_be_written_is_noticed_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "guest", lambda *_: pytest.fail("a machine was started"))
    path = scenario_in(tmp_path, file_of("- note: a")).path

    with pytest.raises(ConfigError, match=r"none/report: cannot be written: No such file or directory"):
        run(arguments(str(path), "--report", str(tmp_path / "none" / "report")), print, print)


def test_a_wrong_file_ends_the_command_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("scenario: a")

    status = main(["run", str(path)])

    assert status == 2
    assert capsys.readouterr().err.startswith(f"qmp-bridge: {path}: machine: this key is missing")


def test_options_of_the_machine_win_over_the_scenarios_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def remember(pool: Pool, machine: Any) -> None:
        seen.append(machine)
        raise NeverCameUp("enough")

    monkeypatch.setattr(Pool, "guest", remember)
    path = scenario_in(tmp_path, file_of("- note: a")).path

    status = run(
        arguments(str(path), "--memory", "384M", "--attach", "vhost-user"), lambda text: None, lambda text: None
    )

    assert status == 1
    assert (seen[0].config.vm.memory, seen[0].attach) == ("384M", "vhost-user")


def test_the_machine_of_a_scenario_has_its_modules(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, file_of("- note: a", "driver: stock"))

    machine = machine_of(scenario)

    assert (machine.id, machine.suite, machine.driver) == ("test", tmp_path / "inside", "stock")
