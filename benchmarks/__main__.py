"""`make bench`: the request path and the DMA path, in process, as medians of interleaved rounds.

Absolute times are of this machine; the ratio column compares each row with the plain Python or memory operation
named beside it, measured in the same rounds, and is what to compare between commits.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.driver import DriverRing
from vdev.control.event_log import EventLog
from vdev.functions.dma import DmaDoor
from vdev.iommu.engine import Engine
from vdev.iommu.events import Event
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.memory import Region, RegionTable
from vdev.trace.recorder import Handle, Surroundings, Trace, TraceOptions
from vdev.trace.records import Decoder, UnitName
from vdev.transports.fence import make_ordering
from vdev.virtio.queue import Queue
from vdev.wire import viommu as wire

ROUNDS = 5
PAGE = 4096
ENDPOINT = 0x100
COPY_NBYTES = 1 << 20
EVENT_LOG_ROW = "the same with the event log, trace off"
Timed = Callable[[Handle], Handle]
RW = wire.MAP_F_READ | wire.MAP_F_WRITE


@dataclass(slots=True)
class Row:
    """One thing measured: `run(n)` does it n times."""

    name: str
    baseline: str
    count: int
    run: Callable[[int], None]
    seconds: list[float] = field(default_factory=list)

    @property
    def median_us(self) -> float:
        return statistics.median(self.seconds) / self.count * 1e6


class _EnabledFunction:
    dma_enabled = True

    def __init__(self, memory: RegionTable) -> None:
        self.memory = memory


def _engine(live: int = 0, emit: Callable[[Event], None] | None = None) -> Engine:
    engine = Engine(UnitSettings("bench"), [EndpointSettings(ENDPOINT, "ep")], emit)
    engine.set_features(engine.offered_features)
    engine.handle(wire.Attach(wire.T_ATTACH, b"\0" * 3, 1, ENDPOINT, 0, b"\0" * 4).pack(), 4)
    for number in range(live):
        engine.handle(_map(0x40_0000_0000 + number * 2 * PAGE), 4)
    return engine


def _map(iova: int) -> bytes:
    return wire.Map(wire.T_MAP, b"\0" * 3, 1, iova, iova + PAGE - 1, 0x10_0000, RW).pack()


def _unmap(iova: int) -> bytes:
    return wire.Unmap(wire.T_UNMAP, b"\0" * 3, 1, iova, iova + PAGE - 1, b"\0" * 4).pack()


def _map_unmap(engine: Engine) -> Callable[[int], None]:
    add, remove, handle = _map(0x1000_0000), _unmap(0x1000_0000), engine.handle

    def run(count: int) -> None:
        for _ in range(count):
            handle(add, 4)
            handle(remove, 4)

    return run


def _ring(emit: Callable[[Event], None] | None = None, timed: Timed = lambda handle: handle) -> Callable[[int], None]:
    engine, ordering = _engine(emit=emit), make_ordering()
    handle = timed(engine.handle)
    buffer = memoryview(bytearray(1 << 20))
    memory = RegionTable()
    memory.add(Region(0, len(buffer), buffer))
    driver = DriverRing(buffer, 256, event_idx=True)
    queue = Queue(
        memory, 256, driver.desc_gpa, driver.avail_gpa, driver.used_gpa, event_idx=True, indirect=True,
        ordering=ordering, max_chain_nbytes=65536,
    )  # fmt: skip
    requests = [_map(0x1000_0000), _unmap(0x1000_0000)]

    def run(count: int) -> None:
        for _ in range(count // 64):
            for number in range(64):
                driver.add([requests[number % 2]], [4], indirect=True)
            driver.publish()
            while (chain := queue.pop()) is not None:
                queue.push(chain, chain.write(handle(chain.read(65536), chain.writable_nbytes)))
            queue.publish()
            driver.reap()

    return run


def _traced_ring(scratch: Path | None) -> Callable[[int], None]:
    """The ring with the event log and a trace that is on; with `scratch`, writing all its lines, too."""
    log, decoder = EventLog(time.monotonic), Decoder("bench", [UnitName("bench", 0x80, 10)], [])
    waiting: list[Callable[[], None]] = []
    around = Surroundings(
        lambda on: None, lambda: {("bench", 1): (ENDPOINT,)}, time.monotonic_ns, lambda _, call: waiting.append(call)
    )
    trace = Trace(decoder, decoder.header("0", "", 0), around)
    trace.start(TraceOptions(file=str(scratch / "trace") if scratch else None))
    log.trace = trace.emit
    ring = _ring(log.emit, trace.timed)

    def run(count: int) -> None:
        for _ in range(count // 64):
            ring(64)
            while waiting:
                waiting.pop()()

    return run


def _dma(*, paged: bool, scattered: bool = False) -> Callable[[int], None]:
    """Copy 1 MiB; `paged` maps it page by page, `scattered` to pages that are no neighbours."""
    engine = _engine()
    ram = memoryview(bytearray(4 * COPY_NBYTES))
    memory = RegionTable()
    memory.add(Region(0, len(ram), ram))
    step = PAGE if paged else COPY_NBYTES
    spread = 2 if scattered else 1
    for base, gpa in ((0, 0), (COPY_NBYTES, spread * COPY_NBYTES)):
        for at in range(0, COPY_NBYTES, step):
            start = base + at
            engine.handle(wire.Map(wire.T_MAP, b"\0" * 3, 1, start, start + step - 1, gpa + at * spread, RW).pack(), 4)
    door = DmaDoor(engine, ENDPOINT, _EnabledFunction(memory))

    def run(count: int) -> None:
        for _ in range(count):
            sources = door.views(0, COPY_NBYTES, write=False)
            targets = door.views(COPY_NBYTES, COPY_NBYTES, write=True)
            for source, target in zip(sources, targets, strict=True):
                target[:] = source

    return run


def _memcpy() -> Callable[[int], None]:
    source, target = memoryview(bytearray(COPY_NBYTES)), memoryview(bytearray(COPY_NBYTES))

    def run(count: int) -> None:
        for _ in range(count):
            target[:] = source

    return run


def _dict_update() -> Callable[[int], None]:
    table: dict[int, int] = {}

    def run(count: int) -> None:
        for _ in range(count):
            table[1] = 2
            del table[1]

    return run


def _fence() -> Callable[[int], None]:
    full = make_ordering().full

    def run(count: int) -> None:
        for _ in range(count):
            full()

    return run


def main() -> int:
    """Measure every row ROUNDS times, interleaved, and print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        return _measure(_rows(Path(scratch)))


def _rows(scratch: Path) -> list[Row]:
    return [
        Row("dict set and delete", "", 200_000, _dict_update()),
        Row("memcpy 1 MiB", "", 200, _memcpy()),
        Row("full fence", "dict set and delete", 50_000, _fence()),
        Row("engine map+unmap, empty domain", "dict set and delete", 20_000, _map_unmap(_engine())),
        Row("engine map+unmap, 100k live", "dict set and delete", 20_000, _map_unmap(_engine(100_000))),
        Row("ring+engine, one request in a batch of 64", "dict set and delete", 12_800, _ring()),
        Row(EVENT_LOG_ROW, "dict set and delete", 12_800, _ring(EventLog(time.monotonic).emit)),
        Row("the same, trace in memory", EVENT_LOG_ROW, 12_800, _traced_ring(None)),
        Row("the same, trace to a file", EVENT_LOG_ROW, 12_800, _traced_ring(scratch)),
        Row("DMA 1 MiB, one mapping", "memcpy 1 MiB", 200, _dma(paged=False)),
        Row("DMA 1 MiB, 256 neighbouring pages", "memcpy 1 MiB", 50, _dma(paged=True)),
        Row("DMA 1 MiB, 256 scattered pages", "memcpy 1 MiB", 50, _dma(paged=True, scattered=True)),
    ]


def _measure(rows: list[Row]) -> int:
    for number in range(ROUNDS):
        print(f"round {number + 1}/{ROUNDS}", file=sys.stderr, flush=True)
        for row in rows:
            start = time.perf_counter()
            row.run(row.count)
            row.seconds.append(time.perf_counter() - start)
    by_name = {row.name: row for row in rows}
    print(f"{'what':45} {'median us':>10} {'min':>9} {'max':>9}  ratio")
    for row in rows:
        each = [seconds / row.count * 1e6 for seconds in row.seconds]
        ratio = f"{row.median_us / by_name[row.baseline].median_us:8.1f} x {row.baseline}" if row.baseline else ""
        print(f"{row.name:45} {row.median_us:10.2f} {min(each):9.2f} {max(each):9.2f}  {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
