"""The control socket's commands for the trace."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from vdev.control.server import Command
from vdev.trace.recorder import Selection, Trace, TraceOptions


def trace_commands(trace: Trace) -> dict[str, Command]:
    """query-trace, trace-start, trace-stop, trace-note, and trace-follow, after whose answer records follow."""

    def start(**options: Any) -> dict[str, Any]:
        trace.start(TraceOptions(**options))
        return trace.describe()

    def stop() -> dict[str, Any]:
        trace.stop()
        return trace.describe()

    def note(text: str) -> dict[str, Any]:
        trace.note(text)
        return {}

    def query(**selection: Any) -> dict[str, Any]:
        return {**trace.describe(), "header": trace.header, "newest": trace.newest(Selection(**selection))}

    def check(**selection: Any) -> object:
        return trace.check(Selection(**selection))

    def follow(**selection: Any) -> AsyncGenerator[bytes, None]:
        return trace.follow(Selection(**selection))

    return {
        "query-trace": Command(query),
        "trace-start": Command(start),
        "trace-stop": Command(stop),
        "trace-note": Command(note),
        "trace-follow": Command(check, stream=follow),
    }
