"""What a unit offers its driver: features, and what PROBE says of an endpoint."""

from __future__ import annotations

from vdev.errors import ConfigError
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.wire import viommu as wire


def offered_features(settings: UnitSettings) -> int:
    """The device-specific feature bits."""
    # D1: MAP_UNMAP is offered; D2, D3: the legacy F_BYPASS is not
    features = wire.F_INPUT_RANGE | wire.F_DOMAIN_RANGE | wire.F_MAP_UNMAP
    features |= wire.F_PROBE if settings.probe_size else 0
    features |= wire.F_MMIO if settings.mmio else 0
    return features | (wire.F_BYPASS_CONFIG if settings.bypass_offered else 0)


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
