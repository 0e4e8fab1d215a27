"""`pytest DIRECTORY`, where DIRECTORY has a guest-suite.yaml: its tests run in guests and are reported as any others.

Installed with the project. It is idle where no directory has that file.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from types import FrameType

import pytest

from guest_tests.runner.agent import GuestRefused, Order
from guest_tests.runner.evidence import Sections
from guest_tests.runner.guest import GuestGone
from guest_tests.runner.handle import faults as faults  # fixtures of ours
from guest_tests.runner.handle import guest_on as guest_on
from guest_tests.runner.nodes import POOL, GuestDirectory, GuestItem, GuestModule, suite_of
from guest_tests.runner.pool import MAX_LIVE, NeverCameUp, Pool, PoolOptions
from guest_tests.runner.reports import failed, lost_afterwards, restored, warn
from guest_tests.runner.suite import FILE, Machine

NEXT = pytest.StashKey[dict[tuple[Path, str], Machine]]()  # by machine, the one whose tests follow at once
LAST = pytest.StashKey[dict[tuple[Path, str], GuestItem]]()  # the test that ran last on each machine


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the guest runner."""
    group = parser.getgroup("guest", "tests that run in guests")
    group.addoption(
        "--guest-kernel", action="append", default=[], metavar="NAME", help="run on this kernel; may be repeated"
    )
    group.addoption(
        "--guest-machine", action="append", default=[], metavar="ID", help="run on this machine of the suite only"
    )
    group.addoption("--guest-cold", action="store_true", help="boot every guest instead of restoring a saved one")
    group.addoption(
        "--guest-live",
        type=int,
        choices=range(1, MAX_LIVE + 1),
        default=MAX_LIVE,
        help="how many guests may live at once",
    )
    group.addoption("--guest-logs", metavar="DIR", type=Path, help="where logs of lost guests go (default: ./logs)")


def pytest_configure(config: pytest.Config) -> None:
    """Make the pool; it does nothing until somebody collects guest tests."""
    pool = PoolOptions(
        logs=config.getoption("guest_logs") or Path("logs"),
        cold=config.getoption("guest_cold"),
        pytest_options=tuple(_options_for_guests(config)),
        say=lambda text: _say(config, text),
        live=config.getoption("guest_live"),
    )
    config.stash[POOL] = Pool(pool)
    config.stash[LAST] = {}
    config.stash[NEXT] = {}


def _options_for_guests(config: pytest.Config) -> Generator[str, None, None]:
    """What of this command line is good for the guest's pytest, too."""
    if config.getoption("tbstyle") != "auto":
        yield f"--tb={config.getoption('tbstyle')}"
    if config.getoption("showlocals"):
        yield "--showlocals"
    if config.get_verbosity() > 1:
        yield from ("-o", f"verbosity_assertions={config.get_verbosity()}")  # differences in full
    for rule in config.getoption("pythonwarnings") or ():
        yield from ("-W", rule)


def _end_in_order_on_sigterm(config: pytest.Config) -> None:
    """A SIGTERM ends the session as Ctrl-C does: no guest, socket or directory is left."""

    def end(number: int, _: FrameType | None) -> None:
        pytest.exit("ended by SIGTERM", 128 + number)

    def ordinary() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
        config.add_cleanup(ordinary)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what still runs."""
    if POOL in config.stash:
        config.stash[POOL].close()


def _say(config: pytest.Config, text: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and config.get_verbosity() >= 0:
        reporter.ensure_newline()
        reporter.write_line(f"guest: {text}")


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A directory with our file, and those below it, are ours: also where pytest was started below."""
    if isinstance(parent, GuestDirectory):
        return GuestDirectory.below(parent, path)
    root = next((above for above in (path, *path.parents) if (above / FILE).is_file()), None)
    return GuestDirectory.of_suite(parent, path, root) if root is not None else None


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Modules below such a directory are not imported here."""
    if not isinstance(parent, GuestDirectory):
        return None
    module: GuestModule = GuestModule.from_parent(parent, path=module_path)
    module.suite = parent.suite
    return module


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that leaves itself out does so at a line of its own."""
    report = yield
    if isinstance(collector, GuestModule) and report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(collector.path), collector.skipped_at or 0, report.longrepr[2])
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Within a suite all tests of one machine come before those of the next: no guest is started twice."""
    places: dict[Path | str, int] = {}
    for item in items:
        places.setdefault(_place_of(item), len(places))
    if any(isinstance(item, GuestItem) for item in items):
        _end_in_order_on_sigterm(config)
        items.sort(key=lambda item: (places[_place_of(item)], item.order if isinstance(item, GuestItem) else 0))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Know which machine follows which: it is started while the one before it works."""
    for item, following in pairwise(session.items):
        if (
            isinstance(item, GuestItem)
            and isinstance(following, GuestItem)
            and item.machine.key != following.machine.key
        ):
            session.config.stash[NEXT][item.machine.key] = following.machine


def _place_of(item: pytest.Item) -> Path | str:
    return item.machine.suite if isinstance(item, GuestItem) else item.nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    """A guest test's limit is watched by us: pytest-timeout would count its guest's boot, and end the session."""
    return True if isinstance(item, GuestItem) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a guest test, and hand on its reports."""
    if not isinstance(item, GuestItem):
        return None
    _tell_of_the_lost(item.config)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    if nextitem is not None and not isinstance(nextitem, GuestItem):
        item.config.stash[POOL].retire()  # tests on the host may want machines of their own
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What is left of the last tests: fixtures to tear down, a guest that was lost since."""
    if session.exitstatus == pytest.ExitCode.INTERRUPTED or POOL not in session.config.stash:
        return
    session.config.stash[POOL].settle()
    if _tell_of_the_lost(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _tell_of_the_lost(config: pytest.Config) -> int:
    """Report each guest that was lost between two tests with the one that ran there last; how many there were."""
    lost = config.stash[POOL].lost()
    for key, gone in lost:
        item = config.stash[LAST][key]
        item.ihook.pytest_runtest_logreport(report=lost_afterwards(item, gone.reason, _with_logs(gone)))
    return len(lost)


def run(item: GuestItem, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run one test in its guest; what becomes of the guest is part of the test's report."""
    pool = item.config.stash[POOL]
    started = time.time()
    order = Order(item.module, item.found.id, _next_of(item, nextitem), limit_of(item))
    try:
        guest = pool.guest(item.machine)
        item.config.stash[LAST][item.machine.key] = item
        if (following := item.config.stash[NEXT].get(item.machine.key)) is not None:
            pool.prepare(following)
        outcome, sections = pool.do(guest.run(order, item.machine.suite))
    except NeverCameUp as error:
        return failed(item, "setup", started, str(error), _with_logs(error))
    except GuestGone as gone:
        pool.forget(item.machine)
        return failed(item, "call", started, gone.reason, _with_logs(gone))
    except GuestRefused as error:
        return failed(item, "call", started, str(error), error.sections)
    for warning in outcome.warnings:
        warn(item, warning)
    try:
        return [restored(item, data, sections) for data in outcome.reports]
    except ValueError as error:
        return failed(item, "call", started, f"the guest's report makes no sense: {error}", sections)


def _with_logs(error: GuestGone | NeverCameUp) -> Sections:
    return [*error.sections, *([("logs", str(error.logs.absolute()))] if error.logs else [])]


def _next_of(item: GuestItem, nextitem: pytest.Item | None) -> str | None:
    """The test whose fixtures are kept: the next one, if it runs in the same module on the same machine."""
    if isinstance(nextitem, GuestItem) and (nextitem.machine, nextitem.path) == (item.machine, item.path):
        return nextitem.found.id
    return None


def limit_of(item: GuestItem) -> float:
    """Seconds the test may take: its own marker `timeout`, else its suite's."""
    for mark in item.iter_markers("timeout"):
        value = mark.args[0] if mark.args else mark.kwargs.get("timeout")
        if isinstance(value, int | float) and value > 0:
            return float(value)
    assert item.parent is not None
    return suite_of(item.parent).timeout
