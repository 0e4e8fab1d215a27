"""Runs mutations, a few at a time, each in a fork of this process; gives a verdict on each."""

from __future__ import annotations

import json
import os
import selectors
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# Loaded once, for all forks; nothing of ours may be among them.
import hypothesis.stateful
import hypothesis.strategies  # noqa: F401
import msgspec.json  # noqa: F401
import pytest_asyncio.plugin  # noqa: F401
import pytest_timeout  # noqa: F401

from tests.mutation import child
from tests.mutation.table import Mutation

STUCK_S = 45.0  # for one test; the slowest takes two seconds
# A mutation that leaves a name behind nobody knows says nothing about the tests.
BAD_ERRORS = ("NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError")
Kind = Literal["killed", "time-out", "survived", "bad"]


@dataclass(slots=True)
class Verdict:
    """What became of one mutation."""

    mutation: Mutation
    kind: Kind = "survived"
    killers: dict[str, str] = field(default_factory=dict)  # by clause ("": a test named for none of its clauses)
    text: str = ""  # the first failure, or why it is bad
    ntests: int = 0  # run
    seconds: float = 0.0

    @property
    def killer(self) -> str:
        """The test that noticed first; "" if none did."""
        return next(iter(self.killers.values()), "")


@dataclass(slots=True)
class _Running:
    """A fork at work."""

    verdict: Verdict
    pid: int
    fd: int
    scratch: tempfile.TemporaryDirectory[str]
    started: float
    heard: float
    test: str = ""
    rest: bytes = b""
    has_ended: bool = False  # in whatever way
    is_done: bool = False  # in order


def run_all(mutations: Sequence[Mutation], jobs: int) -> Iterator[Verdict]:
    """The verdicts as they come, `jobs` mutations at a time."""
    waiting = list(reversed(mutations))
    running: dict[int, _Running] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    one = _start(waiting.pop())
                    running[one.fd] = one
                    selector.register(one.fd, selectors.EVENT_READ)
                for key, _ in selector.select(1.0):
                    _read(running[key.fd])
                for one in [one for one in running.values() if one.has_ended or _is_stuck(one)]:
                    selector.unregister(one.fd)
                    del running[one.fd]
                    yield _end(one)
        finally:
            for one in running.values():
                _end(one)


def check_unchanged() -> Verdict:
    """The same tests over the sources as they are: none may fail."""
    (verdict,) = run_all([Mutation(id="", old="", new="", what="")], 1)
    return verdict


def _start(mutation: Mutation) -> _Running:
    scratch = tempfile.TemporaryDirectory(prefix="vdev-mutation-", dir="/tmp")
    mine, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(mine)
            child.run(mutation, theirs, Path(scratch.name))
        except BaseException:  # told by `_end`
            Path(scratch.name, "output").write_text(traceback.format_exc())
        finally:
            os._exit(0)
    os.close(theirs)
    now = time.monotonic()
    return _Running(Verdict(mutation), pid, mine, scratch, now, now)


def _read(one: _Running) -> None:
    data = os.read(one.fd, 1 << 16)
    one.heard = time.monotonic()
    if not data:
        one.has_ended = True
        return
    *lines, one.rest = (one.rest + data).split(b"\n")
    for line in lines:
        _take(one, json.loads(line))


def _take(one: _Running, message: dict[str, Any]) -> None:
    """A line of the fork's."""
    verdict = one.verdict
    if "start" in message:
        one.test = message["start"]
        verdict.ntests += 1
    elif "killer" in message:
        failure = f"{message['kind']} ({message['when']}, {message['session']}): {message['text']}"
        if message["kind"] in BAD_ERRORS:
            verdict.kind, verdict.text = "bad", failure
        elif verdict.kind != "bad":
            verdict.kind, verdict.text = "killed", verdict.text or failure
        verdict.killers[message["group"]] = message["killer"]
    elif "broken" in message:
        verdict.kind, verdict.text = "bad", message["broken"]
    elif "done" in message:
        one.is_done = True


def _is_stuck(one: _Running) -> bool:
    return time.monotonic() - one.heard > STUCK_S


def _end(one: _Running) -> Verdict:
    """Reap the fork, whatever is left of it."""
    verdict = one.verdict
    if not one.has_ended:
        if verdict.kind != "bad":
            verdict.kind, verdict.text = "time-out", f"{one.test or 'collection'} took more than {STUCK_S:.0f} s"
            verdict.killers.setdefault("", one.test)
        os.killpg(one.pid, signal.SIGKILL)
    elif not one.is_done and verdict.kind != "bad":
        output = Path(one.scratch.name, "output")
        verdict.kind, verdict.text = "bad", "it did not end in order: " + output.read_text()[-2000:]
    elif not verdict.ntests and verdict.kind != "bad":
        verdict.kind, verdict.text = "bad", "no test was run"
    os.waitpid(one.pid, 0)
    os.close(one.fd)
    verdict.seconds = time.monotonic() - one.started
    one.scratch.cleanup()
    return verdict
