"""One run of one target's process: what it says, what it costs, what it finds. Nothing of it is lost when it dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.places import ROOT, command, environment

PULSE = re.compile(r"^#(\d+)\t.*cov: (\d+) ft: (\d+) corp: (\d+)/\S+.*?exec/s: (\d+)", re.MULTILINE)
EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
TAIL_NBYTES = 20_000
FINDING_PREFIXES = ("crash-", "timeout-", "oom-", "leak-")  # a slow-unit is slow, not wrong
STOP_SECONDS = 20
INTERRUPTED = (72, -signal.SIGTERM)  # libFuzzer's own status, and that of a process that mutates without it


@dataclass(slots=True)
class State:
    """What a run has come to."""

    executions: int = 0
    coverage: int = 0
    corpus: int = 0
    per_second: int = 0
    cpu_seconds: float = 0.0
    peak_rss_mb: int = 0
    status: int = 0
    findings: list[Path] = field(default_factory=list)


class Run:
    """A started process; `poll` until it gives a State that is final."""

    def __init__(self, target: str, arguments: Sequence[str], log: Path, findings: Path) -> None:
        """Start it; it writes inputs that break something into the directory `findings`."""
        self.target = target
        self._log = log
        self._findings = findings
        self._asked_to_end = False
        # Its own, so that no other run's findings are taken for this one's.
        self._left = log.with_suffix(".left")
        self._left.mkdir(parents=True, exist_ok=True)
        line = command(target, f"-artifact_prefix={self._left}/", *arguments)
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment()
            )

    def state(self) -> State:
        """As far as its log tells."""
        state, text = State(), self.log_tail()
        pulses = PULSE.findall(text)
        if pulses:
            state.executions, state.coverage, _, state.corpus, state.per_second = map(int, pulses[-1])
        executed = EXECUTED.search(text)
        if executed:
            state.executions = int(executed[1])
        return state

    def poll(self) -> State | None:
        """The final state once it has ended, and costs nothing more; None before."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        state = self.state()
        state.status = self._process.returncode
        if self._asked_to_end and state.status in INTERRUPTED:
            state.status = 0  # on a busy machine a run may take longer to begin than it was given
        state.cpu_seconds = usage.ru_utime + usage.ru_stime
        state.peak_rss_mb = usage.ru_maxrss >> 10
        state.findings = self._keep_findings()
        return state

    def stop(self) -> None:
        """Ask it to end, as Ctrl-C does; `poll` tells when it has."""
        if self._process.returncode is None:
            self._asked_to_end = True
            self._process.terminate()

    def kill(self) -> None:
        """For one that did not end."""
        if self._process.returncode is None:
            self._process.kill()

    def log_tail(self) -> str:
        """The end of what it said."""
        with self._log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - TAIL_NBYTES, 0))
            return file.read().decode(errors="replace")

    def _keep_findings(self) -> list[Path]:
        """Move the inputs it left to where findings are, what it said beside each."""
        found = []
        for path in sorted(self._left.iterdir()):
            if path.name.startswith(FINDING_PREFIXES):
                self._findings.mkdir(parents=True, exist_ok=True)
                found.append(Path(shutil.move(path, self._findings / path.name)))
                found[-1].with_name(path.name + ".txt").write_text(self.log_tail(), encoding="utf-8")
        return found
