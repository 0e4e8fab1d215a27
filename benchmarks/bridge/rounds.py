"""Rounds of the monitor's part: every load once a round, directly and through the bridge, the first one in turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bridge import stage
from benchmarks.bridge.loads import LOADS, WAYS, Length, Load
from benchmarks.describe import ROOT, Others, load_average
from benchmarks.results import MonitorSample
from vdev.parts.progress import Say
from vdev.parts.qemu import Qemu, find_qemu

END_S = 120.0  # for the clients to start and to come to their end
Keep = Callable[[str, MonitorSample], None]


def turns(rounds: int) -> Iterator[tuple[int, Load, str]]:
    """Round, load and way. Direct and bridge follow each other, so that a busy minute of the machine hits both."""
    for number in range(rounds):
        for load in LOADS:
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                yield number + 1, load, way


def run(length: Length, say: Say, keep: Keep) -> bool:
    """Measure everything; each sample goes to `keep` at once, with QEMU's version. True if nothing failed.

    Raises PartsError before anything has started.
    """
    found = find_qemu(None, say)
    whole = True
    for number, load, way in turns(length.rounds):
        say(f"monitor, round {number}/{length.rounds}: {load.title}, {way}")
        sample = measure(found, load, way, length.seconds[load.name], number)
        if sample.problem:
            whole = False
            say(f"  FAILED: {sample.problem}")
        else:
            times = (f"{name} {sample.values[f'status-{name}']:.2f} ms" for name in ("p50", "p99"))
            say(f"  query-status: {', '.join(times)}")
        keep(found.version, sample)
    return whole


def measure(found: Qemu, load: Load, way: str, seconds: float, number: int) -> MonitorSample:
    """One sample, with a QEMU of its own; a `problem` instead of values if something failed."""
    before, others = load_average(), Others()
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vdev-", dir="/tmp") as name, ExitStack() as stack:
        directory = Path(name)
        monitors = [directory / f"qemu{each}.sock" for each in range(load.clients if way == "direct" else 1)]
        try:
            stack.enter_context(stage.qemu(found, monitors))
            paths = monitors
            if way != "direct":
                listening, _ = stack.enter_context(stage.bridge(directory, monitors[0]))
                paths = [listening] * load.clients
            answer = _crowd(load, seconds, paths)
        except (stage.StageError, subprocess.TimeoutExpired) as error:
            answer = {"problem": str(error)}
    return MonitorSample(
        round=number, load_name=load.name, way=way, load=before, others=others.cpus(),
        values=answer.get("values", {}), facts=answer.get("facts", {}), problem=answer["problem"],
    )  # fmt: skip


def _crowd(load: Load, seconds: float, paths: list[Path]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bridge.crowd", load.name, str(seconds), *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + END_S, check=False)
    if done.returncode:
        return {"problem": f"the clients failed: {done.stderr.strip()[-500:]}"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
