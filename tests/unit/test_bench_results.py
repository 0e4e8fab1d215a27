"""The result file: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from benchmarks.describe import Others, machine
from benchmarks.document import BEGIN, END, with_table
from benchmarks.results import Machine, ResultsError, load, save
from tests.support.bench import results, samples

FOUND = results(samples("page", {"vdev-vfio-user": [20.5, 30.25]}))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latest.json"

    save(path, FOUND, [{"row": "page"}])

    assert load(path) == FOUND


def test_other_programs_find_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"

    save(path, FOUND, [{"row": "page", "median": 25.4}])

    assert json.loads(path.read_text())["summary"] == [{"row": "page", "median": 25.4}]


def test_nothing_unfinished_is_left_beside_the_file(tmp_path: Path) -> None:
    save(tmp_path / "latest.json", FOUND, [])
    save(tmp_path / "latest.json", FOUND, [])

    assert [path.name for path in tmp_path.iterdir()] == ["latest.json"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"schema": 99}', "schema 99, this version reads 1"),
        ('{"check": "x"}', "schema None"),
        ('{"schema": 1}', "missing required field"),
        ("[]", "no result of `make bench`"),
        ("not JSON", "no result of `make bench`"),
    ],
)
def test_what_is_no_result_is_refused_with_the_reason(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)

    with pytest.raises(ResultsError, match=re.escape(problem)):
        load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="No such file"):
        load(tmp_path / "x.json")


def test_this_machine_can_be_described() -> None:
    found = machine()

    assert isinstance(found, Machine)
    assert found.cores >= 1
    assert "" not in (found.cpu, found.kernel, found.python)


def test_our_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = [100.0], [10.0]
    monkeypatch.setattr(Others, "_busy_s", staticmethod(lambda: busy[0]))
    monkeypatch.setattr(Others, "_own_s", staticmethod(lambda: own[0]))
    monkeypatch.setattr("time.monotonic", iter([0.0, 10.0]).__next__)
    others = Others()

    busy[0], own[0] = 120.0, 25.0

    assert others.cpus() == 0.5


def test_the_page_gets_the_table_between_its_marks() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    once = with_table(page, FOUND)

    assert once.startswith(f"before\n{BEGIN}\n\n```\n")
    assert once.endswith(f"```\n\n{END}\nafter\n")
    assert "old" not in once
    assert with_table(once, FOUND) == once


def test_numbers_of_a_busy_machine_are_marked_as_such() -> None:
    busy = msgspec.structs.replace(FOUND, samples=[msgspec.structs.replace(FOUND.samples[0], others=1.5)])
    page = f"{BEGIN}\n{END}\n"

    assert "**Taken on a busy machine: others kept up to 1.50 of its 2 CPUs" in with_table(page, busy)
    assert "busy machine" not in with_table(page, FOUND)


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ResultsError, match="are not there"):
        with_table("nothing", FOUND)
