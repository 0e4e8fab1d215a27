"""A trace of one unit and one accelerator with a clock and a loop of its own. Helpers act; tests assert."""

from __future__ import annotations

from collections.abc import Callable

from vdev.iommu.events import FaultRaised, RequestHandled
from vdev.trace.recorder import Surroundings, Trace
from vdev.trace.records import Decoder, EndpointName, UnitName
from vdev.wire import viommu as wire

ENDPOINT = 0x100
DECODER = Decoder("test", [UnitName("iommu0", 0x80, 10)], [EndpointName("accel0", ENDPOINT, "iommu0")])
HEADER = DECODER.header("0.1.0", "2026-01-01T00:00:00.000Z", 42)
MAP = wire.Map(wire.T_MAP, bytes(3), 1, 0x1000_0000, 0x100F_FFFF, 0x1F40_0000, wire.MAP_F_READ | wire.MAP_F_WRITE)
UNMAP = wire.Unmap(wire.T_UNMAP, bytes(3), 1, 0x1000_0000, 0x1000_0FFF)
ATTACH = wire.Attach(wire.T_ATTACH, bytes(3), 1, ENDPOINT)
MAPPED = RequestHandled("iommu0", "MAP", wire.S_OK, MAP)
REFUSED = RequestHandled("iommu0", "MAP", wire.S_INVAL, MAP, "overlaps a mapping")
FAULT = FaultRaised("iommu0", ENDPOINT, "not-mapped", 2, 0x2000_0000)


class TraceRig:
    """`now_ns` is the clock; `later` what the trace wants to be called for; `switched` how it switched its sources."""

    def __init__(self) -> None:
        self.now_ns = 5_000_000_000
        self.later: list[Callable[[], None]] = []
        self.switched: list[bool] = []
        self.attached: dict[tuple[str, int], tuple[int, ...]] = {}
        around = Surroundings(self.switched.append, lambda: self.attached, lambda: self.now_ns, self._schedule)
        self.trace = Trace(DECODER, HEADER, around)

    def _schedule(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.later.append(callback)

    def run_later(self) -> None:
        """Call what waits, and what that asks for, until nothing does."""
        while self.later:
            self.later.pop(0)()

    def emit(self, event: object, after_us: float = 1.0) -> None:
        """`event` happens `after_us` from now."""
        self.now_ns += int(after_us * 1000)
        self.trace.emit(event)
