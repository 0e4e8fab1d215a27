"""One mutation, in a process of its own: a fork of one that has loaded the tools and nothing of ours.

The changed module takes the place of the one on disk when it is imported; the tree is never written to. pytest collects
once. Then each group of tests runs in another fork, which ends at its first failure: a group for each clause the
mutation breaks, of the tests named for it, and one of all other tests, run when none of those noticed.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import re
import resource
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import hypothesis
import pytest

from tests.mutation.table import ROOT, Mutation

MAX_MEMORY_NBYTES = 4 << 30  # a loop without end that fills a list
REST = ""  # the group of the tests that are named for no clause in question
_NAMED = re.compile(r"test_((?:[dg]\d+_)+)")
# A mutation that leaves a name behind nobody knows says nothing about the tests.
BAD_ERRORS = ("NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError")


class _Loader(SourceFileLoader):
    """The changed source of one module."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew: no file caches it."""
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the changed module before anybody finds the one on disk."""

    def __init__(self, mutation: Mutation) -> None:
        self.is_used = False
        self._name = mutation.module
        self._path = str(ROOT / mutation.file)
        self._loader = _Loader(self._name, self._path, mutation.apply(Path(self._path).read_text()))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        self.is_used = True
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self._loader)


def named_for(name: str) -> list[str]:
    """The clauses a test is named for: `test_d16_...`, `test_g03_d38_...`; ids without leading zeros."""
    found = _NAMED.match(name)
    return [word[0].upper() + str(int(word[1:])) for word in found[1].split("_") if word] if found else []


class _Groups:
    """A pytest plugin that runs the collected tests in groups, and says to `fd` what becomes of them."""

    def __init__(self, mutation: Mutation | None, fd: int) -> None:
        self._mutation = mutation
        self._finder = _Finder(mutation) if mutation is not None else None
        self._fd = fd
        self._killed = False
        self._broken = False

    def _say(self, **message: Any) -> None:
        os.write(self._fd, (json.dumps(message) + "\n").encode())

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        """Before anything of ours is imported, and before the finder of pytest, which takes all of ours."""
        if self._finder is not None:
            sys.meta_path.insert(0, self._finder)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported says nothing about a test."""
        if report.failed:
            self._broken = True
            self._say(broken=f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of pytest's own loop."""
        if self._finder is not None and not self._finder.is_used and not self._broken:
            self._broken = True
            self._say(broken="no test imports it")
        if self._broken:
            return True
        clauses = self._mutation.clauses if self._mutation is not None else ()
        items = self._ordered(session.items)
        self._say(collected=len(items))
        killed = False
        for clause in clauses:
            killed |= self._fork(clause, [item for item in items if clause in named_for(item.name)])
        if not killed:
            self._fork(REST, [item for item in items if not set(clauses) & set(named_for(item.name))])
        return True

    def _ordered(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """Those the table wants first at the front, else as collected."""
        first = self._mutation.tests if self._mutation is not None else ()
        places = {test: place for place, test in enumerate(first)}

        def place(item: pytest.Item) -> int:
            whole, plain = item.nodeid, item.nodeid.partition("[")[0]
            found = [places[key] for key in (whole, plain, whole.partition("::")[0]) if key in places]
            return min(found, default=len(places))

        return sorted(items, key=place)

    def _fork(self, group: str, items: list[pytest.Item]) -> bool:
        """Run `items` until one fails; whether one did."""
        if not items:
            return False
        child = os.fork()
        if not child:
            status = 2
            try:
                status = self._run(group, items)
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0

    def _run(self, group: str, items: list[pytest.Item]) -> int:
        self._group = group
        for item, following in zip(items, [*items[1:], None], strict=True):
            self._say(start=item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._killed:
                return 1
        return 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Tell of the first failure, with the kind of the exception."""
        report: pytest.TestReport = yield
        if report.failed and not self._killed and call.excinfo is not None:
            self._killed = True
            kind = call.excinfo.typename
            text = str(call.excinfo.value).strip().partition("\n")[0][:200]
            self._say(killer=item.nodeid, group=self._group, when=report.when, kind=kind, text=text)
        return report


def run(mutation: Mutation | None, fd: int, scratch: Path) -> None:
    """Run the tests over `mutation` (None: over the sources as they are), tell `fd` in lines of JSON, end the process."""
    assert not [name for name in sys.modules if name.partition(".")[0] == "vdev"], "vdev is there already"
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_NBYTES, MAX_MEMORY_NBYTES))
    output = os.open(scratch / "output", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    # Its examples are the same each time: a mutation is killed or not, whatever the day.
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    globs = mutation.run if mutation is not None else Mutation(id="", old="", new="", what="").run
    files = [str(path.relative_to(ROOT)) for glob in globs for path in sorted(ROOT.glob(glob))]
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:vdev_guests", "--timeout=0", "--basetemp", str(scratch / "tmp")]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that were loaded for all forks
    groups = _Groups(mutation, fd)
    status = pytest.main([*options, *dict.fromkeys(files)], plugins=[groups])
    os.write(fd, (json.dumps({"done": int(status)}) + "\n").encode())
    sys.stdout.flush()
    os._exit(0)
