"""The requests of the PASID extension, as docs/virtio-iommu-pasid.md has them; the rest is in wire.py.

`pack` gives the device-readable part, whose fields may hold anything that fits. `first` and `last` are inclusive here,
as on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar

from .wire import CONFIG_NBYTES, Feature

PASID_BITS = 20
PASID_LAST = (1 << PASID_BITS) - 1
FEATURES = Feature.PASID | Feature.PASID_ALLOC
CONFIG_OFFSET = CONFIG_NBYTES
CONFIG_WIDTHS = (4, 4, 4, 4, 1, 1, 1, 1, 1, 1, 1, 1)  # from there on
ATTACH_PASID_BYPASS, ATTACH_PASID_MIRROR_RID = 1, 2


class PasidType(IntEnum):
    """Types of request."""

    ATTACH_PASID = 0x40
    DETACH_PASID = 0x41
    PASID_ALLOC = 0x42
    PASID_FREE = 0x43


class Space(IntEnum):
    """Where the guest's PASIDs are unique."""

    SYSTEM = 0
    PER_GUEST = 1


def acceptable(features: int) -> Feature:
    """`features` without those of the extension whose dependencies are missing (Q1)."""
    wanted = Feature(features)
    if ~wanted & (Feature.MAP_UNMAP | Feature.PROBE):
        wanted &= ~Feature.PASID
    if not wanted & Feature.PASID:
        wanted &= ~Feature.PASID_ALLOC
    return wanted


@dataclass(slots=True, kw_only=True)
class AttachPasid:
    """ATTACH_PASID (struct virtio_iommu_req_attach_pasid)."""

    layout: ClassVar[Struct] = Struct("<B3sIIII8s")
    domain: int
    endpoint: int
    pasid: int
    flags: int = 0
    reserved: bytes = bytes(8)
    head_reserved: bytes = bytes(3)
    type: int = PasidType.ATTACH_PASID

    def pack(self) -> bytes:
        """The 28 device-readable bytes."""
        where = (self.domain, self.endpoint, self.pasid)
        return self.layout.pack(self.type, self.head_reserved, *where, self.flags, self.reserved)


@dataclass(slots=True, kw_only=True)
class DetachPasid:
    """DETACH_PASID (struct virtio_iommu_req_detach_pasid); `domain` is 0 for a mirroring pair."""

    layout: ClassVar[Struct] = Struct("<B3sIII12s")
    domain: int
    endpoint: int
    pasid: int
    reserved: bytes = bytes(12)
    head_reserved: bytes = bytes(3)
    type: int = PasidType.DETACH_PASID

    def pack(self) -> bytes:
        """The 28 device-readable bytes."""
        where = (self.domain, self.endpoint, self.pasid)
        return self.layout.pack(self.type, self.head_reserved, *where, self.reserved)


@dataclass(slots=True, kw_only=True)
class PasidAlloc:
    """PASID_ALLOC (struct virtio_iommu_req_pasid_alloc) up to what the device writes."""

    layout: ClassVar[Struct] = Struct("<B3sII8s")
    first: int = 1
    last: int = PASID_LAST
    reserved: bytes = bytes(8)
    head_reserved: bytes = bytes(3)
    type: int = PasidType.PASID_ALLOC

    def pack(self) -> bytes:
        """The 20 device-readable bytes."""
        return self.layout.pack(self.type, self.head_reserved, self.first, self.last, self.reserved)


@dataclass(slots=True, kw_only=True)
class PasidFree:
    """PASID_FREE (struct virtio_iommu_req_pasid_free) up to what the device writes."""

    layout: ClassVar[Struct] = PasidAlloc.layout
    first: int
    last: int
    reserved: bytes = bytes(8)
    head_reserved: bytes = bytes(3)
    type: int = PasidType.PASID_FREE

    def pack(self) -> bytes:
        """The 20 device-readable bytes."""
        return self.layout.pack(self.type, self.head_reserved, self.first, self.last, self.reserved)


ANSWER = Struct("<II")  # before the tail: pasid and remaining of PASID_ALLOC, freed and reserved1 of PASID_FREE
ANSWER_NBYTES = ANSWER.size


@dataclass(frozen=True, slots=True)
class Granted:
    """What a PASID_ALLOC gave, and how many more the quota allowed then."""

    pasid: int
    remaining: int

    @classmethod
    def parse(cls, raw: bytes) -> Granted:
        """From the beginning of the device-writable part."""
        return cls(*ANSWER.unpack_from(raw))


@dataclass(frozen=True, slots=True)
class PasidConfig:
    """The extension's fields of the device configuration, the range half-open; `raw` is their 24 bytes."""

    layout: ClassVar[Struct] = Struct("<IIIIB7s")
    quota: int
    used: int
    start: int
    stop: int
    space: int
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> PasidConfig:
        """From the 24 bytes."""
        quota, used, first, last, space, _ = cls.layout.unpack(raw)
        return cls(quota, used, first, last + 1, space, raw)
