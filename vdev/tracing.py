"""The trace wired to one VM's machine: the names records are given, and every source of events."""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from vdev import __version__
from vdev.assemble import Machine
from vdev.config import Config, TraceConfig, parse_bdf, parse_size
from vdev.control.event_log import EventLog
from vdev.events import Trace as Emit
from vdev.trace.recorder import Surroundings, Trace, TraceOptions
from vdev.trace.records import Decoder, EndpointName, UnitName


class Source(Protocol):
    """Anything with events of its own for the trace."""

    trace: Emit | None


def make_trace(config: Config, machine: Machine, events: EventLog, sources: Iterable[Source]) -> Trace:
    """A trace that is off. `sources` are those beside the machine and the event log. Call it inside the event loop."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    decoder = _decoder(config)

    def switch(on: bool) -> None:
        emit = trace.emit if on else None
        machine.trace_to(emit, trace.timed)
        events.trace = emit
        for source in sources:
            source.trace = emit

    def schedule(delay_s: float, callback: Callable[[], None]) -> object:
        return asyncio.get_running_loop().call_later(delay_s, callback)

    around = Surroundings(switch, machine.attachments, time.monotonic_ns, schedule)
    trace = Trace(decoder, decoder.header(__version__, started, os.getpid()), around)
    return trace


def with_trace(config: Config, file: str | None) -> Config:
    """`config` with the trace on from the start, to `file` or, for the word memory, in memory; None leaves it."""
    if file is None:
        return config
    given = config.trace or TraceConfig()
    return msgspec.structs.replace(
        config, trace=msgspec.structs.replace(given, file=None if file == "memory" else file)
    )


def options_of(config: TraceConfig) -> TraceOptions:
    """The recording a configuration asks for."""
    return TraceOptions(
        file=config.file,
        max_bytes=parse_size(config.max_bytes, "trace.max_bytes"),
        records=config.records,
        endpoints=list(config.endpoints),
        types=list(config.types),
        statuses=list(config.statuses),
    )


def _decoder(config: Config) -> Decoder:
    units = [
        UnitName(unit.name, parse_bdf(unit.bdf), -(-unit.input_range[1].bit_length() // 4)) for unit in config.units
    ]
    endpoints = [EndpointName(endpoint.name, parse_bdf(endpoint.bdf), endpoint.unit) for endpoint in config.endpoints]
    return Decoder(config.vm.name, units, endpoints)
