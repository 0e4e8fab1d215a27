"""What a run of the guest's checks looks like to a person: lines as messages arrive, and a table at the end. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from guest_tests.iommu_counts import Counts
from vdev.config.text import format_bdf
from vdev.trace.text import line

ACCESS_WORDS = {1: "read", 2: "write", 3: "read/write"}
DIM, RED, GREEN, BOLD = "2", "31", "32", "1"
MAX_QUOTED_LINES = 3
NCONSOLE_SHOWN = 40
NEVENTS_SHOWN = 50
NTRACE_SHOWN = 50


@dataclass(frozen=True)
class Evidence:
    """What was there to see at one moment, oldest first: vdev's events and trace, the console's last lines."""

    events: list[dict[str, Any]]
    console: list[str]
    trace: list[dict[str, Any]]


@dataclass(repr=False)  # too long for where pytest shows it
class Run:
    """Everything one run of the guest's checks left behind."""

    hello: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # check name -> what vdev recorded meanwhile
    counts: dict[str, Counts] = field(default_factory=dict)  # check name -> mappings of the endpoint it uses
    evidence: dict[str, Evidence] = field(default_factory=dict)  # of each check that failed, taken when it did
    done: dict[str, Any] | None = None
    iommu: Any = None  # answer of query-iommu after `done`, the guest still alive
    events: list[dict[str, Any]] = field(default_factory=list)  # vdev's events at the end, newest last
    injected: list[dict[str, Any]] = field(default_factory=list)  # those of them that say what a fault plan did
    console: list[str] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)  # its newest records at the end
    cause: str = ""  # why the run ended without `done`
    seconds: float = 0.0
    logs: str = ""

    @property
    def ok(self) -> bool:
        """Whether the guest said that it is done, and that everything passed."""
        return self.done is not None and self.done.get("ok") is True and not self.cause

    def record(self, check: str) -> dict[str, Any]:
        """The record of one check. Raises KeyError with what is known when the guest never sent it."""
        for record in self.records:
            if record["check"] == check:
                return record
        raise KeyError(f"the guest never reported '{check}'; {self.cause or 'it reported others only'}")


class Painter:
    """Adds ANSI colours, or not."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def paint(self, text: str, code: str) -> str:
        """`text` in SGR `code` where colours are on."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def started(message: dict[str, Any]) -> str:
    """The line for a check that begins."""
    return f"{message['title']} ..."


def finished(record: dict[str, Any], faults: Iterable[dict[str, Any]], painter: Painter) -> list[str]:
    """The lines for a check that ended: verdict, detail, and for refusals what both sides of the wire say."""
    verdict = painter.paint("ok", GREEN) if record["ok"] else painter.paint("FAILED", RED)
    lines = [f"  {verdict}  {duration(record['ms'])}  {record['detail']}"]
    kernel = record.get("data", {}).get("kernel", [])
    said = [kernel] if isinstance(kernel, str) else kernel[:MAX_QUOTED_LINES]
    lines += [painter.paint(f"      guest kernel: {line}", DIM) for line in said]
    lines += [painter.paint(f"      vdev:         {describe_fault(fault)}", DIM) for fault in faults]
    if "counted" in record:
        lines.append(painter.paint(f"      vdev:         {record['counted']}", DIM))
    return lines


def duration(ms: float) -> str:
    """Milliseconds for people, eight characters wide."""
    return f"{ms / 1000:6.2f} s" if ms >= 1000 else f"{ms:5.1f} ms"


def describe_fault(fault: dict[str, Any]) -> str:
    """A FaultRaised event in one line."""
    where = format_bdf(fault["endpoint"])
    access = ACCESS_WORDS.get(fault["access"], f"access {fault['access']}")
    return f"{fault['unit']} refused a {access} of endpoint {where} at {fault['iova']:#x}: {fault['reason']}"


def faults_of(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fault events among vdev's events."""
    return [event for event in events if event.get("event") == "FaultRaised"]


def summary(run: Run, painter: Painter) -> list[str]:
    """The table at the end, one line a check, and the verdict."""
    width = max((len(record["title"]) for record in run.records), default=10)
    lines = ["", painter.paint(f"{'check':<{width}}  result      time", BOLD)]
    for record in run.records:
        result = painter.paint("ok    ", GREEN) if record["ok"] else painter.paint("FAILED", RED)
        lines.append(f"{record['title']:<{width}}  {result}  {duration(record['ms'])}")
    passed = sum(record["ok"] for record in run.records)
    total = len(run.hello.get("checks", run.records))
    nfaults = sum(len(faults) for faults in run.faults.values())
    verdict = painter.paint("PASSED", GREEN) if run.ok else painter.paint("FAILED", RED)
    kernel = run.hello.get("kernel", "which said nothing")
    counts = f"{passed} of {total} checks, {nfaults} faults recorded"
    return [*lines, "", f"{verdict}: {counts}, guest kernel {kernel}, {run.seconds:.1f} s in all"]


def failure(run: Run) -> list[str]:
    """What explains a failed run: the cause, and what was there to see when it struck."""
    failed = next((record["check"] for record in run.records if not record["ok"]), None)
    return ["", f"cause: {run.cause or _first_failure(run)}", *_evidence(run, None if run.cause else failed)]


def check_failure(run: Run, check: str) -> list[str]:
    """What explains one failed check: what it says, and what was there to see when it failed."""
    record = run.record(check)
    return [f"{record['title']}: {record['detail']}", *_evidence(run, check)]


def _evidence(run: Run, check: str | None) -> list[str]:
    """Faults, the trace's and the console's last lines, of `check` if it failed, else of the run's end."""
    seen = run.evidence.get(check or "", Evidence(run.events, run.console, run.trace))
    faults = run.faults.get(check or "", []) or faults_of(seen.events)
    lines = ["", "refused by vdev:", *(f"  | {describe_fault(fault)}" for fault in faults)]
    lines += ["", "vdev's trace, last lines:", *(f"  | {line(record)}" for record in seen.trace[-NTRACE_SHOWN:])]
    lines += ["", "the guest's console, last lines:", *(f"  | {text}" for text in seen.console[-NCONSOLE_SHOWN:])]
    return [*lines, "", f"logs: {run.logs}"] if run.logs else lines


def _first_failure(run: Run) -> str:
    failed = [f"{record['title']}: {record['detail']}" for record in run.records if not record["ok"]]
    if not failed and run.done and run.done.get("reason"):
        return f"the guest cannot run the payload: {run.done['reason']}"
    if not failed:
        return "the guest said that it is not ok"
    return failed[0] + (f" (and {len(failed) - 1} more after it)" if len(failed) > 1 else "")


def event_line(event: dict[str, Any]) -> str:
    """Any of vdev's events in one line: seconds of its clock, and its own words."""
    return f"{event['time']:.3f} {event['text']}"
