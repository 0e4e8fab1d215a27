"""The PASID extension of virtio-iommu on the wire, as docs/virtio-iommu-pasid.md has it; names as in `wire.viommu`.

Nothing of it is shown to a driver that has not accepted F_PASID (P1). Ranges are inclusive, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from vdev.wire.record import Record

F_PASID = 1 << 50
F_PASID_ALLOC = 1 << 51
FEATURES = F_PASID | F_PASID_ALLOC
FEATURE_NAMES = {F_PASID: "PASID", F_PASID_ALLOC: "PASID_ALLOC"}

PASID_BITS_MAX = 20
PASID_LAST = (1 << PASID_BITS_MAX) - 1

SPACE_SYSTEM = 0
SPACE_PER_GUEST = 1
CONFIG_OFFSET = 40
CONFIG_NBYTES = 24

T_ATTACH_PASID = 0x40
T_DETACH_PASID = 0x41
T_PASID_ALLOC = 0x42
T_PASID_FREE = 0x43
REQUEST_NAMES = {
    T_ATTACH_PASID: "ATTACH_PASID",
    T_DETACH_PASID: "DETACH_PASID",
    T_PASID_ALLOC: "PASID_ALLOC",
    T_PASID_FREE: "PASID_FREE",
}

ATTACH_PASID_F_BYPASS = 1 << 0
ATTACH_PASID_F_MIRROR_RID = 1 << 1

PROBE_T_PASID = 0xF00
PROBE_T_RESV_PASID = 0xF01
PROBE_PASID_F_EXECUTE = 1 << 0
PROBE_PASID_F_PRIVILEGED = 1 << 1
PROBE_PASID_F_ONLY = 1 << 2

FAULT_R_PASID = 0x40
FAULT_R_PASID_DISABLED = 0x41
FAULT_R_PASID_REQUIRED = 0x42
FAULT_REASON_NAMES = {
    FAULT_R_PASID: "PASID",
    FAULT_R_PASID_DISABLED: "PASID_DISABLED",
    FAULT_R_PASID_REQUIRED: "PASID_REQUIRED",
}
FAULT_F_EXEC = 1 << 2
FAULT_F_PRIVILEGED = 1 << 3
FAULT_F_PASID = 1 << 9


@dataclass(slots=True)
class PasidConfig(Record):
    """The configuration fields from CONFIG_OFFSET on (section 3)."""

    layout: ClassVar[Struct] = Struct("<IIIIB7s")
    quota: int
    used: int
    first: int
    last: int
    space: int
    reserved: bytes = bytes(7)


@dataclass(slots=True)
class AttachPasid(Record):
    """struct virtio_iommu_req_attach_pasid without its tail (section 4.1)."""

    layout: ClassVar[Struct] = Struct("<B3sIIII8s")
    type: int
    head_reserved: bytes
    domain: int
    endpoint: int
    pasid: int
    flags: int = 0
    reserved: bytes = bytes(8)


@dataclass(slots=True)
class DetachPasid(Record):
    """struct virtio_iommu_req_detach_pasid without its tail (section 4.2); `domain` is 0 for a mirroring pair."""

    layout: ClassVar[Struct] = Struct("<B3sIII12s")
    type: int
    head_reserved: bytes
    domain: int
    endpoint: int
    pasid: int
    reserved: bytes = bytes(12)


@dataclass(slots=True)
class PasidAlloc(Record):
    """The device-readable part of struct virtio_iommu_req_pasid_alloc (section 4.3)."""

    layout: ClassVar[Struct] = Struct("<B3sII8s")
    type: int
    head_reserved: bytes
    first: int
    last: int
    reserved: bytes = bytes(8)


@dataclass(slots=True)
class PasidGranted(Record):
    """What follows it in the device-writable part, before the tail."""

    layout: ClassVar[Struct] = Struct("<II")
    pasid: int
    remaining: int


@dataclass(slots=True)
class PasidFree(Record):
    """The device-readable part of struct virtio_iommu_req_pasid_free (section 4.4)."""

    layout: ClassVar[Struct] = Struct("<B3sII8s")
    type: int
    head_reserved: bytes
    first: int
    last: int
    reserved: bytes = bytes(8)


@dataclass(slots=True)
class PasidFreed(Record):
    """What follows it in the device-writable part, before the tail."""

    layout: ClassVar[Struct] = Struct("<I4s")
    freed: int
    reserved1: bytes = bytes(4)


ANSWER_NBYTES = PasidGranted.layout.size  # of both, before the tail


@dataclass(slots=True)
class PasidProperty(Record):
    """struct virtio_iommu_probe_pasid (section 5)."""

    layout: ClassVar[Struct] = Struct("<HHBB2s")
    type: int
    length: int
    bits: int
    flags: int
    reserved: bytes = bytes(2)


@dataclass(slots=True)
class ResvPasid(Record):
    """struct virtio_iommu_probe_resv_pasid (section 5)."""

    layout: ClassVar[Struct] = Struct("<HHII")
    type: int
    length: int
    first: int
    last: int


@dataclass(slots=True)
class FaultPasid(Record):
    """struct virtio_iommu_fault_pasid (section 7)."""

    layout: ClassVar[Struct] = Struct("<B3sIIIQ24s")
    reason: int
    reserved: bytes
    flags: int
    endpoint: int
    pasid: int
    address: int
    reserved1: bytes = bytes(24)


FAULT_PASID_NBYTES = FaultPasid.layout.size


def pasid_property(bits: int, flags: int) -> bytes:
    """A whole PASID property."""
    return PasidProperty(PROBE_T_PASID, 4, bits, flags).pack()


def resv_pasid(start: int, stop: int) -> bytes:
    """A whole RESV_PASID property for the half-open [start, stop)."""
    return ResvPasid(PROBE_T_RESV_PASID, 8, start, stop - 1).pack()
