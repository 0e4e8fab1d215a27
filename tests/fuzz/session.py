"""A session of fuzzing: slices on every core, progress, findings, what it cost. An interrupt ends it in order."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz import record
from tests.fuzz.places import FINDINGS, WORK, write_seeds
from tests.fuzz.plan import Slice, plan
from tests.fuzz.process import STOP_SECONDS, Run, State
from tests.fuzz.targets import TARGETS

POLL_SECONDS = 0.2
MOST_FINDINGS = 5  # of one target in a session: the sixth is most likely the first again


@dataclass(slots=True)
class Total:
    """What a target's runs came to."""

    executions: int = 0
    cpu_seconds: float = 0.0
    peak_rss_mb: int = 0
    coverage: int = 0
    corpus: int = 0
    findings: list[Path] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # what a process said that ended badly without a finding

    def add(self, state: State) -> None:
        """One run more."""
        self.executions += state.executions
        self.cpu_seconds += state.cpu_seconds
        self.peak_rss_mb = max(self.peak_rss_mb, state.peak_rss_mb)
        self.coverage = max(self.coverage, state.coverage)
        self.corpus = max(self.corpus, state.corpus)
        self.findings += state.findings


@dataclass(slots=True)
class _Core:
    """One process at a time, and what is still to do."""

    slices: list[Slice]
    run: Run | None = None
    ends_at: float = 0.0


class Session:
    """Fuzz `names` for `seconds` on `jobs` cores. `tell` shows a line; `work` and `findings` are directories."""

    def __init__(self, names: list[str], seconds: int, jobs: int, *, seed: int = 0, recording: bool = False) -> None:
        self.totals = {name: Total() for name in names}
        self.work, self.findings = WORK, FINDINGS
        self.tell_every = 10.0
        self._seed, self._recording, self._stopping = seed, recording, False
        self._cores = [_Core(slices) for slices in plan(names, seconds, jobs)]

    def run(self) -> bool:
        """Do it; whether nothing was found. Ctrl-C and SIGTERM end it early with everything kept."""
        for name in self.totals:
            write_seeds(TARGETS[name], self.work / name / "corpus")
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            told = time.monotonic()
            while self._advance_all():
                time.sleep(POLL_SECONDS)
                if time.monotonic() - told >= self.tell_every:
                    told = time.monotonic()
                    self._tell_progress()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return not any(total.findings or total.broken for total in self.totals.values())

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _advance_all(self) -> bool:
        """Look after every core; whether one of them has something to do."""
        busy = [self._advance(index, core) for index, core in enumerate(self._cores)]
        return any(busy)

    def _advance(self, index: int, core: _Core) -> bool:
        """Look after one core; whether it has something to do."""
        if core.run is None:
            return self._start(index, core)
        state = core.run.poll()
        if state is not None:
            self._ended(core, core.run, state)
            return True
        late = time.monotonic() - core.ends_at
        if self._stopping or late > STOP_SECONDS:
            core.run.stop()
        if late > 2 * STOP_SECONDS:
            core.run.kill()
        return True

    def _start(self, index: int, core: _Core) -> bool:
        while core.slices and not self._stopping:
            now = core.slices.pop(0)
            if len(self.totals[now.target].findings) >= MOST_FINDINGS or self.totals[now.target].broken:
                continue
            place = self.work / now.target
            arguments = [f"-max_total_time={now.seconds}", "-reload=1", str(place / "corpus")]
            if self._seed:
                arguments.insert(0, f"-seed={self._seed}")
            core.run = Run(now.target, arguments, place / f"log-{index}.txt", self.findings / now.target)
            core.ends_at = time.monotonic() + now.seconds
            return True
        return False

    def _ended(self, core: _Core, run: Run, state: State) -> None:
        total = self.totals[run.target]
        total.add(state)
        core.run = None
        for path in state.findings:
            print(f"FOUND {run.target}: {path}\n  replay: python -m tests.fuzz replay {run.target} {path}", flush=True)
        if state.status and not state.findings and not self._stopping:
            total.broken.append(run.log_tail()[-2000:])
            print(f"FAILED {run.target}: status {state.status}\n{total.broken[-1]}", flush=True)
        if self._recording:
            record.add(run.target, state)
        left = round(core.ends_at - time.monotonic())
        if state.findings and left > 2:
            core.slices.insert(0, Slice(run.target, left))

    def _tell_progress(self) -> None:
        for core in self._cores:
            if core.run is None:
                continue
            state, total = core.run.state(), self.totals[core.run.target]
            print(
                f"{core.run.target:16} {total.executions + state.executions:>10} executions, {state.per_second}/s,"
                f" coverage {state.coverage}, corpus {state.corpus}, findings {len(total.findings)}",
                flush=True,
            )

    def report(self) -> str:
        """A table: what each target came to."""
        head = f"{'target':16} {'executions':>12} {'CPU s':>9} {'per s':>7} {'RSS MB':>7} {'cov':>6} {'corpus':>7}"
        rows = [head + " findings"]
        for name, total in self.totals.items():
            speed = total.executions / total.cpu_seconds if total.cpu_seconds else 0
            rows.append(
                f"{name:16} {total.executions:>12} {total.cpu_seconds:>9.1f} {speed:>7.0f} {total.peak_rss_mb:>7}"
                f" {total.coverage:>6} {total.corpus:>7} {len(total.findings)}"
            )
        return "\n".join(rows)
