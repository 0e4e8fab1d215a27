"""The plugin of every session: it knows tests for clauses, and a full session may not contradict the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance import session
from tests.conformance.results import Facts, Results, ResultsError
from tests.conformance.table import MODES

pytest_plugins = ["pytester"]

PASSES_OR_NOT = """\
import os
import pytest

@pytest.mark.conformance(attach=["vfio-user"], mode=["strict"])
@pytest.mark.parametrize("number", [1, 2])
def test_d1_d2_is_here(number):
    {body}

def test_of_something_else():
    pass
"""
TEST = "test_it.py::test_d1_d2_is_here"
OPTIONS = ("-p", "tests.conformance.session", "-p", "no:cacheprovider", "-p", "no:vdev_guests", "-p", "no:asyncio")
INI = "[pytest]\ntestpaths = .\nmarkers =\n    conformance: where\n"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose record says that the test passes."""
    pytester.makefile(".ini", pytest=INI)
    recorded = Results(Facts("", "", ""), {TEST: {"strict-vfio-user": {"passed": 2}}})
    monkeypatch.setattr(session, "load_results", lambda: recorded)
    return pytester


def of(project: pytest.Pytester, body: str, *words: str) -> pytest.RunResult:
    """A session of one module whose test for clauses does `body`."""
    project.makepyfile(test_it=PASSES_OR_NOT.format(body=body))
    return project.runpytest_inprocess(*OPTIONS, *words)


def test_a_full_session_as_recorded_passes(project: pytest.Pytester) -> None:
    result = of(project, "pass")

    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*contradicts*")


@pytest.mark.parametrize("body", ["pytest.skip('not here')", "pytest.xfail('not yet')"])
def test_a_full_session_that_skips_what_is_recorded_as_passed_fails(project: pytest.Pytester, body: str) -> None:
    result = of(project, body)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*contradicts docs/conformance.json*",
            f"{TEST}?1?: skipped now, recorded as passed (strict-vfio-user)",
            "*make conformance",
        ]
    )


def test_a_session_of_named_files_may_skip(project: pytest.Pytester) -> None:
    assert of(project, "pytest.skip('not here')", "test_it.py").ret == pytest.ExitCode.OK


def test_a_full_session_without_a_readable_record_fails(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> Results:
        raise ResultsError("it is gone")

    monkeypatch.setattr(session, "load_results", unreadable)

    result = of(project, "pass")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["it is gone"])


def test_a_record_has_the_tests_for_clauses_alone_with_all_their_outcomes(
    project: pytest.Pytester, tmp_path: Path
) -> None:
    result = of(project, "assert number == 1", f"--conformance-record={tmp_path / 'record'}")

    result.assert_outcomes(passed=1, failed=1, deselected=1)
    found = json.loads((tmp_path / "record").read_text())
    assert found == {TEST: {"strict-vfio-user": {"passed": 1, "failed": 1}}}


def test_a_record_may_be_of_some_tests_only(project: pytest.Pytester, tmp_path: Path) -> None:
    (tmp_path / "tests").write_text(json.dumps(["test_it.py::test_of_a_file_that_is_gone"]))

    of(project, "pass", f"--conformance-record={tmp_path / 'record'}", f"--conformance-tests={tmp_path / 'tests'}")

    assert json.loads((tmp_path / "record").read_text()) == {}


def test_what_is_collected_is_told_without_running_it(project: pytest.Pytester, tmp_path: Path) -> None:
    of(project, "assert number == 1", "--collect-only", f"--conformance-collected={tmp_path / 'collected'}")

    assert json.loads((tmp_path / "collected").read_text()) == {TEST: {"strict-vfio-user": {"collected": 2}}}


@pytest.mark.parametrize("marker", ["attach=['usb']", "mode=[]", "machine=['vfio-user']"])
def test_a_marker_that_makes_no_sense_is_refused(project: pytest.Pytester, marker: str) -> None:
    project.makepyfile(f"import pytest\n\n@pytest.mark.conformance({marker})\ndef test_d1_is_here(): pass\n")

    result = project.runpytest_inprocess(*OPTIONS)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the marker conformance has lists: attach=*"])


def test_a_host_test_without_a_marker_is_in_process_in_both_modes(project: pytest.Pytester, tmp_path: Path) -> None:
    project.makepyfile(test_it="def test_d1_is_here(): pass\n")

    project.runpytest_inprocess(*OPTIONS, "--collect-only", f"--conformance-collected={tmp_path / 'collected'}")

    found = json.loads((tmp_path / "collected").read_text())
    assert found == {"test_it.py::test_d1_is_here": {f"{mode}-in-process": {"collected": 1} for mode in MODES}}
