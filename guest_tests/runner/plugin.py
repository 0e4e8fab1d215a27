"""`pytest DIRECTORY`, where DIRECTORY has a guest-suite.yaml: its tests run in guests and are reported as any others.

Installed with the project. It is idle where no directory has that file.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from guest_tests.runner.agent import GuestRefused, Order
from guest_tests.runner.evidence import Sections
from guest_tests.runner.guest import GuestGone
from guest_tests.runner.nodes import POOL, GuestDirectory, GuestItem, GuestModule, suite_of
from guest_tests.runner.pool import NeverCameUp, Pool, PoolOptions
from guest_tests.runner.suite import FILE
from vdev.errors import VdevError


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
    group.addoption("--guest-logs", metavar="DIR", type=Path, help="where logs of lost guests go (default: ./logs)")


def pytest_configure(config: pytest.Config) -> None:
    """Make the pool; it does nothing until somebody collects guest tests."""
    options = [f"--tb={config.getoption('tbstyle')}"] if config.getoption("tbstyle") != "auto" else []
    options += ["--showlocals"] if config.getoption("showlocals") else []
    pool = PoolOptions(
        logs=config.getoption("guest_logs") or Path("logs"),
        cold=config.getoption("guest_cold"),
        pytest_options=tuple(options),
        say=lambda text: _say(config, text),
    )
    config.stash[POOL] = Pool(pool)


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
    """A directory with our file, and those below it, are ours."""
    if isinstance(parent, GuestDirectory):
        return GuestDirectory.below(parent, path)
    return GuestDirectory.of_suite(parent, path) if (path / FILE).is_file() else None


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Modules below such a directory are not imported here."""
    if not isinstance(parent, GuestDirectory):
        return None
    module: GuestModule = GuestModule.from_parent(parent, path=module_path)
    module.suite = parent.suite
    return module


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within a suite all tests of one machine come before those of the next: no guest is started twice."""
    places: dict[Path | str, int] = {}
    for item in items:
        places.setdefault(_place_of(item), len(places))
    if any(isinstance(item, GuestItem) for item in items):
        items.sort(key=lambda item: (places[_place_of(item)], item.order if isinstance(item, GuestItem) else 0))


def _place_of(item: pytest.Item) -> Path | str:
    return item.machine.suite if isinstance(item, GuestItem) else item.nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    """pytest-timeout leaves guest tests alone: its limit would end the session, and take in the boot of the guest."""
    return True if isinstance(item, GuestItem) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a guest test, and hand on its reports."""
    if not isinstance(item, GuestItem):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def run(item: GuestItem, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run one test in its guest; what becomes of the guest is part of the test's report."""
    pool = item.config.stash[POOL]
    started = time.time()
    order = Order(item.module, item.found.id, _next_of(item, nextitem), limit_of(item))
    try:
        guest = pool.guest(item.machine)
        outcome, sections = pool.do(guest.run(order, item.machine.suite))
    except GuestGone as gone:
        where = [("logs", str(gone.logs.absolute()))] if gone.logs else []
        return [_failed(item, "call", started, gone.reason, [*gone.sections, *where])]
    except GuestRefused as error:
        return [_failed(item, "call", started, str(error), [])]
    except (NeverCameUp, VdevError) as error:
        return [_failed(item, "setup", started, str(error), [])]
    return [_restored(item, data, sections) for data in outcome.reports]


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


def _restored(item: GuestItem, data: dict[str, object], sections: Sections) -> pytest.TestReport:
    for key in ("longrepr", "location"):  # JSON has no tuples, and pytest looks for them: a skip's reason is one
        if isinstance(value := data.get(key), list):
            data[key] = tuple(value)
    report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    report.sections = [(title, text) for title, text in report.sections]
    report.nodeid, report.location = item.nodeid, item.location
    report.keywords = dict.fromkeys(item.keywords, 1)
    report.user_properties = [*report.user_properties, ("machine", item.machine.id), *item.user_properties]
    if report.outcome == "failed":
        report.sections += sections
    return report


def _failed(item: GuestItem, when: str, started: float, text: str, sections: Sections) -> pytest.TestReport:
    stopped = time.time()
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=text,
        when=when,  # type: ignore[arg-type] # "setup" or "call"
        sections=sections,
        duration=stopped - started,
        start=started,
        stop=stopped,
        user_properties=[("machine", item.machine.id), *item.user_properties],
    )
