"""What this machine and this tree are: read from /proc and git, so that results can say where they come from."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.results import Machine

ROOT = Path(__file__).parent.parent


def machine() -> Machine:
    """The host."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")]
    return Machine(
        cpu=models[0] if models else platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_mib=(memory[0] if memory else 0) >> 10,
        kernel=platform.release(),
        python=platform.python_version(),
    )


def commit() -> tuple[str, bool]:
    """The commit of the tree, and whether there are changes beyond it; "" outside of git."""
    found = _git("rev-parse", "--short=12", "HEAD")
    return found, bool(found and _git("status", "--porcelain", "--untracked-files=no"))


def load_average() -> float:
    """Over one minute."""
    return round(os.getloadavg()[0], 2)


class Others:
    """How many CPUs were busy with what is not ours since this was made: other processes, the host of our host."""

    def __init__(self) -> None:
        self._started = time.monotonic(), self._busy_s() - self._own_s()

    def cpus(self) -> float:
        """On average. Children of ours count as ours once they are waited for."""
        started, foreign_s = self._started
        elapsed = max(time.monotonic() - started, 1e-3)
        return round(max(self._busy_s() - self._own_s() - foreign_s, 0.0) / elapsed, 2)

    @staticmethod
    def _busy_s() -> float:
        """CPU seconds of the whole machine, from proc(5): user, nice, system; irq, softirq, steal."""
        words = [int(word) for word in (_lines("/proc/stat") or ["cpu"])[0].split()[1:]]
        return (sum(words[:3]) + sum(words[5:8])) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own_s() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def now() -> str:
    """The date, to the minute, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
