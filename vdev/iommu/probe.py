"""What an endpoint's PROBE is answered with."""

from __future__ import annotations

from vdev.errors import ConfigError
from vdev.iommu.settings import ADDRESS_SPACE, EndpointSettings, ReservedRegion, UnitSettings
from vdev.wire import viommu as wire


def probed_regions(unit: UnitSettings, reserved: tuple[ReservedRegion, ...]) -> tuple[ReservedRegion, ...]:
    """The regions PROBE tells of: those `reserved` for the endpoint, then with force_aperture all that lies outside the
    input range and is in none of them, as RESERVED (D55: regions do not overlap)."""
    if not unit.force_aperture:
        return reserved
    outside: list[ReservedRegion] = []
    for start, stop in ((0, unit.input_start), (unit.input_stop, ADDRESS_SPACE)):
        for region in sorted(reserved, key=lambda region: region.start):
            if start < region.stop and region.start < stop:
                outside.append(ReservedRegion(start, region.start))
                start = region.stop
        outside.append(ReservedRegion(start, stop))
    return (*reserved, *(region for region in outside if region.start < region.stop))


def probe_reply(unit: UnitSettings, endpoint: EndpointSettings) -> bytes:
    """`probe_size` bytes: the endpoint's properties, back to back (D50), the rest zero (D52). ConfigError: too many."""
    regions = probed_regions(unit, endpoint.reserved)
    packed = b"".join(wire.resv_mem(r.start, r.stop, is_msi=r.is_msi) for r in regions)
    if unit.probe_size and len(packed) > unit.probe_size:
        raise ConfigError(
            f"endpoint {endpoint.name}",
            f"its properties take {len(packed)} bytes, probe_size is {unit.probe_size}",
            "raise the unit's probe_size",
        )
    return packed.ljust(unit.probe_size, b"\0")
