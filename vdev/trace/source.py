"""Where `vdev trace` reads from: a running backend's control socket, or files. Lines as they are, header first."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdev.control.places import CONTROL, the_running_vm
from vdev.errors import ConfigError
from vdev.trace.records import FORMAT_VERSION

RECV_NBYTES = 1 << 16
POLL_S = 0.2  # how often a file that is followed is looked at


def find_target(given: Path | None) -> Path:
    """A control socket or a trace file; ConfigError when there is none, or (without `given`) not exactly one VM."""
    if given is not None:
        path = given / CONTROL if given.is_dir() else given
        if not path.exists():
            raise ConfigError(str(given), "there is no such trace", "give a runtime directory, control.sock or a file")
        return path
    return the_running_vm("vdev trace") / CONTROL


def is_live(path: Path) -> bool:
    """Whether `path` is a socket."""
    return stat.S_ISSOCK(path.stat().st_mode)


def check_header(line: bytes, name: str) -> dict[str, Any]:
    """The header in `line`; ConfigError unless it is one of this version."""
    try:
        header = json.loads(line)
        version = header["vdev_trace"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(name, "is no trace of vdev", "its first line must be a trace's header") from None
    if version != FORMAT_VERSION:
        writer = str(header.get("vdev", "unknown"))
        cure = f"use the vdev that wrote it ({writer if writer.isprintable() else 'unknown'})"
        raise ConfigError(name, f"has trace format {version!r:.20}, this vdev reads {FORMAT_VERSION}", cure)
    if not _is_whole(header):
        raise ConfigError(name, "has a damaged header", "the first line of a trace names its VM, units and endpoints")
    return dict(header)


def _is_whole(header: dict[str, Any]) -> bool:
    """Whether `header` has what is shown of it and what a filter looks into."""
    units, endpoints = header.get("units"), header.get("endpoints")
    if not isinstance(units, list) or not isinstance(endpoints, list):
        return False
    rows: list[tuple[Any, tuple[str, ...]]] = [(header, ("vm", "vdev", "started"))]
    rows += [(unit, ("name", "bdf")) for unit in units]
    rows += [(endpoint, ("name", "bdf", "unit")) for endpoint in endpoints]
    return all(isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys) for row, keys in rows)


class LiveSource:
    """A running backend. `batches` ends when it does."""

    def __init__(self, path: Path, selection: dict[str, Any]) -> None:
        """Connect and ask; `selection` is trace-follow's arguments. ConfigError when that fails."""
        self.damaged = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            cure = "is its vdev still running?"
            raise ConfigError(str(path), f"nobody listens there: {error.strerror}", cure) from None
        self._buffer = b""
        self._socket.sendall(json.dumps({"execute": "trace-follow", "arguments": selection}).encode() + b"\n")
        answer = json.loads(self._first_line(path))
        if "error" in answer:
            self._socket.close()
            raise ConfigError("vdev trace", answer["error"]["desc"])
        self.header = check_header(json.dumps(answer["return"]).encode(), str(path))

    def _first_line(self, path: Path) -> bytes:
        while b"\n" not in self._buffer:
            data = self._socket.recv(RECV_NBYTES)
            if not data:
                raise ConfigError(str(path), "hung up", "see its log")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def batches(self) -> Iterator[list[bytes]]:
        """Lists of whole lines, as they arrive."""
        with self._socket:
            while True:
                *lines, self._buffer = self._buffer.split(b"\n")
                if lines:
                    yield lines
                data = self._socket.recv(RECV_NBYTES)
                if not data:
                    return
                self._buffer += data


class FileSource:
    """FILE, after FILE.1 where that is the same trace's older half."""

    def __init__(self, path: Path, *, follow: bool) -> None:
        """ConfigError when it cannot be read or is no trace."""
        self._path = path
        self._follow = follow
        self.header = check_header(_first_line(path), str(path))

    def batches(self) -> Iterator[list[bytes]]:
        """Lists of lines, the last of which may be cut short unless the file is followed."""
        older = self._path.with_name(self._path.name + ".1")
        if older.exists() and self._continues(older):
            with older.open("rb") as file:
                file.readline()
                yield from _chunks(file)
        while True:
            with self._path.open("rb") as file:
                file.readline()
                yield from self._tail(file) if self._follow else _chunks(file)
            if not self._follow:
                return

    def _continues(self, older: Path) -> bool:
        try:
            return check_header(_first_line(older), str(older)) == self.header
        except ConfigError:
            return False

    def _tail(self, file: Any) -> Iterator[list[bytes]]:
        """Until the file is turned over: then the next one is to be opened."""
        rest = b""
        while True:
            ended = _inode(self._path) != os.fstat(file.fileno()).st_ino
            data = file.read()
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                yield lines
            elif ended:
                return
            else:
                yield []
                time.sleep(POLL_S)


def _first_line(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline(1 << 20)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", "give a trace file") from None


def _chunks(file: Any) -> Iterator[list[bytes]]:
    while lines := file.readlines(1 << 20):
        yield [line.rstrip(b"\n") for line in lines]


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
