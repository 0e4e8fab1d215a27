"""The pytest sessions that can notice a mutation: the conformance suite in process, in both modes, and host tests.

First those tests that are named for the clauses which the mutation breaks, in each session until all clauses have one
that fails; all other tests when none did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conformance.run import command
from tests.conformance.table import MODES, ROOT, SUITE
from tests.mutation.patch import is_quick
from tests.mutation.table import DEVICE_TESTS, Mutation

HOST = "host"
HOST_OPTIONS = (
    "-q", "-s", "-p", "tests.mutation.overlay", "-p", "no:cacheprovider", "-p", "no:vdev_guests", "--timeout=0",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # plugins that were loaded for all forks
    "--assert=plain",  # nobody reads the difference between two pages, which takes minutes to find
)  # fmt: skip
_DEFINED = re.compile(r"^\s*(?:async )?def test_((?:[dgpq]\d+_)+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of pytest: `kind` is a mode of the suite, or host; `named` are the clauses whose tests it runs, in
    groups; none of them: all tests that are named for none of the mutation's."""

    kind: str
    files: tuple[str, ...]
    named: tuple[str, ...]

    def arguments(self, basetemp: Path) -> list[str]:
        """For pytest.main."""
        if self.kind == HOST:
            return [*HOST_OPTIONS, "--basetemp", str(basetemp), *self.files]
        words = command(self.kind, words=["-q", "-s", f"--basetemp={basetemp}"])[3:-1]
        return ["-p", "tests.mutation.overlay", *words, *self.files]

    @property
    def environment(self) -> dict[str, str]:
        """What it needs beside what there is."""
        return {} if self.kind == HOST else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def sessions(mutation: Mutation) -> Iterator[tuple[Session, bool]]:
    """Those for `mutation`, in order; with each, whether it is of the last resort: left out once a test has failed."""
    run = mutation.run
    clauses = mutation.clauses
    host = _files(run)
    suite = _suite_files() if run == DEVICE_TESTS else ()
    for kind, files in (*((mode, suite) for mode in MODES), (HOST, host)):
        named = tuple(file for file in files if set(clauses) & clauses_in(file))
        if named:
            yield Session(kind, named, clauses), False
    first = tuple(dict.fromkeys(test.partition("::")[0] for test in mutation.tests))
    if first:
        yield Session(HOST, first, ()), True
    rest = tuple(file for file in host if file not in first)
    if rest:
        yield Session(HOST, rest, ()), True
    if suite:
        yield from ((Session(mode, suite, ()), True) for mode in MODES)


@dataclass(frozen=True, slots=True)
class Stage:
    """A step on a mutation's way: in a session that waits (None: in one of its own, and all over). `named` are the
    clauses whose tests run there; without them all others, if no test has failed before."""

    session: Session | None
    named: tuple[str, ...] = ()


def stages_of(mutation: Mutation) -> list[Stage]:
    """The quick way first, if it is open."""
    if mutation.file and not is_quick(mutation):
        return [Stage(None)]
    suite = _suite_files() if mutation.run == DEVICE_TESTS else ()
    kinds = [(mode, suite) for mode in MODES if suite] + [(HOST, _files(mutation.run))]
    stages: list[Stage] = []
    for kind, files in kinds:
        named = tuple(one for one in mutation.clauses if any(one in clauses_in(file) for file in files))
        if named:
            stages.append(Stage(Session(kind, files, ()), named))
    stages += [Stage(Session(kind, files, ())) for kind, files in reversed(kinds)]
    return [*stages, Stage(None)] if mutation.file else stages


@cache
def _files(globs: tuple[str, ...]) -> tuple[str, ...]:
    found = [path.relative_to(ROOT).as_posix() for glob in globs for path in sorted(ROOT.glob(glob))]
    return tuple(dict.fromkeys(found))


@cache
def _suite_files() -> tuple[str, ...]:
    return tuple(path.relative_to(ROOT).as_posix() for path in sorted(SUITE.glob("test_*.py")))


@cache
def clauses_in(file: str) -> frozenset[str]:
    """The clauses that tests of `file` are named for."""
    text = (ROOT / file).read_text(encoding="utf-8")
    words = [word for names in _DEFINED.findall(text) for word in names.split("_") if word]
    return frozenset(f"{word[0].upper()}{int(word[1:])}" for word in words)
