"""docs/fuzz.json: how much every target has been fuzzed, and what came of it. Runs add up."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from typing import Any

from tests.fuzz.places import RECORD, ROOT
from tests.fuzz.process import State


def add(target: str, state: State) -> None:
    """Add one run; written at once, so that what ends a long session takes nothing along."""
    rows: dict[str, dict[str, Any]] = {}
    if RECORD.exists():
        rows = {row["target"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))}
    old = rows.get(target, {})
    rows[target] = {
        "target": target,
        "executions": old.get("executions", 0) + state.executions,
        "cpu_seconds": round(old.get("cpu_seconds", 0) + state.cpu_seconds, 1),
        "peak_rss_mb": max(old.get("peak_rss_mb", 0), state.peak_rss_mb),
        "findings": old.get("findings", 0) + len(state.findings),
        "coverage": state.coverage or old.get("coverage", 0),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
    }
    fresh = RECORD.with_name(RECORD.name + ".new")
    fresh.write_text(json.dumps([rows[name] for name in sorted(rows)], indent=2) + "\n", encoding="utf-8")
    fresh.replace(RECORD)


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
