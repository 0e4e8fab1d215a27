"""What there was to see when a test failed: the console, what was said to QEMU, vdev's trace and faults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guest_tests.boot import Control, ControlError, newest_records
from guest_tests.report import describe_fault, faults_of
from qmp_bridge.child import last_lines
from qmp_bridge.up import RunningVm
from vdev.trace.text import line

NCONSOLE = 40
NQMP = 20
QMP_CHARACTERS = 200
NTRACE = 50
NFAULTS = 20
Sections = list[tuple[str, str]]  # title and text, as a pytest report has them
_UNREADABLE = "[a line that is no record]"


async def of_living(vm: RunningVm, control: Control, since: int) -> Sections:
    """Of a guest that goes on; `since` is the first of vdev's events that belong to the test."""
    try:
        trace = _of_the_test(await newest_records(control, NTRACE))
        faults = faults_of(await control.execute("query-events", since=since, kinds=["FaultRaised"]))
    except ControlError as error:
        return [*of_files(vm), ("vdev", str(error))]
    return _sections(vm, [line(record) for record in trace], [describe_fault(fault) for fault in faults[-NFAULTS:]])


def of_files(vm: RunningVm) -> Sections:
    """Of a guest that is gone: from the logs, as they are now."""
    return _sections(vm, [_record(text) for text in last_lines(vm.logs / "trace.jsonl", NTRACE)], [])


def _sections(vm: RunningVm, trace: Sequence[str], faults: Sequence[str]) -> Sections:
    parts = [
        ("guest console, last lines", vm.console_tail(NCONSOLE)),
        ("QMP, last messages", _shortened(vm.logs / "qmp.log")),
        ("vdev trace, last records", trace),
        ("refused by vdev", faults),
    ]
    return [(title, "\n".join(lines)) for title, lines in parts if lines]


def _of_the_test(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those from the last note on, which the runner writes when a test begins; all where that was too long ago."""
    notes = [at for at, record in enumerate(records) if record.get("type") == "NOTE"]
    return records[notes[-1] :] if notes else records


def _shortened(log: Path) -> list[str]:
    lines = [text[:QMP_CHARACTERS] for text in last_lines(log, 2 * NQMP) if text.strip()]
    return lines[-NQMP:]


def _record(text: str) -> str:
    try:
        record: Any = json.loads(text)
        return line(record)
    except (ValueError, KeyError, TypeError):
        return _UNREADABLE
