"""`vdev trace`: what a backend does, as it does it, or what it did, from a file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from vdev.trace.filter import STATUSES, TYPES, Filter
from vdev.trace.source import FileSource, LiveSource, find_target, is_live
from vdev.trace.text import header_lines, line

LIVE_LAST = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vdev trace`."""
    parser.add_argument(
        "target", nargs="?", type=Path, metavar="WHERE",
        help="runtime directory, control.sock or trace file (default: the one VM that runs)",
    )  # fmt: skip
    words: dict[str, Any] = {"action": "append", "default": [], "metavar": "WORD,..."}
    parser.add_argument("--endpoint", help="BDFs or names; a unit's name stands for all behind it", **words)
    parser.add_argument("--type", help=", ".join(TYPES), **words)
    parser.add_argument("--status", help="! takes out, as in '!OK': " + ", ".join(STATUSES), **words)
    parser.add_argument("--last", type=_count, metavar="N", help="the newest N (default: 50 live, all of a file)")
    parser.add_argument("--json", action="store_true", help="the records themselves, one a line")
    parser.add_argument(
        "--follow", action=argparse.BooleanOptionalAction,
        help="go on with what happens (default: live yes, of a file no)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Show the trace until it ends, Ctrl-C, or nobody reads; the exit status is 0. Raises ConfigError."""
    try:
        return _show(arguments, sys.stdout)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # The interpreter flushes at its end, and must not find the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _show(arguments: argparse.Namespace, out: TextIO) -> int:
    path = find_target(arguments.target)
    words = {"endpoints": _split(arguments.endpoint), "types": _split(arguments.type)}
    words["statuses"] = _split(arguments.status)
    live = is_live(path)
    follow = live if arguments.follow is None else arguments.follow
    source: LiveSource | FileSource
    if live:
        last = LIVE_LAST if arguments.last is None else arguments.last
        source = LiveSource(path, {"last": last, "follow": follow, **words})
    else:
        source = FileSource(path, follow=follow)
    wanted = Filter(source.header, **words)
    colour = out.isatty() and "NO_COLOR" not in os.environ
    _write(out, [json.dumps(source.header)] if arguments.json else header_lines(source.header))
    reader = _Reader(source.batches(), wanted)
    batches = iter(reader)
    if arguments.last is not None and not live:
        batches = _newest(batches, arguments.last, follow)
    for records in batches:
        _write(out, [json.dumps(record) if arguments.json else line(record, colour=colour) for record in records])
    if reader.damaged:
        sys.stderr.write(f"vdev: {reader.damaged} damaged line(s) were left out\n")
    return 0


class _Reader:
    """Batches of lines as batches of records that are wanted; `damaged` counts the lines that are none."""

    def __init__(self, batches: Iterable[list[bytes]], wanted: Filter) -> None:
        self.damaged = 0
        self._batches = batches
        self._wanted = wanted

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for lines in self._batches:
            yield [record for record in map(self._parse, lines) if record is not None]

    def _parse(self, text: bytes) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(text)
            wanted = self._wanted.matches(record)
            line(record)  # what cannot be shown is damaged, too
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.damaged += 1
            return None
        return record if wanted else None


def _newest(batches: Iterator[list[dict[str, Any]]], last: int, follow: bool) -> Iterator[list[dict[str, Any]]]:
    """The newest `last` of what is there, then, where a file is followed, what comes: it says so by an empty batch."""
    kept: deque[dict[str, Any]] = deque(maxlen=last)
    for records in batches:
        if follow and not records:
            break
        kept.extend(records)
    yield list(kept)
    yield from batches


def _write(out: TextIO, lines: list[str]) -> None:
    if lines:
        out.write("\n".join(lines) + "\n")
        out.flush()


def _split(given: list[str]) -> list[str]:
    return [word for words in given for word in words.split(",") if word]


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of records")
    return int(text)
