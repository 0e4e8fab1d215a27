"""What a run of the benchmarks leaves behind: typed, one JSON file. Reading and writing, no statistics.

Every sample is kept, so that anything can be worked out again later; medians are in the file, too, for other programs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vdev.errors import VdevError

SCHEMA = 1


class ResultsError(VdevError):
    """A file that is no result of ours, or of another schema."""


class InProcessRow(msgspec.Struct, frozen=True):
    """One row of the in-process part: microseconds of each round; `baseline` is the row it is compared with, or ""."""

    name: str
    baseline: str
    us: list[float]


class MonitorRow(msgspec.Struct, frozen=True):
    """Single monitor commands of one kind of client: how many, and quantiles of the time from sent to answered."""

    name: str
    count: int
    p50_ms: float
    p99_ms: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One VM: `values` by row (benchmarks/rows.py has their units), `facts` beside; a `problem` if it failed.

    `others` is how many CPUs were busy meanwhile with what is not ours: on a quiet machine next to none.
    """

    round: int
    contender: str
    cpus: int
    load: float  # the host's load average over one minute just before
    others: float = 0.0
    values: dict[str, float] = {}
    facts: dict[str, Any] = {}
    problem: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The host."""

    cpu: str
    cores: int
    memory_mib: int
    kernel: str
    python: str


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What all guests have in common. `counts`: batches and times in a batch, by phase."""

    qemu: str
    accel: str
    accel_reason: str
    guest_kernel: str
    append: str
    memory: str
    rounds: int
    counts: dict[str, tuple[int, int]]


class Results(msgspec.Struct, kw_only=True):
    """A whole run."""

    schema: int = SCHEMA
    date: str
    commit: str
    modified: bool  # the tree had changes that were not committed
    scale: str
    machine: Machine
    load_at_start: float
    in_process: list[InProcessRow] = []
    monitor: list[MonitorRow] = []
    setup: Setup | None = None
    samples: list[Sample] = []

    @property
    def load(self) -> float:
        """The highest load average seen at the start or before a VM."""
        return max([self.load_at_start, *(sample.load for sample in self.samples)])

    @property
    def others(self) -> float:
        """The most CPUs that others kept busy during a VM, on its average."""
        return max([0.0, *(sample.others for sample in self.samples)])


def load(path: Path) -> Results:
    """The results in a file. Raises ResultsError."""
    try:
        raw = path.read_bytes()
        found = msgspec.json.decode(raw, type=dict[str, Any]).get("schema")
        if found != SCHEMA:
            raise ResultsError(f"{path}: schema {found}, this version reads {SCHEMA}")
        return msgspec.json.decode(raw, type=Results)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ResultsError(f"{path} is no result of `make bench`: {error}") from None


def save(path: Path, results: Results, summary: list[dict[str, Any]]) -> None:
    """Write the file whole or not at all; `summary` goes in for other programs and is ignored by `load`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {**msgspec.to_builtins(results), "summary": summary}
    text = msgspec.json.format(msgspec.json.encode(data), indent=1).decode() + "\n"
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
