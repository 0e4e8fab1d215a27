"""The table of what is measured in process, and its interleaved rounds.

Absolute times are of this machine; the ratio column compares each row with the plain Python or memory operation
named beside it, measured in the same rounds, and is what to compare between commits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.inprocess.authority import Leases, ledger_pair, policy_pair
from benchmarks.inprocess.dma import dma, small_dma
from benchmarks.inprocess.plain import dict_update, fence, memcpy
from benchmarks.inprocess.requests import attached_engine, map_unmap, ring, traced_ring
from benchmarks.results import InProcessRow
from vdev.control.event_log import EventLog
from vdev.parts.progress import Say

ROUNDS = 5
EVENT_LOG_ROW = "the same with the event log, trace off"


@dataclass(slots=True)
class Row:
    """One thing measured: `run(n)` does it n times."""

    name: str
    baseline: str
    count: int
    run: Callable[[int], None]
    seconds: list[float] = field(default_factory=list)


def measure(say: Say) -> list[InProcessRow]:
    """Measure every row ROUNDS times, interleaved."""
    with tempfile.TemporaryDirectory(prefix="vdev-", dir="/tmp") as scratch, ExitStack() as stack:
        rows = [*_rows(Path(scratch)), *_authority_rows(Path(scratch), stack)]
        for number in range(ROUNDS):
            say(f"in process, round {number + 1}/{ROUNDS}")
            for row in rows:
                start = time.perf_counter()
                row.run(row.count)
                row.seconds.append(time.perf_counter() - start)
    return [InProcessRow(row.name, row.baseline, [each / row.count * 1e6 for each in row.seconds]) for row in rows]


def _rows(scratch: Path) -> list[Row]:
    return [
        Row("dict set and delete", "", 200_000, dict_update()),
        Row("memcpy 1 MiB", "", 200, memcpy()),
        Row("full fence", "dict set and delete", 50_000, fence()),
        Row("engine map+unmap, empty domain", "dict set and delete", 20_000, map_unmap(attached_engine())),
        Row("engine map+unmap, 100k live", "dict set and delete", 20_000, map_unmap(attached_engine(100_000))),
        Row("ring+engine, one request in a batch of 64", "dict set and delete", 12_800, ring()),
        Row(EVENT_LOG_ROW, "dict set and delete", 12_800, ring(EventLog(time.monotonic).emit)),
        Row("the same, trace in memory", EVENT_LOG_ROW, 12_800, traced_ring(None)),
        Row("the same, trace to a file", EVENT_LOG_ROW, 12_800, traced_ring(scratch)),
        Row("DMA 1 MiB, one mapping", "memcpy 1 MiB", 200, dma(paged=False)),
        Row("DMA 1 MiB, 256 neighbouring pages", "memcpy 1 MiB", 50, dma(paged=True)),
        Row("DMA 1 MiB, 256 scattered pages", "memcpy 1 MiB", 50, dma(paged=True, scattered=True)),
        Row(
            "the same, with a PASID", "DMA 1 MiB, 256 scattered pages", 50, dma(paged=True, scattered=True, pasid=True)
        ),
        Row("DMA read of 64 bytes", "dict set and delete", 20_000, small_dma()),
        Row("DMA read of 64 bytes, with a PASID", "DMA read of 64 bytes", 20_000, small_dma(pasid=True)),
    ]


def _authority_rows(scratch: Path, stack: ExitStack) -> list[Row]:
    """What a guest's PASID_ALLOC and PASID_FREE cost on the host: a pair each."""
    (scratch / "authority").mkdir(mode=0o700)
    leases = stack.enter_context(Leases(scratch / "authority"))
    return [
        Row("PASID grant+release, the policy alone", "dict set and delete", 5_000, policy_pair()),
        Row("the same with the ledger", "PASID grant+release, the policy alone", 2_000, ledger_pair(scratch, stack)),
        Row("the same of another process, through a lease", "the same with the ledger", 1_000, leases.one),
        Row("the same, 64 leases at once, per pair", "the same with the ledger", 64 * 20, leases.all),
    ]
