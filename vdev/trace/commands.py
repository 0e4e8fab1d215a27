"""The control socket's commands for the trace."""

from __future__ import annotations

from typing import Any

import msgspec

from vdev.control.messages import NoArguments
from vdev.control.server import Command
from vdev.trace.recorder import Selection, Trace, TraceOptions


class NoteText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of trace-note."""

    text: str


def trace_commands(trace: Trace) -> dict[str, Command]:
    """query-trace, trace-start, trace-stop, trace-note, and trace-follow, after whose answer records follow."""

    def start(options: TraceOptions) -> dict[str, Any]:
        trace.start(options)
        return trace.describe()

    def stop(_: NoArguments) -> dict[str, Any]:
        trace.stop()
        return trace.describe()

    def note(arguments: NoteText) -> dict[str, Any]:
        trace.note(arguments.text)
        return {}

    def query(selection: Selection) -> dict[str, Any]:
        return {**trace.describe(), "header": trace.header, "newest": trace.newest(selection)}

    return {
        "query-trace": Command(Selection, query),
        "trace-start": Command(TraceOptions, start),
        "trace-stop": Command(NoArguments, stop),
        "trace-note": Command(NoteText, note),
        "trace-follow": Command(Selection, trace.check, stream=trace.follow),
    }
