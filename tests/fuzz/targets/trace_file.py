"""A trace file that somebody sends: each line is shown, or counted as damaged; what is no trace is a ConfigError.

Input: a byte that chooses what is wanted (`_ARGUMENTS`), then the file. What is shown is text a terminal can be given:
a record is one line, and no character in it is a command to the terminal.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from vdev.errors import ConfigError
from vdev.trace import cli
from vdev.trace.records import FORMAT_VERSION

_PARSER = argparse.ArgumentParser()
cli.add_arguments(_PARSER)
_ARGUMENTS: tuple[list[str], ...] = (
    [], ["--last", "2"], ["--json"], ["--endpoint", "accel0"], ["--type", "MAP,FAULT"], ["--status", "!OK"],
    ["--last", "0"], ["--endpoint", "iommu0", "--type", "request", "--json"],
)  # fmt: skip


def one_input(data: bytes) -> None:
    """Show one file."""
    words = _ARGUMENTS[data[0] % len(_ARGUMENTS) if data else 0]
    fd = os.memfd_create("trace")
    try:
        os.write(fd, data[1:])
        arguments = _PARSER.parse_args([f"/proc/self/fd/{fd}", "--no-follow", *words])
        arguments.target = Path(arguments.target)
        shown, said = _show(arguments)
    except ConfigError as error:
        _check_words(error)
    else:
        _check(data[1:], shown, said, as_json="--json" in words, all_shown=not words)
    finally:
        os.close(fd)


def _check_words(error: ConfigError) -> None:
    assert error.key
    assert error.problem
    assert error.problem.isprintable()


def _show(arguments: argparse.Namespace) -> tuple[str, str]:
    shown, said = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(shown, encoding="utf-8", newline="\n", write_through=True)
    with redirect_stderr(said):
        assert cli._show(arguments, out) == 0
    return shown.getvalue().decode(), said.getvalue()


def _check(text: bytes, shown: str, said: str, *, as_json: bool, all_shown: bool) -> None:
    # JSON leaves DEL as it is, which no terminal minds.
    assert shown.replace("\n", "").replace("\x7f", "").isprintable(), "a terminal would be given commands"
    damaged = int(said.split()[1]) if said else 0
    if as_json:
        for line in shown.splitlines():
            json.loads(line)
    elif all_shown:
        lines = text.split(b"\n")[1:]
        lines = lines if lines and lines[-1] else lines[:-1]
        assert shown.count("\n") == 2 + len(lines) - damaged, "a record is not one line"


_HEADER = {
    "vdev_trace": FORMAT_VERSION, "vdev": "0.1.0", "vm": "vm", "started": "2026-01-02T03:04:05Z",
    "units": [{"name": "iommu0", "bdf": "00:10.0"}],
    "endpoints": [{"name": "accel0", "bdf": "01:00.0", "unit": "iommu0"}],
}  # fmt: skip
_AT = {"endpoint": "01:00.0", "function": "accel0", "unit": "iommu0"}
_RANGE = {"virt_start": "0x1000", "virt_end": "0x1fff"}
_RECORDS: tuple[dict[str, Any], ...] = (
    {"kind": "request", "type": "ATTACH", "status": "OK", "duration_us": 5.25, "fields": {"domain": 1, "flags": ""}},
    {"kind": "request", "type": "MAP", "status": "INVAL", "duration_us": 2,
     "fields": {"domain": 1, **_RANGE, "phys_start": "0x5000", "flags": "READ|WRITE|0x8", "problem": "too short"}},
    {"kind": "request", "type": "UNMAP", "status": "OK", "fields": {"domain": 1, **_RANGE}},
    {"kind": "request", "type": "DETACH", "status": "OK", "fields": {"domain": 1}},
    {"kind": "request", "type": "PROBE", "status": "OK", "fields": {}},
    {"kind": "fault", "type": "FAULT", "status": "not-mapped", "fields": {"access": "write", "iova": "0x1000"}},
    {"kind": "fault", "type": "DROPPED", "fields": {"total": 3}},
    {"kind": "dma", "type": "DMA", "fields": {"access": "read", "iova": "0x1000", "nbytes": 4096, "pieces": 2}},
    {"kind": "register", "type": "REG", "fields": {"register": "notify", "value": "0x0", "words": "requestq"}},
    {"kind": "reset", "type": "RESET", "fields": {"reset": "unit", "cause": "system"}},
    {"kind": "bypass", "type": "BYPASS", "fields": {"bypass": True}},
    {"kind": "error", "type": "ERROR", "fields": {"code": "bad-op", "iova": "0x10"}},
    {"kind": "irq", "type": "IRQ", "fields": {"vector": 1}},
    {"kind": "rings", "type": "RINGS", "fields": {"rings": "resumed", "why": "the same driver"}},
    {"kind": "connection", "type": "CONNECT", "fields": {"pid": 7}},
    {"kind": "run-state", "type": "STOPPED", "fields": {"by": "stop"}},
    {"kind": "endpoint", "type": "STAGE", "fields": {"stage": "probed"}},
    {"kind": "note", "type": "NOTE", "fields": {"text": "hello"}},
    {"kind": "lost", "type": "LOST", "fields": {"count": 4}},
    {"kind": "trace", "type": "TRACE", "fields": {"detail": "all"}},
)  # fmt: skip


def seeds() -> Iterator[bytes]:
    """A record of each kind, all of them, and each choice of what is wanted."""
    header = json.dumps(_HEADER).encode() + b"\n"
    lines = [json.dumps({"t": 1.5, **_AT, **record}).encode() + b"\n" for record in _RECORDS]
    for line in lines:
        yield b"\0" + header + line
    for number in range(len(_ARGUMENTS)):
        yield bytes([number]) + header + b"".join(lines[number % 3 :: 3])
