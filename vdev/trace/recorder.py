"""The trace of one backend: what happened, with times, in memory, to a file and to whoever follows.

Off, nothing calls us. On, the request path pays for one small object and an append; the rest is done when somebody
looks. Everything is bounded: the ring in memory, the file, and each follower's queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vdev.errors import ConfigError
from vdev.iommu.events import EndpointAttached, EndpointDetached, RequestHandled, UnitReset
from vdev.trace.file import Schedule, TraceFile
from vdev.trace.filter import Filter
from vdev.trace.records import Decoder, EndpointName, Entry, Lost, Note, Record, Recording
from vdev.wire.viommu import Map, Unmap

DEFAULT_RECORDS = 10_000
MAX_RECORDS = 1_000_000
DEFAULT_MAX_NBYTES = 32 << 20
MAX_WAITING = 4096  # records one follower may be behind
CHUNK = 256  # records decoded before others get their turn
MAX_NOTE = 500

Handle = Callable[[bytes | memoryview, int], bytes]
Attachments = Mapping[tuple[str, int], tuple[int, ...]]  # (unit, domain) -> endpoints in it
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """How to record: arguments of trace-start."""

    file: str | None = None
    max_bytes: int = DEFAULT_MAX_NBYTES  # of FILE and FILE.1 together
    records: int = DEFAULT_RECORDS  # kept in memory
    endpoints: Sequence[str] = ()
    types: Sequence[str] = ()
    statuses: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of the newest records: arguments of query-trace and trace-follow."""

    last: int = 50
    follow: bool = True  # trace-follow only: go on with what happens
    endpoints: Sequence[str] = ()
    types: Sequence[str] = ()
    statuses: Sequence[str] = ()


@dataclass(frozen=True)
class Surroundings:
    """What the trace needs of the application: hooks, clocks, the loop."""

    switch: Callable[[bool], None]  # connect the trace to every source of events, or disconnect it
    attachments: Callable[[], Attachments]  # as they are now
    clock_ns: Callable[[], int]
    schedule: Schedule


class Follower:
    """The records one reader has not taken yet."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._lost = 0
        self._last: Entry | None = None
        self._awake = asyncio.Event()

    def put(self, entry: Entry) -> None:
        """Keep `entry`, or count it when the reader is too far behind."""
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            self._last = entry
            return
        self._mark_loss()
        self._waiting.append(entry)
        self._awake.set()

    async def take(self) -> list[Entry]:
        """Wait for records; a chunk of them, with a Lost where some are missing."""
        await self._awake.wait()
        chunk = [self._waiting.popleft() for _ in range(min(CHUNK, len(self._waiting)))]
        if not self._waiting:
            self._mark_loss()
        if not self._waiting:
            self._awake.clear()
        return chunk

    def _mark_loss(self) -> None:
        if self._last is not None:
            self._waiting.append(Entry(self._last.seq, self._last.t_ns, Lost(self._lost)))
            self._lost, self._last = 0, None


class Trace:
    """Recording is on between `start` and `stop`; the sources are connected while it is on or somebody follows."""

    def __init__(self, decoder: Decoder, header: Record, around: Surroundings) -> None:
        """`header` is the record every file and stream begins with; its wall clock is that of t 0, which is now."""
        self.header = header
        self.recording = False
        self._decoder = decoder
        self._around = around
        self._zero_ns = around.clock_ns()
        self._ring: deque[Entry] = deque(maxlen=DEFAULT_RECORDS)
        self._nrecorded = 0
        self._filter: Filter | None = None
        self._file: TraceFile | None = None
        self._file_problem = ""
        self._followers: list[Follower] = []
        self._connected = False
        self._next = 0
        self._request_ns = 0  # when the request under way began; 0 for none
        self._attached: dict[tuple[str, int], tuple[int, ...]] = {}

    # what the sources call

    def emit(self, event: object) -> None:
        """Take in an event of any kind. Cheap: nothing is decoded unless the recording has a filter."""
        now_ns = self._around.clock_ns()
        entry = Entry(self._next, now_ns - self._zero_ns, event)
        if type(event) is RequestHandled:
            if self._request_ns:
                entry.duration_ns, self._request_ns = now_ns - self._request_ns, 0
            request = event.request
            if isinstance(request, Map | Unmap):
                entry.endpoints = self._attached.get((event.unit, request.domain), ())
        elif isinstance(event, EndpointAttached | EndpointDetached):
            self._move(event)  # the request's own record says it
            return
        elif isinstance(event, UnitReset):
            self._attached = {key: ends for key, ends in self._attached.items() if key[0] != event.unit}
        self._next += 1
        self._keep(entry)

    def timed(self, handle: Handle) -> Handle:
        """`handle` of an engine, with its time taken for the RequestHandled it emits."""
        clock_ns = self._around.clock_ns

        def timed_handle(readable: bytes | memoryview, writable_nbytes: int) -> bytes:
            self._request_ns = clock_ns()
            return handle(readable, writable_nbytes)

        return timed_handle

    def _keep(self, entry: Entry) -> None:
        if self.recording and (self._filter is None or self._filter.matches(self._decoder.record(entry))):
            self._ring.append(entry)
            self._nrecorded += 1
            if self._file is not None:
                self._file.put(entry)
        for follower in self._followers:
            follower.put(entry)

    def _move(self, event: EndpointAttached | EndpointDetached) -> None:
        key = (event.unit, event.domain)
        rest = tuple(endpoint for endpoint in self._attached.get(key, ()) if endpoint != event.endpoint)
        after = (*rest, event.endpoint) if isinstance(event, EndpointAttached) else rest
        if after:
            self._attached[key] = after
        else:
            self._attached.pop(key, None)

    # what people call

    @property
    def source(self) -> Callable[[object], None] | None:
        """What a source of events that comes now is connected to."""
        return self.emit if self._connected else None

    def learn(self, endpoint: EndpointName) -> None:
        """There is a new endpoint: records and filters know its name from now on; a file's header does not."""
        self._decoder.learn(endpoint)
        self.header = {**self.header, "endpoints": self._decoder.endpoints()}

    def start(self, options: TraceOptions) -> None:
        """Record from now on, in memory and, if there is one, to `options.file`. ConfigError names what is wrong."""
        if self.recording:
            raise ConfigError("trace", "is being recorded already", "trace-stop ends that")
        if not 1 <= options.records <= MAX_RECORDS:
            raise ConfigError("records", f"{options.records} is not in 1..{MAX_RECORDS}", "10000 is usual")
        wanted = Filter(self.header, options.endpoints, options.types, options.statuses)
        if options.file is not None:
            path = Path(options.file)
            self._file = TraceFile(path, options.max_bytes, self.header, self._decoder, self._around.schedule)
        self._filter = None if wanted.is_empty else wanted
        self._ring = deque(maxlen=options.records)
        self._nrecorded, self._file_problem = 0, ""
        self.recording = True
        self._connect()
        self.emit(Recording(True, f"recorded to {options.file}" if options.file else "recorded in memory"))

    def stop(self) -> None:
        """End the recording; what is in memory stays until the next. Does nothing when there is none."""
        if not self.recording:
            return
        self.emit(Recording(False))
        self.recording = False
        self._connect()
        if self._file is not None:
            self._file.close()
            self._file_problem = self._file.problem
            self._file = None

    def note(self, text: str) -> None:
        """A line of somebody else's among the records."""
        if self._connected:
            self.emit(Note(text[:MAX_NOTE]))

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        file = self._file
        return {
            "recording": self.recording,
            "records": len(self._ring),
            "overwritten": self._nrecorded - len(self._ring),
            "followers": len(self._followers),
            "file": str(file.path) if file else None,
            "file_lost": file.lost if file else 0,
            "file_problem": file.problem if file else self._file_problem,
        }

    def newest(self, selection: Selection) -> list[Record]:
        """The newest records that fit, oldest first. ConfigError for a wrong filter.

        In one go: with a filter that little fits, some hundred milliseconds for ten thousand. `follow` takes turns.
        """
        wanted = Filter(self.header, selection.endpoints, selection.types, selection.statuses)
        return self._last_of(list(self._ring), selection.last, wanted)

    def check(self, selection: Selection) -> Record:
        """The header, once it is clear that `selection` makes sense. ConfigError."""
        Filter(self.header, selection.endpoints, selection.types, selection.statuses)
        return self.header

    async def follow(self, selection: Selection) -> AsyncGenerator[bytes, None]:
        """Records as JSON lines, several at a time: the newest that are there, then those to come.

        Whoever reads too slowly finds a record of kind lost where some are missing.
        """
        wanted = Filter(self.header, selection.endpoints, selection.types, selection.statuses)
        follower = Follower()
        kept = list(self._ring)
        if selection.follow:
            self._followers.append(follower)
            self._connect()
        try:
            yield _lines(await self._backlog(kept, selection.last, wanted))
            while selection.follow:
                records = [self._decoder.record(entry) for entry in await follower.take()]
                if lines := _lines(record for record in records if wanted.matches(record)):
                    yield lines
                await asyncio.sleep(0)
        finally:
            with suppress(ValueError):
                self._followers.remove(follower)
            self._connect()

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._followers.clear()
        self._connect()

    async def _backlog(self, kept: list[Entry], last: int, wanted: Filter) -> list[Record]:
        """As `_last_of`, with others getting their turn: a filter may look through everything in vain."""
        found: list[Record] = []
        while kept and len(found) < last:
            found = self._last_of(kept[-CHUNK:], last - len(found), wanted) + found
            del kept[-CHUNK:]
            await asyncio.sleep(0)
        return found

    def _last_of(self, kept: list[Entry], last: int, wanted: Filter) -> list[Record]:
        found: list[Record] = []
        for entry in reversed(kept):
            if len(found) >= last:
                break
            record = self._decoder.record(entry)
            if wanted.matches(record):
                found.append(record)
        return found[::-1]

    def _connect(self) -> None:
        needed = self.recording or bool(self._followers)
        if needed == self._connected:
            return
        self._connected = needed
        self._request_ns = 0
        self._attached = dict(self._around.attachments()) if needed else {}
        self._around.switch(needed)


def _lines(records: Iterable[Record]) -> bytes:
    return b"".join(_encode(record) + b"\n" for record in records)
