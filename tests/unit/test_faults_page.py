"""docs/faults.md says what the code says, and of every action what was seen to come of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vdev.errors import ConfigError
from vdev.faults.__main__ import main
from vdev.faults.page import BEGIN, END, key_of, rows, with_tables
from vdev.faults.reactions import REACTIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
PAIRS = 40  # of a point and an action; those that may stand at every point counted once
EMPTY = f"{BEGIN.format(name='points')}{END}\nwords\n{BEGIN.format(name='actions')}\nOLD\n{END}\nmore"


def test_the_page_has_the_tables_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert with_tables(page) == page, "run python -m vdev.faults"


def test_there_are_as_many_actions_as_were_promised() -> None:
    assert len(list(rows())) >= PAIRS


def test_every_action_has_its_reaction_and_none_is_of_an_action_that_is_gone() -> None:
    assert sorted(REACTIONS) == sorted(key_of(point, name) for point, name, _ in rows())


@pytest.mark.parametrize("key", REACTIONS)
def test_the_test_that_shows_a_reaction_is_there(key: str) -> None:
    path, _, name = REACTIONS[key].test.partition("::")

    assert re.search(rf"^(async )?def {re.escape(name)}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_what_stands_around_the_tables_stays() -> None:
    made = with_tables(EMPTY)

    assert "\nwords\n" in made
    assert made.endswith(f"{END}\nmore")
    assert "OLD" not in made
    assert with_tables(made) == made


@pytest.mark.parametrize("page", ["", EMPTY.replace("actions", "others"), EMPTY.replace(END, "")])
def test_a_page_without_markers_is_refused(page: str) -> None:
    with pytest.raises(ConfigError, match="put both back"):
        with_tables(page)


def test_the_command_writes_the_file_it_is_given(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(EMPTY)

    assert main([str(page)]) == 0
    assert "| `die`: the backend kills itself" in page.read_text()
