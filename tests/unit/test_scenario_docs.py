"""docs/scenarios.md says of each key, step and option what the code says; its shipped scenarios are those there are."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guest_tests.payload.planted import DRIVERS
from guest_tests.scenario.expect import ExpectStep
from guest_tests.scenario.model import ScenarioFile
from guest_tests.scenario.steps import KINDS, GuestStep, QmpStep, WaitStep
from qmp_bridge.__main__ import _parser

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/scenarios.md").read_text()
WORDS: dict[str, tuple[Any, ...]] = {
    "required": (msgspec.NODEFAULT,),
    "empty": ("",),
    "none": (None, (), {}, dict, msgspec.UNSET),
    "as configured": (None,),
}


def table(section: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its two head lines."""
    part = re.split(r"\n##+ ", TEXT.partition(f"# {section}\n")[2])[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def is_default(said: str, field: Any) -> bool:
    """Whether the page says of a key what its field has."""
    default = field.default_factory if field.default is msgspec.NODEFAULT else field.default
    if said.startswith("`"):
        return said.strip("`") == (f"{default:g}" if isinstance(default, int | float) else str(default))
    return any(default == value or default is value for value in WORDS[said])


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("Keys of the file", ScenarioFile),
        ("guest", GuestStep),
        ("wait", WaitStep),
        ("qmp", QmpStep),
        ("expect", ExpectStep),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_key_is_there_with_its_default(section: str, kind: type[msgspec.Struct]) -> None:
    said = {row[0].strip("`"): row[1] for row in table(section)}
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}

    assert set(said) == set(fields)
    assert [name for name, default in said.items() if not is_default(default, fields[name])] == []


def test_every_kind_of_step_is_there() -> None:
    headings = set(re.findall(r"^### (\w+)$", TEXT, re.MULTILINE))
    others = {row[0].strip("`").partition(":")[0] for row in table("the others")}

    assert headings | others == set(KINDS)


def test_every_option_of_the_command_is_there() -> None:
    (commands,) = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    run = commands.choices["run"]
    group = next(one for one in run._action_groups if one.title == "options")
    options = {action.option_strings[0] for action in group._group_actions} - {"-h"}

    assert {row[0].strip("`").split()[0] for row in table("The command")} == options


def test_every_shipped_scenario_and_every_planted_driver_is_there() -> None:
    shipped = {path.stem for path in (ROOT / "configs/scenarios").glob("*.yaml")}
    planted = {row[0].strip("`") for row in table("Planted drivers")}

    assert {
        name for row in table("The scenarios that are shipped") for name in re.findall(r"`([a-z-]+)`", row[0])
    } == shipped
    assert planted == set(DRIVERS) - {"right"}
