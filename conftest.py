"""What tests/ and guest_tests/ share: short scratch paths, an ordinary Ctrl-C, and the record a soak leaves behind.

It is at the root because hooks in a folder's conftest.py are not there when only the other folder is run.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parent
pytest_plugins = ["tests.conformance.session"]
SOAK_FILE = ROOT / "docs" / "soak.json"
_reports: list[pytest.TestReport] = []
if hypothesis.settings.get_current_profile_name() == "default":  # not within `make mutate`, which has its own
    # A machine busy with something else is no failure: no test here judges by the clock.
    slow_is_fine = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("project", deadline=None, suppress_health_check=slow_is_fine)
    hypothesis.settings.load_profile("project")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Short paths and an ordinary Ctrl-C, whatever started us.

    tmp_path is short whatever TMPDIR and the user's name are: a UNIX socket's path has at most 107 bytes. A script's
    background job is started with SIGINT ignored; the processes we start and interrupt would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.basetemp is None:
        directory = tempfile.mkdtemp(prefix="vdev-", dir="/tmp")
        config.option.basetemp = directory
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the report of every soak test carry how much it does: @pytest.mark.soak(count=..., seed=...)."""
    for item in items:
        for marker in item.iter_markers("soak"):
            item.user_properties += marker.kwargs.items()


def pytest_collection_finish() -> None:
    """Thousands of tests live as long as the session: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the verdict of every soak test."""
    if report.when == "call" and any(name == "count" for name, _ in report.user_properties):
        _reports.append(report)


def pytest_sessionfinish() -> None:
    """Under VDEV_TIER=soak, write docs/soak.json: check, count, seed, commit, interpreter, kernel and result.

    Rows of checks that did not run now stay, each with its own commit, unless their file is gone.
    """
    if os.environ.get("VDEV_TIER") != "soak" or not _reports:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = {row["check"]: row for row in json.loads(SOAK_FILE.read_text())} if SOAK_FILE.exists() else {}
    rows |= {
        report.nodeid: {
            "check": report.nodeid,
            **dict(report.user_properties),
            "seconds": round(report.duration, 1),
            "commit": commit,
            "python": platform.python_version(),
            "host_kernel": platform.release(),
            "result": report.outcome,
        }
        for report in _reports
    }
    kept = [row for check, row in rows.items() if (ROOT / check.partition("::")[0]).is_file()]
    SOAK_FILE.write_text(json.dumps(kept, indent=2) + "\n")
