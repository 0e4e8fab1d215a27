"""The command line of `vdev ctl`: what it takes, lists and refuses."""

from __future__ import annotations

import re

import pytest

from vdev.__main__ import main
from vdev.ctl.options import EVENTS, arguments_of, parser
from vdev.qapi.schema import schema

COMMANDS = schema().commands


def parsed(*words: str) -> dict[str, object]:
    given = parser(schema()).parse_args(words)
    return arguments_of(COMMANDS[given.command], given)


def test_every_argument_of_every_command_is_an_option() -> None:
    taken = {"--runtime-dir", "--socket", "--json", "--help"}

    for command in COMMANDS.values():
        options = {f"--{member.name}" for member in command.arguments}
        assert not options & taken, command.name
        with pytest.raises(SystemExit) as ended:
            parser(schema()).parse_args([command.name, "--help"])
        assert ended.value.code == 0


def test_help_lists_every_command_below_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ctl", "--help"])

    shown = capsys.readouterr().out
    for command in COMMANDS.values():
        name = EVENTS if command.name == "events-follow" else command.name
        above = shown[: shown.index(f"\n  {name} ")]
        assert re.findall(r"^(\S.*):$", above, re.MULTILINE)[-1] == command.heading


def test_help_of_a_command_is_its_doc_comment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ctl", "translate", "--help"])

    shown = " ".join(capsys.readouterr().out.split())
    assert "Translate an access as the unit would, and tell each step." in shown
    assert "--nbytes NUMBER its length, 1 to 1048576 (default 1)" in shown
    assert "--access WORD what it does (default read): read, write" in shown


def test_numbers_lists_and_structures_are_read() -> None:
    region = "{start: 0xfee00000, end: 0xfeefffff, kind: msi}"

    plug = parsed("endpoint-plug", "--name", "a", "--reserved", region, "--options", "{source: 'seed:1', slow: true}")
    trace = parsed("query-trace", "--types", "MAP,UNMAP", "--types", "FAULT", "--last", "0x10")

    assert plug == {
        "name": "a",
        "reserved": [{"start": 0xFEE00000, "end": 0xFEEFFFFF, "kind": "msi"}],
        "options": {"source": "seed:1", "slow": True},
    }
    assert trace == {"types": ["MAP", "UNMAP", "FAULT"], "last": 16}


def test_a_flag_alone_means_true() -> None:
    assert parsed("reset-unit", "--needs-reset", "--unit", "iommu0") == {"needs-reset": True, "unit": "iommu0"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["translate", "--endpoint", "a", "--iova", "x"], "--iova: 'x' is not a whole number"),
        (["translate", "--endpoint", "a", "--iova", "-1"], "Parameter 'iova' expects uint64"),
        (["translate", "--endpoint", "a", "--iova", "1", "--access", "x"], "'access' does not accept value 'x'"),
        (["endpoint-plug", "--name", "a", "--reserved", "{start: 1}"], "Parameter 'reserved[0].end' is missing"),
        (["endpoint-plug", "--name", "a", "--reserved", "{"], "--reserved: neither JSON nor YAML"),
        (["set-bypass", "--bypass", "maybe"], "'maybe' is neither true nor false"),
    ],
)
def test_wrong_values_have_status_2_and_name_the_option(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ctl", *words]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["query-nothing"], "invalid choice: 'query-nothing'"),
        (["translate", "--iova", "1"], "the following arguments are required: --endpoint"),
        (["query-units", "--uni", "x"], "unrecognized arguments: --uni"),
        ([], "the following arguments are required: COMMAND"),
        (["--socket", "a", "--runtime-dir", "b", "query-units"], "not allowed with argument"),
    ],
)
def test_wrong_options_have_status_2(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ctl", *words])

    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
