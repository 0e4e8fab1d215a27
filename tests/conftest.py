"""What all tests share: the tier, and the record a soak leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOAK_FILE = ROOT / "docs" / "soak.json"
_reports: list[pytest.TestReport] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the verdict of every test that recorded how much it did (record_property("count", n))."""
    if report.when == "call" and any(name == "count" for name, _ in report.user_properties):
        _reports.append(report)


def pytest_sessionfinish() -> None:
    """Under VDEV_TIER=soak, write docs/soak.json: check, count, seed, commit and result."""
    if os.environ.get("VDEV_TIER") != "soak" or not _reports:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = [
        {
            "check": report.nodeid,
            **dict(report.user_properties),
            "seconds": round(report.duration, 1),
            "commit": commit,
            "result": report.outcome,
        }
        for report in _reports
    ]
    SOAK_FILE.write_text(json.dumps(rows, indent=2) + "\n")
