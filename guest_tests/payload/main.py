"""The guest's agent: says hello, runs the checks in order, reports each, and says that it is done.

Every message is one JSON line. Silence is failure: whatever happens here, the host sees `done` with its verdict, or the
port closing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import checks_hwrng
from .accel import DEVICE_ID, VENDOR_ID, AcceleratorTimeout
from .checks import Check, chosen
from .guest import Channel, KernelLog, find_pci
from .lab import CheckFailed, Lab

BYE_TIMEOUT_S = 10.0  # how long the host may look at us after `done` before we go


def run_check(check: Check, lab: Lab) -> dict[str, Any]:
    """Run one check and return its record."""
    started = time.monotonic_ns()
    data: dict[str, Any] = {}
    try:
        finding = check.run(lab)
    except (CheckFailed, AcceleratorTimeout, OSError) as error:
        ok, detail = False, f"{error}" if isinstance(error, CheckFailed) else f"{type(error).__name__}: {error}"
        lab.recover()
    else:
        ok, detail, data = True, finding.detail, finding.data
    ms = (time.monotonic_ns() - started) / 1e6
    return {"check": check.name, "ok": ok, "title": check.title, "detail": detail, "ms": round(ms, 3), "data": data}


def run_all(channel: Channel, lab: Lab, checks: Sequence[Check]) -> bool:
    """Run `checks` and report each; `done` is sent even when one of them breaks in a way nobody foresaw."""
    results: list[bool] = []
    finished = False
    try:
        for check in checks:
            channel.send({"starting": check.name, "title": check.title})
            record = run_check(check, lab)
            results.append(record["ok"])
            channel.send(record)
        finished = True
    finally:
        ok = finished and bool(results) and all(results)  # nothing checked is nothing proven
        channel.send({"done": True, "ok": ok, "checks": len(results), "passed": sum(results)})
    return ok


def main() -> int:
    """Run the checks named on the command line, or all; exit status 0 if every one passed."""
    naccelerators = max(1, len(find_pci(VENDOR_ID, DEVICE_ID)))  # without any, the checks say so
    nrngs = len(find_pci(checks_hwrng.VENDOR_ID, checks_hwrng.DEVICE_ID))
    checks = chosen(sys.argv[1:], naccelerators, nrngs)
    channel = Channel()
    log = KernelLog()
    channel.send(
        {
            "hello": 1,
            "kernel": os.uname().release,
            "cpus": os.cpu_count(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "checks": [check.name for check in checks],
            "uptime_s": time.monotonic(),
        }
    )
    ok = run_all(channel, Lab(log), checks)
    log.refresh()
    channel.receive(BYE_TIMEOUT_S)
    return 0 if ok else 1
