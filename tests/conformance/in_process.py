"""pytest plugin: the conformance suite on a machine in this process, in place of a guest's.

`python -m tests.conformance run` starts such a session. The fixtures are the guest's; what they stand on is replaced:
the functions, the memory, the host, and time. Nothing ever has to be waited for: on return from a register write all
that follows from it has happened. So a time-out is over at once, by a clock that jumps, and tests that wait in vain,
as mutations of the device make them do, take no time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guest_tests.payload.direct import wait
from guest_tests.payload.direct.memory import DmaPool
from guest_tests.payload.host import HOST, MACHINE, Host
from guest_tests.runner.suite import Machine, load_suite
from tests.conformance.host import InProcessHost
from tests.conformance.table import MODES, Axis, clauses_of
from tests.support.direct import SimFunction, SimMachine

SIM = pytest.StashKey[InProcessHost]()
ACCELERATOR = "accelerator"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `python -m tests.conformance run`."""
    group = parser.getgroup("conformance", "the conformance suite in process")
    group.addoption("--conformance-mode", choices=MODES, default="compat")
    group.addoption("--conformance-clauses", default="", metavar="D16,G3", help="only tests named for one of these")
    group.addoption("--conformance-outcomes", type=Path, metavar="FILE", help="write outcomes there")


def pytest_configure(config: pytest.Config) -> None:
    """Build the machine of the suite's own configuration, and put it where the guest's fixtures look."""
    config.addinivalue_line("markers", "machines(*patterns): on which machines of its suite the test runs")
    suite, mode = config.rootpath, config.getoption("conformance_mode")
    machine = next((found for found in load_suite(suite).machines if found.id.startswith(f"{mode}-")), None)
    if machine is None:
        raise pytest.UsageError(f"{suite} has no machine of mode {mode}")
    units = tuple(msgspec.structs.replace(unit, attach="vfio-user") for unit in machine.config.units)
    sim = InProcessHost(msgspec.structs.replace(machine.config, units=units), suite)
    config.add_cleanup(sim.close)
    config.stash[SIM] = sim
    config.stash[HOST] = Host(sim)  # type: ignore[arg-type] # as much of a channel as it uses
    config.stash[MACHINE] = _facts(machine, Axis("in-process", mode))
    config.pluginmanager.register(Outcomes(config.getoption("conformance_outcomes")))
    _let_time_jump()


def _facts(machine: Machine, axis: Axis) -> dict[str, Any]:
    """What the fixture `machine` tells, with this attachment in place of the other."""
    facts = machine.facts()
    units = [{**unit, "attach": axis.attach} for unit in facts["units"]]
    return {**facts, "name": axis.id, "attach": axis.attach, "units": units}


class JumpingClock:
    """In place of the module `time`, where tests wait."""

    def __init__(self) -> None:
        self._ahead_ns = 0

    def sleep(self, seconds: float) -> None:
        self._ahead_ns += round(seconds * 1e9)

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + self._ahead_ns

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """wait.until: what has not happened will not."""
        if condition():
            return True
        self.sleep(timeout_s)
        return condition()


def _let_time_jump() -> None:
    clock = JumpingClock()
    wait.until = clock.until
    for name, module in list(sys.modules.items()):
        if name.startswith("guest_tests.payload.") and getattr(module, "time", None) is time:
            module.time = clock  # type: ignore[attr-defined]


class Outcomes:
    """Writes down what became of each test, as one JSON object: `tests` and `problems` (of collection)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._tests: dict[str, dict[str, Any]] = {}
        self._problems: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._problems.append(f"{report.nodeid}: {report.longreprtext}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._tests.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed", "text": ""})
        if report.outcome != "passed" and test["outcome"] != "failed":
            test.update(outcome=report.outcome, text=_text_of(report))

    def pytest_sessionfinish(self) -> None:
        if self._path is not None:
            self._path.write_text(json.dumps({"tests": list(self._tests.values()), "problems": self._problems}))


def _text_of(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    return "\n".join([report.longreprtext, *(f"--- {title} ---\n{text}" for title, text in report.sections)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not for this machine, and what is named for other clauses than those asked for."""
    axis = Axis("in-process", config.getoption("conformance_mode"))
    wanted = {word.strip().upper() for word in config.getoption("conformance_clauses").split(",") if word.strip()}
    kept = [item for item in items if _belongs(item, axis) and (not wanted or wanted & _clauses_of(item))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _belongs(item: pytest.Item, axis: Axis) -> bool:
    marker = item.get_closest_marker("machines")
    return marker is None or any(fnmatch(axis.id, str(pattern)) for pattern in marker.args)


def _clauses_of(item: pytest.Item) -> set[str]:
    return set(clauses_of(item.name))


@pytest.fixture(scope="session")
def sim(pytestconfig: pytest.Config) -> SimMachine:
    """The machine."""
    return pytestconfig.stash[SIM].machine


@pytest.fixture(scope="session")
def dma_pool(sim: SimMachine) -> DmaPool:
    """Its memory."""
    return sim.pool


@pytest.fixture(scope="session")
def unit_functions(sim: SimMachine) -> list[SimFunction]:
    """All units by rising BDF."""
    return _by_bdf([sim.functions[name] for name in sim.vdev.units if name in sim.functions])


@pytest.fixture(scope="session")
def accel_functions(sim: SimMachine, pytestconfig: pytest.Config) -> list[SimFunction]:
    """All accelerators by rising BDF."""
    endpoints = pytestconfig.stash[MACHINE]["endpoints"]
    return _by_bdf([sim.functions[one["name"]] for one in endpoints if one["model"] == ACCELERATOR])


def _by_bdf(functions: list[SimFunction]) -> list[SimFunction]:
    return sorted(functions, key=lambda function: function.bdf)
