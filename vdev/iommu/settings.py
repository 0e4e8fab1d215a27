"""What a unit is told when it is built: frozen, half-open, checked once, filled from the config by the app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vdev.errors import ConfigError
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

ADDRESS_SPACE = 1 << 64
DOMAIN_SPACE = 1 << 32
RESV_PROPERTY_NBYTES = 24
PROBE_SIZE_MAX = 1 << 16
Isolation = Literal["required", "preferred", "off"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what one guest can grow; requests over one get NOMEM, faults over one are dropped and counted."""

    max_domains: int = 65536  # memory of the domain table
    max_mappings_per_domain: int = 1 << 20  # so that one domain cannot starve the others
    max_mappings: int = 1 << 21  # memory of the unit: some 250 bytes each
    max_pairs: int = 65536  # attached PASIDs, each endpoint's counted: some 400 bytes each
    max_pending_faults: int = 1024  # a guest that posts no event buffers
    max_request_nbytes: int = 65536  # one descriptor chain; enforced by the function that owns the request ring


@dataclass(frozen=True, slots=True)
class ReservedRegion:
    """[start, stop) of IOVA that is never mapped: an MSI doorbell (`is_msi`) or a hole (RESERVED)."""

    start: int
    stop: int
    is_msi: bool = False


@dataclass(frozen=True, slots=True)
class PasidSettings:
    """An endpoint's accesses with a PASID: the width of its capability and which requests it can make; `only`: it makes
    none without one. `reserved`: half-open ranges of PASIDs that are the endpoint's own."""

    bits: int = pasid_wire.PASID_BITS_MAX
    execute: bool = False
    privileged: bool = False
    only: bool = False
    reserved: tuple[tuple[int, int], ...] = ()

    def check(self, key: str) -> None:
        """Raise ConfigError, for the endpoint `key`, for what the properties cannot carry or P40 and P41 rule out."""
        if not 1 <= self.bits <= pasid_wire.PASID_BITS_MAX:
            raise ConfigError(key, f"PASIDs of {self.bits} bits are not of 1..{pasid_wire.PASID_BITS_MAX}")
        cursor = 1
        for start, stop in sorted(self.reserved):
            if not cursor <= start < stop <= pasid_wire.PASID_LAST + 1:
                problem = f"reserved PASIDs {start:#x}..{stop - 1:#x} are none, overlap others, or are not of 20 bits"
                raise ConfigError(key, problem)
            cursor = stop

    def takes(self, pasid: int) -> bool:
        """Whether the endpoint can have `pasid` attached: it fits, and is not the endpoint's own."""
        return not pasid >> self.bits and not any(start <= pasid < stop for start, stop in self.reserved)


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """One endpoint and all regions reserved for it, the platform's MSI region included. `pasid` None: it has none."""

    id: int
    name: str
    reserved: tuple[ReservedRegion, ...] = ()
    pasid: PasidSettings | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for an id that is not 32 bits, or regions that are empty or break D54 and D55."""
        key = f"endpoint {self.name}"
        if not 0 <= self.id < 1 << 32:
            raise ConfigError(key, f"id {self.id:#x} is not a 32-bit number")
        cursor = 0
        for region in sorted(self.reserved, key=lambda region: region.start):
            if not 0 <= region.start < region.stop <= ADDRESS_SPACE:
                raise ConfigError(key, f"reserved region {region.start:#x}..{region.stop:#x} is empty or over 64 bits")
            # D55: regions of one endpoint do not overlap
            if region.start < cursor:
                raise ConfigError(key, f"reserved region at {region.start:#x} overlaps another of this endpoint")
            cursor = region.stop
        # D54: at most one MSI region
        if sum(region.is_msi for region in self.reserved) > 1:
            raise ConfigError(key, "more than one MSI region", "give one; several RESERVED regions are fine")
        if self.pasid is not None:
            self.pasid.check(key)


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """One virtio-iommu unit. `probe_size` 0 hides PROBE; `bypass_offered` False hides BYPASS_CONFIG, and then nothing
    bypasses in any way. `force_aperture`: what bypasses ends with the input range. `revalidate`: what was translated is
    translated again before its bytes move. `isolation` is the policy these follow from, for queries and refusals; with
    off, PASIDs may bypass, too. `pasids`: PASID and PASID_ALLOC are offered."""

    name: str
    mode: Literal["compat", "strict"] = "compat"
    page_size_mask: int = ADDRESS_SPACE - 4096
    input_start: int = 0
    input_stop: int = 1 << 39
    domain_start: int = 0
    domain_stop: int = DOMAIN_SPACE
    bypass_offered: bool = True
    boot_bypass: bool = True
    force_aperture: bool = False
    revalidate: bool = False
    isolation: Isolation = "preferred"
    mmio: bool = True
    probe_size: int = 512
    pasids: bool = False
    limits: Limits = Limits()

    @property
    def granule(self) -> int:
        """Bytes of the smallest mapping: the lowest bit of `page_size_mask`."""
        return self.page_size_mask & -self.page_size_mask

    @property
    def offered_features(self) -> int:
        """The device-specific feature bits."""
        # D1: MAP_UNMAP is offered; D2, D3: the legacy F_BYPASS is not
        features = wire.F_INPUT_RANGE | wire.F_DOMAIN_RANGE | wire.F_MAP_UNMAP
        features |= wire.F_PROBE if self.probe_size else 0
        features |= wire.F_MMIO if self.mmio else 0
        features |= pasid_wire.FEATURES if self.pasids else 0
        return features | (wire.F_BYPASS_CONFIG if self.bypass_offered else 0)

    def __post_init__(self) -> None:
        """Raise ConfigError for values the config space cannot carry."""
        key = f"unit {self.name}"
        # D4: at least one page size
        if not 0 < self.page_size_mask < ADDRESS_SPACE:
            raise ConfigError(key, f"page_size_mask {self.page_size_mask:#x} is not a non-zero 64-bit number")
        if not 0 <= self.input_start < self.input_stop <= ADDRESS_SPACE:
            raise ConfigError(key, f"input range {self.input_start:#x}..{self.input_stop:#x} is empty or over 64 bits")
        if not 0 <= self.domain_start < self.domain_stop <= DOMAIN_SPACE:
            raise ConfigError(key, f"domain range {self.domain_start}..{self.domain_stop} is empty or over 32 bits")
        if not 0 <= self.probe_size <= PROBE_SIZE_MAX:
            raise ConfigError(key, f"probe_size {self.probe_size} is not in 0..{PROBE_SIZE_MAX}")
        if self.pasids and not self.probe_size:
            raise ConfigError(key, "PASIDs need PROBE, and probe_size is 0", "give a probe_size, such as 512")
        loose = self.bypass_offered or not (self.force_aperture and self.revalidate)
        if self.isolation == "required" and loose:
            raise ConfigError(key, "isolation is required, and its settings let accesses pass the IOMMU by")


def config_bytes(given: UnitSettings, bypass: bool, extension: bytes) -> bytes:
    """The whole config space of a unit, `wire.CONFIG_NBYTES`; fields of features not offered are zero."""
    return wire.Config(
        given.page_size_mask,
        given.input_start,
        given.input_stop - 1,
        given.domain_start,
        given.domain_stop - 1,
        given.probe_size,
        int(bypass),
        extension=extension,
    ).pack()
