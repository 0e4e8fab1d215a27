"""The request path in process: the engine alone, the ring with the engine, and what log and trace add."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.support.driver import DriverRing
from vdev.control.event_log import EventLog
from vdev.iommu.engine import Engine
from vdev.iommu.events import Event
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.memory import Region, RegionTable
from vdev.trace.recorder import Handle, Surroundings, Trace, TraceOptions
from vdev.trace.records import Decoder, UnitName
from vdev.transports.fence import make_ordering
from vdev.virtio.queue import Queue
from vdev.wire import viommu as wire

PAGE = 4096
ENDPOINT = 0x100
RW = wire.MAP_F_READ | wire.MAP_F_WRITE
Timed = Callable[[Handle], Handle]


def attached_engine(live: int = 0, emit: Callable[[Event], None] | None = None) -> Engine:
    """An engine with one endpoint attached to domain 1, and `live` mappings in it."""
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


def map_unmap(engine: Engine) -> Callable[[int], None]:
    """MAP and UNMAP of one page, as the engine gets them."""
    add, remove, handle = _map(0x1000_0000), _unmap(0x1000_0000), engine.handle

    def run(count: int) -> None:
        for _ in range(count):
            handle(add, 4)
            handle(remove, 4)

    return run


def ring(emit: Callable[[Event], None] | None = None, timed: Timed = lambda handle: handle) -> Callable[[int], None]:
    """Requests through a ring in batches of 64: popped, handled, answered, published."""
    engine, ordering = attached_engine(emit=emit), make_ordering()
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


def traced_ring(scratch: Path | None) -> Callable[[int], None]:
    """The ring with the event log and a trace that is on; with `scratch`, writing all its lines, too."""
    log, decoder = EventLog(time.monotonic), Decoder("bench", [UnitName("bench", 0x80, 10)], [])
    waiting: list[Callable[[], None]] = []
    around = Surroundings(
        lambda on: None, lambda: {("bench", 1): (ENDPOINT,)}, time.monotonic_ns, lambda _, call: waiting.append(call)
    )
    trace = Trace(decoder, decoder.header("0", "", 0), around)
    trace.start(TraceOptions(file=str(scratch / "trace") if scratch else None))
    log.trace = trace.emit
    requests = ring(log.emit, trace.timed)

    def run(count: int) -> None:
        for _ in range(count // 64):
            requests(64)
            while waiting:
                waiting.pop()()

    return run
