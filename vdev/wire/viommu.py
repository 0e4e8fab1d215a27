"""virtio-iommu on the wire, as in virtio 1.4 ("IOMMU Device"): config space, requests, properties, faults.

Names are the specification's without their VIRTIO_IOMMU_ prefix; feature constants are masks, not bit numbers.
A request is a device-readable record (here) and a device-writable part that ends with the tail (`TAILS`).
`virt_end`, `end` are inclusive, as in the specification; everything above this layer is half-open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from vdev.wire.record import Record

DEVICE_ID = 23
REQUEST_QUEUE = 0
EVENT_QUEUE = 1

F_INPUT_RANGE = 1 << 0
F_DOMAIN_RANGE = 1 << 1
F_MAP_UNMAP = 1 << 2
F_BYPASS = 1 << 3  # legacy, never offered (D2)
F_PROBE = 1 << 4
F_MMIO = 1 << 5
F_BYPASS_CONFIG = 1 << 6
FEATURE_NAMES = {
    F_INPUT_RANGE: "INPUT_RANGE",
    F_DOMAIN_RANGE: "DOMAIN_RANGE",
    F_MAP_UNMAP: "MAP_UNMAP",
    F_BYPASS: "BYPASS",
    F_PROBE: "PROBE",
    F_MMIO: "MMIO",
    F_BYPASS_CONFIG: "BYPASS_CONFIG",
}

T_ATTACH = 1
T_DETACH = 2
T_MAP = 3
T_UNMAP = 4
T_PROBE = 5
REQUEST_NAMES = {T_ATTACH: "ATTACH", T_DETACH: "DETACH", T_MAP: "MAP", T_UNMAP: "UNMAP", T_PROBE: "PROBE"}

S_OK = 0
S_IOERR = 1
S_UNSUPP = 2
S_DEVERR = 3
S_INVAL = 4
S_RANGE = 5
S_NOENT = 6
S_FAULT = 7
S_NOMEM = 8
STATUS_NAMES = dict(enumerate(("OK", "IOERR", "UNSUPP", "DEVERR", "INVAL", "RANGE", "NOENT", "FAULT", "NOMEM")))

ATTACH_F_BYPASS = 1 << 0

MAP_F_READ = 1 << 0
MAP_F_WRITE = 1 << 1
MAP_F_MMIO = 1 << 2

PROBE_T_NONE = 0
PROBE_T_RESV_MEM = 1
PROBE_T_MASK = 0x0FFF  # the high four bits of a property's type are reserved
RESV_MEM_T_RESERVED = 0
RESV_MEM_T_MSI = 1

FAULT_R_UNKNOWN = 0
FAULT_R_DOMAIN = 1
FAULT_R_MAPPING = 2
FAULT_REASON_NAMES = {FAULT_R_UNKNOWN: "UNKNOWN", FAULT_R_DOMAIN: "DOMAIN", FAULT_R_MAPPING: "MAPPING"}
FAULT_F_READ = 1 << 0
FAULT_F_WRITE = 1 << 1
FAULT_F_ADDRESS = 1 << 8

HEAD_NBYTES = 4
TAIL_LAYOUT = Struct("<B3x")
TAIL_NBYTES = TAIL_LAYOUT.size
# D13: the tail's reserved bytes are zero. The one place where tails are written.
TAILS = {status: TAIL_LAYOUT.pack(status) for status in STATUS_NAMES}

SPEC_CONFIG_NBYTES = 40
CONFIG_NBYTES = 64  # the specification's 40, then zeros kept for our extension
BYPASS_OFFSET = 36


@dataclass(slots=True)
class Config(Record):
    """struct virtio_iommu_config (Device configuration layout), padded to the 64 bytes we always have."""

    layout: ClassVar[Struct] = Struct("<QQQIIIB3s24s")
    page_size_mask: int
    input_start: int
    input_end: int
    domain_start: int
    domain_end: int
    probe_size: int
    bypass: int
    reserved: bytes = bytes(3)
    extension: bytes = bytes(24)  # `viommu_pasid.PasidConfig`, once accepted


@dataclass(slots=True)
class Head(Record):
    """struct virtio_iommu_req_head (Device operations), the start of every request."""

    layout: ClassVar[Struct] = Struct("<B3s")
    type: int
    head_reserved: bytes = bytes(3)


@dataclass(slots=True)
class Attach(Record):
    """struct virtio_iommu_req_attach without its tail (ATTACH request)."""

    layout: ClassVar[Struct] = Struct("<B3sIII4s")
    type: int
    head_reserved: bytes
    domain: int
    endpoint: int
    flags: int = 0
    reserved: bytes = bytes(4)


@dataclass(slots=True)
class Detach(Record):
    """struct virtio_iommu_req_detach without its tail (DETACH request)."""

    layout: ClassVar[Struct] = Struct("<B3sII8s")
    type: int
    head_reserved: bytes
    domain: int
    endpoint: int
    reserved: bytes = bytes(8)


@dataclass(slots=True)
class Map(Record):
    """struct virtio_iommu_req_map without its tail (MAP request); `virt_end` is inclusive."""

    layout: ClassVar[Struct] = Struct("<B3sIQQQI")
    type: int
    head_reserved: bytes
    domain: int
    virt_start: int
    virt_end: int
    phys_start: int
    flags: int


@dataclass(slots=True)
class Unmap(Record):
    """struct virtio_iommu_req_unmap without its tail (UNMAP request); `virt_end` is inclusive."""

    layout: ClassVar[Struct] = Struct("<B3sIQQ4s")
    type: int
    head_reserved: bytes
    domain: int
    virt_start: int
    virt_end: int
    reserved: bytes = bytes(4)


@dataclass(slots=True)
class Probe(Record):
    """struct virtio_iommu_req_probe up to its properties (PROBE request)."""

    layout: ClassVar[Struct] = Struct("<B3sI64s")
    type: int
    head_reserved: bytes
    endpoint: int
    reserved: bytes = bytes(64)


@dataclass(slots=True)
class Property(Record):
    """struct virtio_iommu_probe_property; `length` counts the value only (D49)."""

    layout: ClassVar[Struct] = Struct("<HH")
    type: int
    length: int


@dataclass(slots=True)
class ResvMem(Record):
    """struct virtio_iommu_probe_resv_mem with its property header (RESV_MEM); `end` is inclusive."""

    layout: ClassVar[Struct] = Struct("<HHB3sQQ")
    type: int
    length: int
    subtype: int
    reserved: bytes
    start: int
    end: int


RESV_MEM_LENGTH = ResvMem.layout.size - Property.layout.size


@dataclass(slots=True)
class Fault(Record):
    """struct virtio_iommu_fault (Fault reporting)."""

    layout: ClassVar[Struct] = Struct("<B3sIIIQ")
    reason: int
    reserved: bytes
    flags: int
    endpoint: int
    reserved1: int
    address: int


FAULT_NBYTES = Fault.layout.size


def resv_mem(start: int, stop: int, *, is_msi: bool) -> bytes:
    """A whole RESV_MEM property for the half-open [start, stop)."""
    subtype = RESV_MEM_T_MSI if is_msi else RESV_MEM_T_RESERVED
    return ResvMem(PROBE_T_RESV_MEM, RESV_MEM_LENGTH, subtype, bytes(3), start, stop - 1).pack()


def properties(buf: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each property in a PROBE reply, up to type 0 or the end; a value cut short ends the list."""
    offset = 0
    while offset + Property.layout.size <= len(buf):
        header = Property.parse(buf, offset)
        offset += Property.layout.size
        if header.type & PROBE_T_MASK == PROBE_T_NONE or offset + header.length > len(buf):
            return
        yield header.type & PROBE_T_MASK, buf[offset : offset + header.length]
        offset += header.length
