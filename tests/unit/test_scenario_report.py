"""The report of a scenario: steps and faults in one order of time, and all there is to see of a failure."""

from __future__ import annotations

import json
from typing import Any

from guest_tests.scenario import report
from guest_tests.scenario.timeline import MAX_LINES, Failure, Line, Outcome, Timeline

FIRING: dict[str, Any] = {
    "seq": 0, "time": 100.2, "rule": "r1", "n": 1, "at": "request", "do": "status",
    "text": "rule r1, 1: status (status=NOMEM) at request: unit=iommu0 type=MAP", "fields": {}, "at-seconds": 0.2,
}  # fmt: skip


def outcome(**changes: Any) -> Outcome:
    """A scenario of two steps and a fault between them."""
    lines = [
        Line(0.0, "note", "begins", "steps[0]"),
        Line(0.1, "guest", "work:copy {nbytes: 4096}", "steps[1]"),
        Line(0.3, "", "returned ok", "steps[1]"),
    ]
    made = Outcome("quota", "What it is for.", "quota.yaml", "vm, vfio-user", 7, {"driver": "right"}, lines)
    made.firings, made.nsteps, made.seconds = [FIRING], 2, 1.25
    for name, value in changes.items():
        setattr(made, name, value)
    return made


GREEN = """\
quota: GREEN in 1.2 s (2 steps, 1 fault injected, seed 7)
What it is for.
machine: vm, vfio-user
variables: driver=right

  seconds  what
    0.000  note       begins
    0.100  guest      work:copy {nbytes: 4096}
    0.200  FAULT      r1 #1: status (status=NOMEM) at request: unit=iommu0 type=MAP
    0.300             returned ok
"""

FAILURE = Failure("steps[1]", "guest", "work:copy {}", "it is 1", "2", "Traceback:\n  in work.py")
RED = """\
quota: NOT GREEN in 1.2 s (2 steps, 1 fault injected, seed 7)
What it is for.
machine: vm, vfio-user
variables: driver=right

  seconds  what
    0.000  note       begins
    0.100  guest      work:copy {nbytes: 4096}
    0.200  FAULT      r1 #1: status (status=NOMEM) at request: unit=iommu0 type=MAP
    0.300             returned ok

steps[1] (guest) failed: work:copy {}
  expected: it is 1
  found:    2

--- in the guest ---
Traceback:
  in work.py

--- fault log, newest last ---
    0.200  r1 #1: status (status=NOMEM) at request: unit=iommu0 type=MAP

--- guest console, last lines ---
a line
another

logs are in logs/vm-1
"""


def test_a_green_report_is_its_verdict_and_what_happened_in_order_of_time() -> None:
    assert report.text(outcome()) == GREEN


def test_a_red_report_has_the_step_what_was_expected_and_all_the_evidence() -> None:
    sections = [("guest console, last lines", "a line\nanother\n")]

    assert report.text(outcome(failure=FAILURE, sections=sections, logs="logs/vm-1")) == RED


def test_where_the_backend_is_gone_there_is_no_fault_log() -> None:
    assert report.verdict(outcome(firings=None)) == "quota: GREEN in 1.2 s (2 steps, no fault log, seed 7)"


def test_a_program_gets_the_same_as_data() -> None:
    data = json.loads(json.dumps(report.as_data(outcome(failure=FAILURE, sections=[("console", "a line")]))))

    assert (data["verdict"], data["failure"]["step"], data["failure"]["found"]) == ("not green", "steps[1]", "2")
    assert [line["kind"] for line in data["timeline"]] == ["note", "guest", "FAULT", ""]
    assert (data["faults"], data["evidence"]) == ([FIRING], [{"title": "console", "text": "a line"}])


def test_a_text_of_many_lines_stays_in_its_column() -> None:
    lines = [Line(1.0, "guest", "first\nsecond")]

    assert "    1.000  guest      first\n                      second\n" in report.text(outcome(lines=lines))


def test_a_timeline_is_bounded_and_says_what_is_left_out() -> None:
    said: list[str] = []
    timeline = Timeline(lambda: 0.0, said.append)

    for _ in range(MAX_LINES + 3):
        timeline.add("note", "x" * 1000)

    assert (len(timeline.lines), timeline.left_out, len(said)) == (MAX_LINES, 3, MAX_LINES + 3)
    assert len(timeline.lines[0].text) < 500
    assert "(3 more lines are left out)" in report.text(outcome(left_out=timeline.left_out))
