"""What an endpoint's PROBE is answered with."""

from __future__ import annotations

from vdev.errors import ConfigError
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.wire import viommu as wire


def probe_reply(unit: UnitSettings, endpoint: EndpointSettings) -> bytes:
    """`probe_size` bytes: the endpoint's properties, back to back (D50), the rest zero (D52). ConfigError: too many."""
    packed = b"".join(wire.resv_mem(r.start, r.stop, is_msi=r.is_msi) for r in endpoint.reserved)
    if unit.probe_size and len(packed) > unit.probe_size:
        raise ConfigError(
            f"endpoint {endpoint.name}",
            f"its properties take {len(packed)} bytes, probe_size is {unit.probe_size}",
            "raise the unit's probe_size",
        )
    return packed.ljust(unit.probe_size, b"\0")
