"""Measures what the bridge adds: 18 ordinary clients through it beside one that never reads and one that sends no JSON,
and at the same time as many single commands over a direct connection to another monitor of the same QEMU.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.monitor.crowd import Tally, deaf, ordinary
from benchmarks.results import MonitorRow
from vdev.errors import PartsError
from vdev.parts.progress import Say
from vdev.parts.qemu import find_qemu

CLIENTS = 18  # besides the two that behave badly
PAUSE_S = 0.2  # of each between its commands
WARM_UP_S = 2.0
SECONDS, QUICK_SECONDS = 30.0, 8.0
START_S = 30.0
_CONFIG = "units:\n  - name: iommu0\n"


def measure(say: Say, *, quick: bool) -> list[MonitorRow]:
    """The rows: each a way to QEMU, with the quantiles of a command's time in milliseconds."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with tempfile.TemporaryDirectory() as scratch, _monitors(Path(scratch)) as (direct, bridged):
        say(f"monitor: a direct connection and the bridge, nobody else, {seconds / 2:.0f} s")
        alone = asyncio.run(_run(direct, bridged, 1, seconds / 2))
        say(f"monitor: {CLIENTS} clients, one that never reads, one that sends no JSON, {seconds:.0f} s")
        bad = subprocess.Popen([sys.executable, "-m", "benchmarks.monitor", bridged, str(seconds + START_S)])
        try:
            with closing(deaf(bridged)):
                crowd = asyncio.run(_run(direct, bridged, CLIENTS, seconds))
        finally:
            bad.kill()
            bad.wait()
    return [*_rows("alone", alone), *_rows("in the crowd", crowd)]


async def _run(direct: str, bridged: str, clients: int, seconds: float) -> tuple[Tally, Tally]:
    since = time.perf_counter() + WARM_UP_S
    end = since + seconds

    def goes_on() -> bool:
        return time.perf_counter() < end

    plain, ours = Tally(since), Tally(since)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ordinary(direct, goes_on, PAUSE_S / clients, plain))
        for number in range(clients):
            await asyncio.sleep(PAUSE_S / clients * 2 * (number > 0))  # spread over the two pauses each makes
            tasks.create_task(ordinary(bridged, goes_on, PAUSE_S, ours))
    return plain, ours


def _rows(situation: str, tallies: tuple[Tally, Tally]) -> list[MonitorRow]:
    return [
        MonitorRow(f"{way}, {situation}", len(tally.seconds), _quantile(tally, 0.5), _quantile(tally, 0.99))
        for way, tally in zip(("direct", "bridge"), tallies, strict=True)
    ]


def _quantile(tally: Tally, share: float) -> float:
    """In milliseconds."""
    ordered = sorted(tally.seconds)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3


@contextmanager
def _monitors(scratch: Path) -> Iterator[tuple[str, str]]:
    """A QEMU without a guest, a vdev, and `qmp-bridge attach`: the paths of the direct monitor and of the bridge's."""
    qemu = find_qemu(None, lambda line: None)
    words = [*qemu.argv_prefix, "-machine", "q35", "-m", "64", "-display", "none", "-nodefaults", "-S"]
    for name in ("direct", "behind"):
        words += ["-chardev", f"socket,id={name},path={scratch / name},server=on,wait=off"]
        words += ["-mon", f"chardev={name},mode=control"]
    (scratch / "config.yaml").write_text(_CONFIG)
    serve = [sys.executable, "-m", "vdev", "serve", str(scratch / "config.yaml"), "--runtime-dir", str(scratch / "run")]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(subprocess.Popen(serve, stdout=subprocess.PIPE))
        assert processes[0].stdout is not None
        control = json.loads(processes[0].stdout.readline())["control"]
        processes.append(subprocess.Popen(words, env={**os.environ, **qemu.env}, stderr=subprocess.DEVNULL))
        _wait_for(scratch / "direct", scratch / "behind")
        bridged = scratch / "monitor.sock"
        attach = [sys.executable, "-m", "qmp_bridge", "attach", "--qmp", str(scratch / "behind"), "--vdev", control]
        attach += ["--listen", str(bridged)]
        processes.append(subprocess.Popen(attach, stderr=subprocess.DEVNULL))
        _wait_for(bridged)
        yield str(scratch / "direct"), str(bridged)
    finally:
        for process in reversed(processes):
            process.kill()
            process.communicate()


def _wait_for(*paths: Path) -> None:
    """Raises PartsError when one of them is not there in time."""
    deadline = time.monotonic() + START_S
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            raise PartsError("monitor", f"nobody listens on {paths[-1].name} after {START_S:.0f} s")
        time.sleep(0.02)
