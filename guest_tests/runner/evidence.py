"""What there was to see when a test failed: the console, what was said to QEMU, vdev's trace, its faults and those that
were injected.

Console and QMP come from memory: there they are even where a full disk took no logs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guest_tests.boot import Control, ControlError, newest_records
from guest_tests.report import describe_fault, faults_of
from qmp_bridge.child import last_lines
from qmp_bridge.plan import TRACE_LOG
from qmp_bridge.up import RunningVm
from vdev.trace.text import line

NCONSOLE = 80  # the stacks of a test that hangs are forty
NQMP = 20
QMP_CHARACTERS = 200
NTRACE = 50
NFAULTS = 20
NINJECTED = 20
Record = dict[str, Any]
Sections = list[tuple[str, str]]  # title and text, as a pytest report has them
TRACE = "vdev trace, last records"
FIRINGS = "injected faults"  # the title of a section
NOTE = "test: "  # before the name of the test that begins
MAX_NOTE = 200  # characters
INJECTED = ["FaultInjected", "FaultQemuDone", "FaultsCleared"]


@dataclass(frozen=True)
class Beginning:
    """Where a test began: its first of vdev's events, of the console's lines, of QMP's messages."""

    event: int = 0
    line: int = 0
    message: int = 0


async def begin(vm: RunningVm, control: Control, test: str) -> Beginning:
    """Mark the beginning of `test`. Raises ControlError."""
    newest = await control.execute("query-events", limit=1)
    await control.execute("trace-note", text=f"{NOTE}{test}"[:MAX_NOTE])
    return Beginning(int(newest[0]["seq"]) + 1 if newest else 0, vm.console.nlines, vm.qmp.nmessages)


async def of_living(vm: RunningVm, control: Control, since: Beginning) -> Sections:
    """Of a guest that goes on."""
    try:
        trace = _of_the_test(await newest_records(control, NTRACE))
        faults = faults_of(await control.execute("query-events", since=since.event, kinds=["FaultRaised"]))
        injected = await control.execute("query-events", since=since.event, limit=NINJECTED, kinds=INJECTED)
    except ControlError as error:
        return [*of_gone(vm, since), ("vdev", str(error))]
    shown = [describe_fault(fault) for fault in faults[-NFAULTS:]]
    return _sections(vm, since, [line(record) for record in trace], shown, [event["text"] for event in injected])


def of_gone(vm: RunningVm, since: Beginning) -> Sections:
    """Of a guest that is gone, as long as its logs are where they were written."""
    return _sections(vm, since, of_trace(last_lines(vm.logs / TRACE_LOG, NTRACE)), [], [])


def with_trace(sections: Sections, lines: Sequence[str]) -> Sections:
    """`sections` with the trace as its file was when the backend had ended: then it is complete."""
    trace = of_trace(lines)
    if not trace:
        return sections
    return [*((title, text) for title, text in sections if title != TRACE), (TRACE, "\n".join(trace))]


def of_trace(lines: Sequence[str]) -> list[str]:
    """The records in `lines` of a trace file, as text; what is no record is left out."""
    records = [_record(text) for text in lines]
    shown = []
    for record in _of_the_test([record for record in records if record is not None]):
        try:
            shown.append(line(record))
        except (KeyError, TypeError, ValueError):  # the header, or a line half written
            continue
    return shown


def _sections(
    vm: RunningVm, since: Beginning, trace: Sequence[str], faults: Sequence[str], injected: Sequence[str]
) -> Sections:
    parts = [
        ("guest console, last lines", vm.console_tail(NCONSOLE, since.line)),
        ("QMP, last messages", [text[:QMP_CHARACTERS] for text in vm.qmp_tail(NQMP, since.message)]),
        (TRACE, trace),
        ("refused by vdev", faults),
        (FIRINGS, injected),
    ]
    return [(title, "\n".join(lines)) for title, lines in parts if lines]


def _of_the_test(records: list[Record]) -> list[Record]:
    """Those from the runner's last note on, made when a test begins; all where that was too long ago."""
    notes = [at for at, record in enumerate(records) if _begins_a_test(record)]
    return records[notes[-1] :] if notes else records


def _begins_a_test(record: Record) -> bool:
    match record:
        case {"type": "NOTE", "fields": {"text": str(text)}}:
            return text.startswith(NOTE)
    return False


def _record(text: str) -> Record | None:
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
