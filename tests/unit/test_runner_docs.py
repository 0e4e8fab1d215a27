"""docs/guest-suites.md says of each key and option what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from guest_tests.runner.suite import MachineEntry, SuiteFile

TEXT = (Path(__file__).parents[2] / "docs/guest-suites.md").read_text()
WORDS = {"required": msgspec.NODEFAULT, "empty": "", "none": (), "as configured": ()}


def rows(section: str) -> list[list[str]]:
    """The cells of the first table of a section, without its two head lines."""
    part = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_key_is_there_with_its_default() -> None:
    fields = {field.name: field.default for field in msgspec.structs.fields(SuiteFile)}
    fields |= {f"machines[].{field.name}": field.default for field in msgspec.structs.fields(MachineEntry)}

    said = {
        row[0].strip("`"): row[1].strip("`") if row[1].startswith("`") else WORDS[row[1]]
        for row in rows("Keys of guest-suite.yaml")
    }

    assert said == fields | {"timeout": f"{fields['timeout']:g}"}


def test_every_option_is_there(pytestconfig: pytest.Config) -> None:
    help_text = pytestconfig._parser.optparser.format_help()
    options = set(re.findall(r"--guest-\w+", help_text))

    assert {row[0].strip("`").split()[0] for row in rows("Options")} == options
