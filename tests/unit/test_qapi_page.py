"""docs/monitor-commands.md is what the schema makes, and its examples work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.schema import SMALL
from vdev.qapi.check import check_arguments
from vdev.qapi.model import Command
from vdev.qapi.page import page
from vdev.qapi.schema import schema

PAGE = Path(__file__).parents[2] / "docs" / "monitor-commands.md"
SHOWN = page(SMALL)


def test_the_page_is_the_schemas() -> None:
    assert PAGE.read_text() == page(schema()), "python -m vdev.qapi writes it anew"


@pytest.mark.parametrize("command", schema().commands.values(), ids=lambda command: command.name)
def test_every_command_with_arguments_has_an_example_that_passes(command: Command) -> None:
    assert command.examples or not command.arguments
    for example in command.examples:
        check_arguments(command, json.loads(example))


def test_every_link_leads_to_an_anchor_of_the_page() -> None:
    text = page(schema())
    headings = re.findall(r"^#+ ([^<\n]+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    anchors |= set(re.findall(r'<a id="([^"]+)">', text))

    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_a_command_shows_its_arguments_reply_errors_and_both_ways_to_give_it() -> None:
    section = SHOWN.split("### query-answer\n")[1].split("###")[0]

    assert "The answer." in section
    assert "Takes no arguments." in section
    assert "Returns integer." in section
    assert "* none that is known" in section
    assert '{"execute": "__org.example_query-answer"}' in section
    assert "vdev ctl query-answer\n" in section


def test_an_argument_shows_its_type_and_whether_it_must_be_there() -> None:
    section = SHOWN.split("### plug\n")[1].split("###")[0]

    assert "| `name` | string | whose |" in section
    assert "| `parts` | list of [Part](#type-part), optional | of which parts |" in section


def test_defaults_have_a_column_of_their_own() -> None:
    assert "| `limit` | integer, optional | at most so many, 1 to 4096 | 256 |" in page(schema())


def test_a_type_is_shown_once_after_what_uses_it_first() -> None:
    assert SHOWN.count('<a id="type-colour">') == 1
    assert SHOWN.index("### plug") < SHOWN.index('<a id="type-part">') < SHOWN.index('<a id="type-colour">')
    assert "| `red` | like blood |" in SHOWN
