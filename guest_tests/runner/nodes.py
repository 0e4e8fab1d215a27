"""The guest tests as pytest's own tree: directory, module, class, test; a test once for each machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from guest_tests.runner.collection import PATTERNS, Found
from guest_tests.runner.pool import Pool
from guest_tests.runner.suite import Machine, Suite, Tier, load_suite
from vdev.errors import VdevError

POOL = pytest.StashKey[Pool]()


class GuestDirectory(pytest.Directory):
    """A directory whose tests run in guests, or one below it. Its suite's file is read when it is collected."""

    root: Path  # where guest-suite.yaml is
    suite: Suite

    @classmethod
    def of_suite(cls, parent: pytest.Collector, path: Path, root: Path) -> GuestDirectory:
        """The directory `path` of the suite `root`, where guest-suite.yaml is."""
        directory: GuestDirectory = cls.from_parent(parent, path=path)
        directory.root = root
        return directory

    @classmethod
    def below(cls, parent: GuestDirectory, path: Path) -> GuestDirectory:
        """A directory inside a suite."""
        directory: GuestDirectory = cls.from_parent(parent, path=path)
        directory.root, directory.suite = parent.root, parent.suite
        return directory

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Its directories and modules, by name, but for those that are to be ignored.

        Raises CollectError that names what is wrong in the suite's file.
        """
        if not hasattr(self, "suite"):
            try:
                self.suite = load_suite(self.root, tuple(self.config.getoption("guest_kernel")), tier())
            except VdevError as error:
                raise self.CollectError(str(error)) from None
        for path in sorted(self.path.iterdir()):
            named = self.session.isinitpath(path, with_parents=path.is_dir())
            if not named and self.ihook.pytest_ignore_collect(collection_path=path, config=self.config):
                continue
            if path.is_dir():
                below = self.ihook.pytest_collect_directory(path=path, parent=self)
                yield from () if below is None else (below,)
            else:
                yield from self.ihook.pytest_collect_file(file_path=path, parent=self)


class GuestModule(pytest.File):
    """A module of tests; never imported here."""

    suite: Suite
    skipped_at: int | None = None  # the line where it left itself out

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Its classes and tests. Raises CollectError with the guest's traceback."""
        try:
            collection = self.config.stash[POOL].collection(self.suite.root)
        except VdevError as error:
            raise self.CollectError(str(error)) from None
        name = self.path.relative_to(self.suite.root).as_posix()
        problem = collection.problem(name)
        if problem.get("outcome") == "failed":
            raise self.CollectError(problem["text"])
        if problem.get("outcome") == "skipped":
            self.skipped_at = int(problem["line"])
            pytest.skip(problem["text"], allow_module_level=True)
        if not any(fnmatch(self.path.name, pattern) for pattern in PATTERNS):
            raise self.CollectError(f"{name}: guest tests are in files called {' or '.join(PATTERNS)}")
        yield from children(self, name, collection.modules.get(name, ()), 0)


class GuestClass(pytest.Collector):
    """A class of tests."""

    module: str
    found: list[Found]
    depth: int

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Its tests."""
        yield from children(self, self.module, self.found, self.depth + 1)


class GuestItem(pytest.Item):
    """One test on one machine. The plugin runs it; pytest's own way of running items has no part in it."""

    machine: Machine
    found: Found
    module: str  # path relative to the suite
    order: int  # of the machine among those of the suite

    def runtest(self) -> None:
        """Never called: `pytest_runtest_protocol` of the plugin runs guest tests."""
        raise NotImplementedError

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Where the test is."""
        return self.path, self.found.line, ".".join([*self.found.chain[:-1], self.name])


def children(
    parent: pytest.Collector, module: str, found: Iterable[Found], depth: int
) -> Iterator[GuestItem | GuestClass]:
    """The nodes below `parent`, whose own place in each test's chain is `depth` - 1."""
    classes: dict[str, GuestClass] = {}
    for test in found:
        name = test.chain[depth]
        if len(test.chain) == depth + 1:
            yield from items(parent, module, test)
        elif name in classes:
            classes[name].found.append(test)
        else:
            node: GuestClass = GuestClass.from_parent(parent, name=name)
            node.module, node.found, node.depth = module, [test], depth
            classes[name] = node
    yield from classes.values()


def items(parent: pytest.Collector, module: str, test: Found) -> Iterator[GuestItem]:
    """One test on each machine of its suite."""
    suite = suite_of(parent)
    wanted = parent.config.getoption("guest_machine")
    for order, machine in enumerate(suite.machines):
        if (wanted and machine.id not in wanted) or not runs_on(test, machine.id):
            continue
        name = _with_machine(test.chain[-1], machine.id)
        # Given as text, it is taken apart as that of a report is: --lf compares the two.
        item: GuestItem = GuestItem.from_parent(parent, name=name, nodeid=f"{parent.nodeid}::{name}")
        item.machine, item.found, item.module, item.order = machine, test, module, order
        item.extra_keyword_matches.update((machine.id, *test.keywords))
        item.add_marker(_mark(parent.config, {"name": "guest", "args": (), "kwargs": {}}))
        for mark in test.marks:
            item.add_marker(_mark(parent.config, mark))
        yield item


def runs_on(test: Found, machine: str) -> bool:
    """Whether the test runs on this machine: the marker `machines` names patterns, the nearest one counts."""
    patterns = next((mark["args"] for mark in test.marks if mark["name"] == "machines"), ["*"])
    return any(fnmatch(machine, str(pattern)) for pattern in patterns)


def tier() -> Tier:
    """Which counts this session does."""
    return "soak" if os.environ.get("VDEV_TIER") == "soak" else "normal"


def suite_of(node: pytest.Collector) -> Suite:
    """The suite a node belongs to."""
    module = node.getparent(GuestModule)
    assert module is not None
    return module.suite


def _with_machine(name: str, machine: str) -> str:
    base, bracket, parameters = name.partition("[")
    return f"{base}[{machine}-{parameters}" if bracket else f"{name}[{machine}]"


def _mark(config: pytest.Config, mark: Mapping[str, Any]) -> pytest.MarkDecorator:
    name = str(mark["name"])
    config.addinivalue_line("markers", f"{name}: of a guest test")  # the guest has its own rules about names
    decorator: pytest.MarkDecorator = getattr(pytest.mark, name)
    return decorator.with_args(*mark["args"], **mark["kwargs"])
