"""The trace on disk: JSON lines, a header first, FILE turned over to FILE.1 once, never more than so many bytes.

Records wait in memory until the loop has time, and are written a chunk at a time: the guest's requests wait meanwhile.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from vdev.errors import ConfigError
from vdev.trace.records import Decoder, Entry, Lost, Record

log = logging.getLogger(__name__)

MIN_NBYTES = 1 << 16
FLUSH_S = 0.1  # how old a record may get before it is written
CHUNK_NRECORDS = 512  # written at once: a few milliseconds
MAX_PENDING = 16 * CHUNK_NRECORDS
MAGIC = b'{"vdev_trace":'

Schedule = Callable[[float, Callable[[], None]], object]  # loop.call_later
_encode = msgspec.json.encode


class TraceFile:
    """The file of one recording."""

    def __init__(self, path: Path, max_nbytes: int, header: Record, decoder: Decoder, schedule: Schedule) -> None:
        """Open `path`, a trace that was there becoming `path`.1. ConfigError with key file or max-bytes."""
        if max_nbytes < MIN_NBYTES:
            raise ConfigError("max-bytes", f"{max_nbytes} is too small for a trace", f"give at least {MIN_NBYTES}")
        self.path = path
        self.older = path.with_name(path.name + ".1")
        self.nbytes = 0  # in the newer of the two files
        self.lost = 0
        self.problem = ""  # why nothing is written any more
        self._half = max_nbytes // 2
        self._header = _encode(header) + b"\n"
        self._decoder = decoder
        self._schedule = schedule
        self._pending: deque[Entry] = deque()
        self._lost_now = 0
        self._scheduled = False
        self._fd = -1
        try:
            if _is_trace(path):
                os.replace(path, self.older)
            self._open()
        except OSError as error:
            raise ConfigError("file", f"{path} cannot be written: {error.strerror}", "choose another path") from None

    def put(self, entry: Entry) -> None:
        """Keep `entry` for the next flush, or count it as lost when the loop had no time for thousands before it."""
        if self.problem:
            return
        if len(self._pending) >= MAX_PENDING:
            self._lost_now += 1
            self.lost += 1
            return
        if self._lost_now:
            self._pending.append(Entry(entry.seq, entry.t_ns, Lost(self._lost_now)))
            self._lost_now = 0
        self._pending.append(entry)
        if not self._scheduled:
            self._scheduled = True
            self._schedule(FLUSH_S, self._flush_some)
        elif len(self._pending) == CHUNK_NRECORDS:
            self._schedule(0.0, self._flush_some)

    def close(self) -> None:
        """Write what waits, and close. Idempotent."""
        while self._pending and not self.problem:
            self._write_chunk()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._pending.clear()

    def _flush_some(self) -> None:
        if self._fd < 0:
            return
        self._write_chunk()
        self._scheduled = bool(self._pending)
        if self._pending:
            self._schedule(0.0 if len(self._pending) >= CHUNK_NRECORDS else FLUSH_S, self._flush_some)

    def _write_chunk(self) -> None:
        entries = [self._pending.popleft() for _ in range(min(len(self._pending), CHUNK_NRECORDS))]
        lines = [_encode(self._decoder.record(entry)) + b"\n" for entry in entries]
        try:
            self._write(lines)
        except OSError as error:
            # A full disk must not stop the VM.
            self.problem = f"{self.path}: {error.strerror}"
            self._pending.clear()
            log.error("the trace file ends here: %s", self.problem)

    def _write(self, lines: list[bytes]) -> None:
        # What is about to be written counts, too: never a byte over, and never half a line.
        gathered: list[bytes] = []
        nbytes = self.nbytes
        for line in lines:
            if nbytes + len(line) > self._half:
                self._store(b"".join(gathered))
                self._turn_over()
                gathered, nbytes = [], self.nbytes
            gathered.append(line)
            nbytes += len(line)
        self._store(b"".join(gathered))

    def _store(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self.nbytes += written
            view = view[written:]

    def _turn_over(self) -> None:
        os.close(self._fd)
        self._fd = -1
        os.replace(self.path, self.older)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o600)
        self.nbytes = 0
        self._store(self._header)


def _is_trace(path: Path) -> bool:
    """Whether a trace is at `path`; ConfigError when something else is, which is not ours to overwrite."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("file", f"{path} is not an ordinary file", "choose another path")
    if not status.st_size:
        return False
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ConfigError("file", f"{path} exists and is no trace", "remove it, or choose another path")
    return True
