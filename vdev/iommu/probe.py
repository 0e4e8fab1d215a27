"""What an endpoint's PROBE is answered with."""

from __future__ import annotations

from dataclasses import dataclass

from vdev.errors import ConfigError
from vdev.iommu.settings import ADDRESS_SPACE, EndpointSettings, PasidSettings, ReservedRegion, UnitSettings
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire


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


@dataclass(frozen=True, slots=True)
class Properties:
    """An endpoint's answers to PROBE: to a driver that has not accepted PASID (P1), and to one that has."""

    plain: bytes
    with_pasids: bytes


def endpoint_properties(unit: UnitSettings, endpoint: EndpointSettings) -> Properties:
    """Both answers. ConfigError where one does not fit `probe_size`."""
    plain = probe_reply(unit, endpoint)
    given = endpoint.pasid if unit.pasids else None
    return Properties(plain, plain if given is None else probe_reply(unit, endpoint, _pasid_properties(given)))


def probe_reply(unit: UnitSettings, endpoint: EndpointSettings, more: bytes = b"") -> bytes:
    """`probe_size` bytes: the endpoint's properties, back to back (D50), then `more` of them, the rest zero (D52).
    ConfigError: too many."""
    regions = probed_regions(unit, endpoint.reserved)
    packed = b"".join(wire.resv_mem(r.start, r.stop, is_msi=r.is_msi) for r in regions) + more
    if unit.probe_size and len(packed) > unit.probe_size:
        raise ConfigError(
            f"endpoint {endpoint.name}",
            f"its properties take {len(packed)} bytes, probe_size is {unit.probe_size}",
            "raise the unit's probe_size",
        )
    return packed.ljust(unit.probe_size, b"\0")


def _pasid_properties(given: PasidSettings) -> bytes:
    flags = pasid_wire.PROBE_PASID_F_EXECUTE if given.execute else 0
    flags |= pasid_wire.PROBE_PASID_F_PRIVILEGED if given.privileged else 0
    flags |= pasid_wire.PROBE_PASID_F_ONLY if given.only else 0
    # P40: exactly one; P41: one for each range the endpoint keeps
    reserved = b"".join(pasid_wire.resv_pasid(start, stop) for start, stop in sorted(given.reserved))
    return pasid_wire.pasid_property(given.bits, flags) + reserved
