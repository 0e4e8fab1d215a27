"""Runs mutations, a few at a time, and gives a verdict on each.

Most are made in forks of sessions that wait with all tests collected (`warm`). The others, and those that nobody
noticed there, are made in forks of this process, which has loaded the tools and nothing of ours (`child`).
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.mutation import child
from tests.mutation.sessions import HOST, Session, Stage, stages_of
from tests.mutation.table import Mutation
from tests.mutation.warm import WarmSession

# Loaded once, for all forks; nothing of ours may be among them.
for _tool in ("hypothesis.stateful", "hypothesis.strategies", "pytest_asyncio.plugin", "pytest_timeout"):
    importlib.import_module(_tool)

STUCK_S = 240.0  # for one test that waits; one that works is stopped by `child`
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
    """A mutation on its way through its stages; a fork is at work for one of them."""

    verdict: Verdict
    stages: list[Stage]
    started: float
    fd: int = -1
    heard: float = 0.0
    group: int = 0  # the process group of the fork
    scratch: Path | None = None  # of a cold one
    test: str = ""
    rest: bytes = b""
    has_ended: bool = False  # the fork, in whatever way
    is_done: bool = False  # in order


class Runner:
    """Runs mutations, `jobs` at a time. To be closed. `is_quick`: few tests, for a
    first look."""

    def __init__(self, jobs: int, *, is_quick: bool = False) -> None:
        self._jobs = jobs
        self._is_quick = is_quick
        self._warm: dict[Session, WarmSession] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="vdev-mutation-", dir="/tmp")
        self._ncold = 0

    def close(self) -> None:
        """End all sessions."""
        for session in self._warm.values():
            session.close()
        self._scratch.cleanup()

    def run(self, mutations: Sequence[Mutation]) -> Iterator[Verdict]:
        """The verdicts as they come."""
        waiting = list(reversed(mutations))
        running: dict[int, _Running] = {}
        with selectors.DefaultSelector() as selector, ExitStack() as stack:
            stack.callback(_kill_all, running)
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    mutation = waiting.pop()
                    one = _Running(Verdict(mutation), stages_of(mutation), time.monotonic())
                    if not self._next(one):
                        yield one.verdict
                        continue
                    running[one.fd] = one
                    selector.register(one.fd, selectors.EVENT_READ)
                for key, _ in selector.select(1.0):
                    _read(running[key.fd])
                for one in [one for one in running.values() if one.has_ended or _is_stuck(one)]:
                    selector.unregister(one.fd)
                    del running[one.fd]
                    self._end(one)
                    if self._next(one):
                        running[one.fd] = one
                        selector.register(one.fd, selectors.EVENT_READ)
                    else:
                        yield one.verdict

    def check_unchanged(self) -> Verdict:
        """All tests over the sources as they are: none may fail."""
        (verdict,) = self.run([Mutation(id="", old="", new="", what="")])
        return verdict

    def _next(self, one: _Running) -> bool:
        """Begin the next stage that is needed; False where the verdict is final."""
        verdict = one.verdict
        while one.stages and verdict.kind in ("survived", "killed"):
            stage = one.stages.pop(0)
            is_last_resort = not stage.named and (stage.session is None or stage.session.kind != HOST)
            if self._is_quick and is_last_resort and verdict.ntests:
                continue
            named = [clause for clause in stage.named if clause not in verdict.killers]
            if named or not (stage.named or verdict.killers):
                one.has_ended = one.is_done = False
                one.rest, one.test, one.heard = b"", "", time.monotonic()
                if stage.session is None:
                    self._begin_cold(one)
                else:
                    self._begin_warm(one, stage.session, named)
                return True
        if not verdict.ntests and verdict.kind == "survived":
            verdict.kind, verdict.text = "bad", "no test was run"
        verdict.seconds = time.monotonic() - one.started
        return False

    def _begin_warm(self, one: _Running, session: Session, named: list[str]) -> None:
        if session not in self._warm:
            self._warm[session] = WarmSession(session)
            one.heard = time.monotonic()
        one.fd, theirs = os.pipe()
        one.scratch, one.group = None, 0  # it tells
        self._warm[session].ask(one.verdict.mutation, named, theirs, is_quick=self._is_quick)
        os.close(theirs)

    def _begin_cold(self, one: _Running) -> None:
        self._ncold += 1
        one.scratch = Path(self._scratch.name, str(self._ncold))
        one.scratch.mkdir()
        one.fd, theirs = os.pipe()
        one.group = os.fork()
        if not one.group:
            try:
                os.close(one.fd)
                child.run(one.verdict.mutation, theirs, one.scratch)
            except BaseException:  # told by `_end`
                Path(one.scratch, "output").write_text(traceback.format_exc())
            finally:
                os._exit(0)
        os.close(theirs)

    def _end(self, one: _Running) -> None:
        """What is to be said about a fork that has ended, or has to."""
        verdict = one.verdict
        if not one.has_ended:
            if verdict.kind != "bad":
                verdict.kind, verdict.text = "time-out", f"{one.test or 'collection'} took more than {STUCK_S:.0f} s"
                verdict.killers.setdefault("", one.test)
            _kill(one)
        elif not one.is_done and verdict.kind != "bad":
            output = one.scratch / "output" if one.scratch is not None else None
            said = output.read_text()[-2000:] if output is not None and output.exists() else ""
            verdict.kind, verdict.text = "bad", f"it did not end in order: {said}"
        if one.scratch is not None:
            os.waitpid(one.group, 0)
        os.close(one.fd)


def _kill(one: _Running) -> None:
    """End its fork and the forks of that."""
    if one.group:
        with suppress(ProcessLookupError):
            os.killpg(one.group, signal.SIGKILL)


def _kill_all(running: dict[int, _Running]) -> None:
    for one in running.values():
        _kill(one)


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
    elif "pid" in message:
        one.group = message["pid"]
    elif "killer" in message:
        failure = f"{message['kind']} ({message['when']}, {message['session']}): {message['text']}"
        if message["kind"] in BAD_ERRORS:
            verdict.kind, verdict.text = "bad", failure
        elif message["kind"] == child.TookTooLong.__name__:
            verdict.kind, verdict.text = "time-out", failure
        elif verdict.kind != "bad":
            verdict.kind, verdict.text = "killed", verdict.text or failure
        verdict.killers[message["group"]] = message["killer"]
    elif "broken" in message:
        verdict.kind, verdict.text = "bad", message["broken"]
    elif "done" in message:
        one.is_done = True


def _is_stuck(one: _Running) -> bool:
    return time.monotonic() - one.heard > STUCK_S
