"""One mutation, in a process of its own: a fork of one that has loaded the tools and nothing of ours.

It forks again for each session of pytest, which imports the changed module and collects once. A session forks for each
group of tests, which ends at its first failure: a group for each clause, of the tests named for it, or one of all that
are named for none of the mutation's clauses.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.conformance.table import clauses_of
from tests.mutation import overlay
from tests.mutation.sessions import Session, sessions
from tests.mutation.table import Mutation

MAX_MEMORY_NBYTES = 4 << 30
TEST_CPU_S = 15  # the slowest test takes two
OTHERS = ""  # the group of tests that are named for no clause in question


class Channel:
    """Lines of JSON to who runs mutations."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, **message: Any) -> None:
        os.write(self._fd, (json.dumps(message) + "\n").encode())


class Groups:
    """A pytest plugin that runs the collected tests in groups; `failed` are the groups of which a test did."""

    def __init__(self, mutation: Mutation, session: Session, channel: Channel) -> None:
        self.failed: set[str] = set()
        self.is_broken = False
        self._mutation = mutation
        self._session = session
        self._channel = channel
        self._group = OTHERS
        self._has_failed = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported says nothing about a test."""
        if report.failed:
            self.is_broken = True
            self._channel.say(broken=f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of pytest's own loop."""
        if not self.is_broken:
            self.run_groups(session.items, self._session.named)
        return True

    def run_groups(self, collected: list[pytest.Item], named: Sequence[str], *, is_quick: bool = False) -> None:
        """A group of tests for each clause in `named`; without any, one of all tests named for none that is broken
        (`is_quick`: of those the table wants first)."""
        items = self._ordered(collected)
        first = {test.partition("::")[0] for test in self._mutation.tests}
        if is_quick and first and not named:
            items = [item for item in items if item.nodeid.partition("::")[0] in first]
        if not named:
            self._fork(OTHERS, [item for item in items if not set(self._mutation.clauses) & _clauses(item)])
        for clause in named:
            self._fork(clause, [item for item in items if clause in _clauses(item)])

    def _ordered(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """Those the table wants first at the front, else as collected."""
        places = {test: place for place, test in enumerate(self._mutation.tests)}

        def place(item: pytest.Item) -> int:
            names = (item.nodeid, item.nodeid.partition("[")[0], item.nodeid.partition("::")[0])
            return min((places[name] for name in names if name in places), default=len(places))

        return sorted(items, key=place)

    def _fork(self, group: str, items: list[pytest.Item]) -> None:
        if items and fork(lambda: self._run(group, items)) != 0:
            self.failed.add(group)

    def _run(self, group: str, items: list[pytest.Item]) -> int:
        self._group = group
        signal.signal(signal.SIGXCPU, _too_long)
        for item, following in zip(items, [*items[1:], None], strict=True):
            self._channel.say(start=item.nodeid)
            _limit_cpu(TEST_CPU_S)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._has_failed:
                return 1
        return 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Tell of the first failure, with the kind of the exception."""
        report = yield
        if report.failed and not self._has_failed and call.excinfo is not None:
            self._has_failed = True
            text = str(call.excinfo.value).strip().partition("\n")[0][:200]
            told = {"when": report.when, "kind": call.excinfo.typename, "text": text}
            self._channel.say(killer=item.nodeid, session=self._session.kind, group=self._group, **told)
        return report


class TookTooLong(BaseException):
    """A test has used much more of the processor than any does: a loop without end. Nobody may catch it."""


def _too_long(*_: object) -> None:
    _limit_cpu(None)  # the signal would come again each second
    raise TookTooLong(f"more than {TEST_CPU_S} s of the processor")


def _limit_cpu(seconds: int | None) -> None:
    """From now on, by the processor's time and not the clock's: the machine may be busy with other things."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = resource.RLIM_INFINITY if seconds is None else int(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _clauses(item: pytest.Item) -> set[str]:
    return set(clauses_of(item.name))


def fork(work: Callable[[], int]) -> int:
    """The exit status of a fork that does `work`."""
    child = os.fork()
    if not child:
        status = 99
        try:
            status = work()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(mutation: Mutation, fd: int, scratch: Path) -> None:
    """Run the sessions of `mutation`; tell `fd` in lines of JSON."""
    assert not [name for name in sys.modules if name.partition(".")[0] == "vdev"], "vdev is there already"
    os.setpgid(0, 0)
    limit_memory()
    print_to(scratch / "output")
    channel = Channel(fd)
    overlay.finder = overlay.Finder(mutation) if mutation.file else None
    use_same_examples()
    failed: set[str] = set()
    for session, is_last_resort in sessions(mutation):
        wanted = tuple(clause for clause in session.named if clause not in failed)
        if (is_last_resort and failed) or (session.named and not wanted):
            continue
        status = fork(partial(_session, mutation, replace(session, named=wanted), channel, scratch))
        if status != 0:
            channel.say(broken=f"a session ended with {status}: {(scratch / 'output').read_text()[-2000:]}")
            return
        failed |= set(json.loads((scratch / "failed").read_text()))
    channel.say(done=True)


def use_same_examples() -> None:
    """A mutation is killed or not, whatever the day. The first example that fails will do, it need not be short."""
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutation")


def limit_memory() -> None:
    """A loop without end that fills a list ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_NBYTES, MAX_MEMORY_NBYTES))


def print_to(path: Path) -> None:
    """What this process and its forks print goes to a file."""
    output = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)


def _session(mutation: Mutation, session: Session, channel: Channel, scratch: Path) -> int:
    """One session of pytest. The clauses (or OTHERS) whose tests failed are left in the file `failed`."""
    os.environ.update(session.environment)
    groups = Groups(mutation, session, channel)
    status = pytest.main(session.arguments(scratch / "tmp"), plugins=[groups])
    (scratch / "failed").write_text(json.dumps(sorted(groups.failed)))
    return 0 if status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) or groups.is_broken else int(status)
