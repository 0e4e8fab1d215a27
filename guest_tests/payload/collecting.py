"""Which tests a directory has: run on the host by the guest's Python, so that the answer is what the guest would say.

What is compiled on the way (assertions rewritten) is kept, and sent into the guest with the sources: there
it would take seconds. Standard input and output carry one JSON object each.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from . import session

Message = dict[str, Any]


class Collector:
    """The pytest plugin that writes down what was found."""

    def __init__(self) -> None:
        self.items: list[Message] = []
        self.problems: dict[str, Message] = {}  # by node id of the module

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Forget a module of the same name elsewhere: in the guest each has a process of its own."""
        if isinstance(collector, pytest.Module):
            sys.modules.pop(collector.path.stem, None)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember modules that could not be collected or want to be left out; a class's problem is its module's."""
        where = report.nodeid.partition("::")[0]
        if report.outcome == "failed":
            self.problems[where] = {"outcome": "failed", "text": report.longreprtext, "line": 0}
        elif report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            _, at, reason = report.longrepr
            self.problems[where] = {"outcome": "skipped", "text": reason.removeprefix("Skipped: "), "line": at}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember the tests."""
        self.items = [described(item) for item in session.items]


def described(item: pytest.Item) -> Message:
    """A test as plain data: `chain` are the names below its module, `line` counts from 0."""
    chain = [node.name for node in item.listchain()]
    module = item.getparent(pytest.Module)
    above = len(module.listchain()) if module is not None else 0
    path, line, _ = item.reportinfo()
    return {
        "id": item.nodeid,
        "module": module.nodeid if module is not None else item.nodeid,
        "chain": chain[above:],
        "line": line if os.fspath(path) == os.fspath(item.path) else None,
        "marks": [described_mark(mark) for mark in item.iter_markers()],
        "keywords": sorted(item.listextrakeywords() if hasattr(item, "listextrakeywords") else ()),
    }


def described_mark(mark: pytest.Mark) -> Message:
    """A marker; arguments that are no plain data are described in words."""
    return {"name": mark.name, "args": plain(mark.args), "kwargs": plain(mark.kwargs)}


def plain(value: Any) -> Any:
    """`value` through JSON."""
    return json.loads(json.dumps(value, default=repr))


def main() -> int:
    """Collect the directory that standard input names; 0 unless pytest itself failed."""
    request = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(2, 1)  # what modules print while they are imported is no part of the answer
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir(request["root"])
    sys.pycache_prefix = request["pycache"]  # from here on: pytest itself is compiled already
    collector = Collector()
    arguments = session.arguments(request["root"], ["--collect-only", *request["files"]], request["ini"])
    status = pytest.main(arguments, plugins=[collector])
    found = {"status": int(status), "items": collector.items, "problems": collector.problems}
    with os.fdopen(answer, "w") as file:
        json.dump(found, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
