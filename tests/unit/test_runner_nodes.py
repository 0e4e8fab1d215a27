"""Names and limits of guest tests, reports of lost ones, and what reaches the guest's agent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from guest_tests.runner.agent import described, ending
from guest_tests.runner.collection import Found
from guest_tests.runner.nodes import GuestItem, _with_machine, runs_on
from guest_tests.runner.plugin import limit_of
from guest_tests.runner.reports import Loss, failed, lost_afterwards, restored


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_a", "test_a[vfio-user]"),
        ("test_a[x]", "test_a[vfio-user-x]"),
        ("test_a[x-[y]]", "test_a[vfio-user-x-[y]]"),
        ("test_a[]", "test_a[vfio-user-]"),
    ],
)
def test_the_machine_comes_first_among_the_parameters(name: str, expected: str) -> None:
    assert _with_machine(name, "vfio-user") == expected


@pytest.mark.parametrize(
    ("marks", "machine", "belongs"),
    [
        ([], "lazy-vfio-user", True),
        ([["lazy-*"]], "lazy-vfio-user", True),
        ([["lazy-*"]], "strict-vfio-user", False),
        ([["lazy-*", "strict-*"]], "strict-vfio-user", True),
        ([["lazy-*"], ["strict-*"]], "strict-vfio-user", False),  # of the test itself, then of its module
        ([[]], "lazy-vfio-user", False),
    ],
)
def test_the_nearest_marker_machines_says_where_a_test_runs(marks: list[Any], machine: str, belongs: bool) -> None:
    found = Found("a", ("a",), 0, tuple({"name": "machines", "args": args, "kwargs": {}} for args in marks), ())

    assert runs_on(found, machine) == belongs


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"), (3, "exit status 3"), (-11, "SIGSEGV"), (-9, "SIGKILL"), (-200, "exit status -200"),
        ("x", "exit status x"),
    ],
)  # fmt: skip
def test_how_a_process_ended_is_said_in_words(status: object, words: str) -> None:
    assert ending(status) == words


@pytest.mark.parametrize(
    ("what", "arguments", "words"),
    [
        ("step", {"name": "fill", "arguments": {}}, "step 'fill'"),
        ("qmp", {"command": "query-status"}, "qmp 'query-status'"),
        ("pause", {"seconds": 3}, "pause"),
        ("step", {"name": 5}, "step"),
    ],
)
def test_what_a_test_waits_for_is_said_in_words(what: str, arguments: dict[str, Any], words: str) -> None:
    assert described(what, arguments) == words


def an_item(config: object = None, *marks: pytest.Mark) -> GuestItem:
    """What reports need of an item."""
    found = SimpleNamespace(line=4)
    machine = SimpleNamespace(id="vfio-user")
    item = SimpleNamespace(
        nodeid="s/test_a.py::test_one[vfio-user]", location=("s/test_a.py", 4, "test_one[vfio-user]"),
        path="/s/test_a.py",
        keywords={"test_one": 1}, user_properties=[], found=found, machine=machine, config=config,
        iter_markers=lambda name: [mark for mark in marks if mark.name == name],
    )  # fmt: skip
    return cast(GuestItem, item)


@pytest.mark.parametrize(
    ("mark", "limit"),
    [(pytest.mark.timeout(3), 3.0), (pytest.mark.timeout(0.5), 0.5), (pytest.mark.timeout(timeout=7), 7.0)],
)
def test_a_tests_own_limit_comes_from_its_marker(mark: pytest.MarkDecorator, limit: float) -> None:
    assert limit_of(an_item(None, mark.mark)) == limit


def test_the_nearest_marker_counts() -> None:
    assert limit_of(an_item(None, pytest.mark.timeout(2).mark, pytest.mark.timeout(9).mark)) == 2.0


def test_a_test_that_lost_its_guest_has_all_phases_and_fails_once() -> None:
    reports = failed(an_item(), "call", 0.0, "it panicked\nmore", [("console", "the end")])

    assert [(report.when, report.outcome) for report in reports] == [
        ("setup", "passed"), ("call", "failed"), ("teardown", "passed"),
    ]  # fmt: skip
    assert reports[1].sections == [("console", "the end")]
    assert ("machine", "vfio-user") in reports[2].user_properties


def test_a_machine_that_did_not_start_fails_the_setup_and_calls_nothing() -> None:
    reports = failed(an_item(), "setup", 0.0, "no kernel", [])
    assert [(report.when, report.outcome) for report in reports] == [("setup", "failed"), ("teardown", "passed")]


def test_a_loss_is_one_line_in_the_summary_and_all_of_it_as_text() -> None:
    loss = Loss(an_item(), "it panicked\nmore", [("console", "the end")])
    assert str(loss.reprcrash) == "/s/test_a.py:5: it panicked"
    assert str(loss) == "it panicked\nmore\n--- console ---\nthe end"


def test_a_guest_lost_afterwards_is_an_error_at_teardown() -> None:
    report = lost_afterwards(an_item(), "it panicked", [])
    assert (report.when, report.outcome) == ("teardown", "failed")
    assert report.longreprtext == "the guest was lost after this test: it panicked"


def a_report(**changes: Any) -> dict[str, Any]:
    """A guest's report as it comes over the channel."""
    return {
        "nodeid": "test_a.py::test_one", "location": ["test_a.py", 4, "test_one"], "keywords": {}, "outcome": "passed",
        "longrepr": None, "when": "call", "user_properties": [["size", 1]],
        "sections": [["Captured stdout call", "said"]],
        "duration": 0.1, "start": 1.0, "stop": 1.1, "$report_type": "TestReport", **changes,
    }  # fmt: skip


def test_a_guests_report_gets_the_hosts_name(pytestconfig: pytest.Config) -> None:
    report = restored(an_item(pytestconfig), a_report(), [("console", "x")])

    assert report.nodeid == "s/test_a.py::test_one[vfio-user]"
    assert report.location[2] == "test_one[vfio-user]"
    assert report.user_properties == [("size", 1), ("machine", "vfio-user")]
    assert report.sections == [("Captured stdout call", "said")]


def test_only_a_failure_gets_the_evidence(pytestconfig: pytest.Config) -> None:
    report = restored(an_item(pytestconfig), a_report(outcome="failed", longrepr="no"), [("console", "x")])
    assert report.sections[-1] == ("console", "x")


def test_a_skips_reason_survives_json(pytestconfig: pytest.Config) -> None:
    report = restored(an_item(pytestconfig), a_report(outcome="skipped", longrepr=["a.py", 3, "Skipped: no"]), [])
    assert report.longrepr == ("a.py", 3, "Skipped: no")


@pytest.mark.parametrize(
    "changes",
    [
        {"$report_type": None}, {"$report_type": "CollectReport"}, {"outcome": "splendid"}, {"when": "never"},
        {"sections": 5}, {"sections": [1]}, {"user_properties": [1]}, {"duration": "long"}, {"start": None},
        {"longrepr": {"reprcrash": 1, "reprtraceback": 2}},
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused_in_one_way(pytestconfig: pytest.Config, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        restored(an_item(pytestconfig), a_report(**changes), [])
