"""Building and sending virtio-iommu requests in tests; nothing here asserts."""

from __future__ import annotations

from dataclasses import replace

from vdev.iommu.engine import Engine
from vdev.iommu.events import Event
from vdev.iommu.settings import EndpointSettings, Limits, ReservedRegion, UnitSettings
from vdev.wire import viommu as wire

READ = 1
WRITE = 2
MSI = ReservedRegion(0xFEE00000, 0xFEF00000, is_msi=True)
HOLE = ReservedRegion(0x8000, 0xA000)
PLAIN, DOORBELL, HOLED = 0, 0x100, 0x108  # endpoint ids: nothing reserved, an MSI region, an MSI region and a hole
ENDPOINTS = (
    EndpointSettings(PLAIN, "plain"),
    EndpointSettings(DOORBELL, "doorbell", (MSI,)),
    EndpointSettings(HOLED, "holed", (MSI, HOLE)),
)
UNIT = UnitSettings("iommu0")
BYTES = replace(UNIT, page_size_mask=(1 << 64) - 1)
Z3, Z4, Z8 = bytes(3), bytes(4), bytes(8)


def engine(settings: UnitSettings = UNIT, events: list[Event] | None = None, *, accept: int = -1) -> Engine:
    """A unit with the three endpoints above whose driver accepted everything (or `accept`)."""
    made = Engine(settings, ENDPOINTS, None if events is None else events.append)
    made.set_features(accept)
    return made


def limited(**caps: int) -> UnitSettings:
    """UNIT with some caps lowered."""
    return replace(UNIT, limits=replace(Limits(), **caps))


def send(unit: Engine, request: bytes) -> int:
    """Send a request with a fixed tail and return its status; -1 when it came back unwritten."""
    reply = unit.handle(request, wire.TAIL_NBYTES)
    return reply[0] if reply else -1


def attach(unit: Engine, domain: int, endpoint: int, flags: int = 0, reserved: bytes = Z4) -> int:
    return send(unit, wire.Attach(wire.T_ATTACH, Z3, domain, endpoint, flags, reserved).pack())


def detach(unit: Engine, domain: int, endpoint: int, reserved: bytes = Z8) -> int:
    return send(unit, wire.Detach(wire.T_DETACH, Z3, domain, endpoint, reserved).pack())


def map_request(domain: int, first: int, last: int, gpa: int, flags: int = READ | WRITE) -> bytes:
    """`last` is inclusive, as on the wire."""
    return wire.Map(wire.T_MAP, Z3, domain, first, last, gpa, flags).pack()


def map_(unit: Engine, domain: int, first: int, last: int, gpa: int = 0, flags: int = READ | WRITE) -> int:
    return send(unit, map_request(domain, first, last, gpa, flags))


def unmap(unit: Engine, domain: int, first: int, last: int, reserved: bytes = Z4) -> int:
    return send(unit, wire.Unmap(wire.T_UNMAP, Z3, domain, first, last, reserved).pack())


def probe_request(endpoint: int, reserved: bytes = bytes(64)) -> bytes:
    return wire.Probe(wire.T_PROBE, Z3, endpoint, reserved).pack()
