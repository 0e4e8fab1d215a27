"""Reports of guest tests for the host's pytest: the guest's own, and those of tests that lost their guest."""

from __future__ import annotations

import builtins
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pytest

from guest_tests.runner.evidence import Sections
from guest_tests.runner.nodes import GuestItem

Phase = Literal["setup", "call", "teardown"]
PHASES: tuple[Phase, ...] = ("setup", "call", "teardown")


class Writer(Protocol):
    """What pytest prints reports with."""

    def line(self, text: str = "") -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a test is and, in one line, what became of it: pytest shows it in its summary and with --tb=line."""

    path: str
    lineno: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.lineno}: {self.message}"


class Loss:
    """Why a test has no report of its own, as pytest shows a failure; as text, with all the evidence (JUnit XML)."""

    def __init__(self, item: GuestItem, text: str, sections: Sections) -> None:
        self.reprcrash = Place(str(item.path), (item.found.line or 0) + 1, text.partition("\n")[0])
        self._text = text
        self._sections = sections

    def toterminal(self, writer: Writer) -> None:
        """Print the reason; the sections are the report's, which prints them itself."""
        for text in self._text.splitlines():
            writer.line(text)

    def __str__(self) -> str:
        return "\n".join([self._text, *(f"--- {title} ---\n{text}" for title, text in self._sections)])


def failed(item: GuestItem, when: Phase, started: float, text: str, sections: Sections) -> list[pytest.TestReport]:
    """The reports of all phases of a test that failed in the phase `when` and has none of its own."""
    return list(_failed(item, when, started, text, sections))


def _failed(item: GuestItem, when: Phase, started: float, text: str, sections: Sections) -> Iterator[pytest.TestReport]:
    stopped = time.time()
    for phase in PHASES:
        if phase == "call" and when == "setup":
            continue
        wrong = phase == when
        yield pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed" if wrong else "passed",
            longrepr=Loss(item, text, sections) if wrong else None,  # type: ignore[arg-type] # it looks like one
            when=phase,
            sections=sections if wrong else (),
            duration=stopped - started if wrong else 0,
            start=started,
            stop=stopped,
            user_properties=[("machine", item.machine.id), *item.user_properties],
        )


def lost_afterwards(item: GuestItem, text: str, sections: Sections) -> pytest.TestReport:
    """The report of a test whose guest was lost once it had passed: the test cannot be right."""
    now = time.time()
    return list(_failed(item, "teardown", now, f"the guest was lost after this test: {text}", sections))[-1]


def restored(item: GuestItem, data: dict[str, Any], sections: Sections) -> pytest.TestReport:
    """The guest's report of one phase as the host's. Raises ValueError when it is none."""
    try:
        for key in ("longrepr", "location"):  # JSON has no tuples, and pytest looks for them: a skip's reason is one
            if isinstance(value := data.get(key), list):
                data[key] = tuple(value)
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        if not isinstance(report, pytest.TestReport):
            raise TypeError("it is none of a test")
        report.sections = [(str(title), str(text)) for title, text in report.sections]
        properties = [(str(name), value) for name, value in report.user_properties]
        report.duration, report.start, report.stop = float(report.duration), float(report.start), float(report.stop)
    except Exception as error:  # a guest can send anything
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if report.when not in PHASES or report.outcome not in ("passed", "failed", "skipped"):
        raise ValueError(f"{report.outcome!r:.50} in the phase {report.when!r:.50}")
    report.nodeid, report.location = item.nodeid, item.location
    report.keywords = dict.fromkeys(item.keywords, 1)
    report.user_properties = [*properties, ("machine", item.machine.id), *item.user_properties]
    if report.outcome == "failed":
        report.sections += sections
    return report


def warn(item: GuestItem, warning: dict[str, Any]) -> None:
    """Tell pytest of a warning that a test caused in the guest."""
    name = warning["category"]
    known = getattr(builtins, name, None)
    category = known if isinstance(known, type) and issubclass(known, Warning) else type(name, (Warning,), {})
    message = warnings.WarningMessage(warning["text"], category, warning["file"], warning["line"])
    item.config.hook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": "runtest", "nodeid": item.nodeid, "location": None}
    )
