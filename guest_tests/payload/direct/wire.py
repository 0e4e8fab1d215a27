"""What goes through the IOMMU's two queues: requests, answers' tails, probe properties, fault records.

virtio 1.4, "IOMMU Device"; little endian. The requests of the PASID extension are in wire_pasid.py. `pack` gives the
device-readable part of a request. Its fields may hold anything that fits, so a bad request is a good one with a field
changed. `virt_end` and `end` are inclusive here, as on the wire; everything else in this package is half-open.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, NamedTuple, Protocol

DEVICE_ID = 23
REQUEST_QUEUE = 0
EVENT_QUEUE = 1
MAX_U64 = (1 << 64) - 1


class Feature(IntFlag, boundary=enum.KEEP):
    """Feature bits of the IOMMU (0-6), of rings, and of virtio itself."""

    INPUT_RANGE = 1 << 0
    DOMAIN_RANGE = 1 << 1
    MAP_UNMAP = 1 << 2
    BYPASS = 1 << 3  # legacy
    PROBE = 1 << 4
    MMIO = 1 << 5
    BYPASS_CONFIG = 1 << 6
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    RING_RESET = 1 << 40
    PASID = 1 << 50
    PASID_ALLOC = 1 << 51


class Status(IntEnum):
    """Status of an answered request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    DEVERR = 3
    INVAL = 4
    RANGE = 5
    NOENT = 6
    FAULT = 7
    NOMEM = 8


STATUSES: dict[int, Status] = {int(status): status for status in Status}


class Type(IntEnum):
    """Types of request."""

    ATTACH = 1
    DETACH = 2
    MAP = 3
    UNMAP = 4
    PROBE = 5


class Access(IntFlag, boundary=enum.KEEP):
    """Flags of MAP, and what a fault wanted."""

    READ = 1
    WRITE = 2
    MMIO = 4  # of MAP only


READ, WRITE, MMIO = Access.READ, Access.WRITE, Access.MMIO
ATTACH_BYPASS = 1  # flag of ATTACH

TAIL = Struct("<B3s")  # status, reserved
TAIL_NBYTES = TAIL.size


class Request(Protocol):
    """Anything with bytes to send."""

    def pack(self) -> bytes: ...


@dataclass(slots=True, kw_only=True)
class Attach:
    """ATTACH (struct virtio_iommu_req_attach)."""

    layout: ClassVar[Struct] = Struct("<B3sIII4s")
    domain: int
    endpoint: int
    flags: int = 0
    reserved: bytes = bytes(4)
    head_reserved: bytes = bytes(3)
    type: int = Type.ATTACH

    def pack(self) -> bytes:
        """The 20 device-readable bytes."""
        return self.layout.pack(
            self.type, self.head_reserved, self.domain, self.endpoint, self.flags, self.reserved
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Detach:
    """DETACH (struct virtio_iommu_req_detach)."""

    layout: ClassVar[Struct] = Struct("<B3sII8s")
    domain: int
    endpoint: int
    reserved: bytes = bytes(8)
    head_reserved: bytes = bytes(3)
    type: int = Type.DETACH

    def pack(self) -> bytes:
        """The 20 device-readable bytes."""
        return self.layout.pack(self.type, self.head_reserved, self.domain, self.endpoint, self.reserved)


@dataclass(slots=True, kw_only=True)
class Map:
    """MAP (struct virtio_iommu_req_map)."""

    layout: ClassVar[Struct] = Struct("<B3sIQQQI")
    domain: int
    virt_start: int
    virt_end: int
    phys_start: int
    flags: int
    head_reserved: bytes = bytes(3)
    type: int = Type.MAP

    def pack(self) -> bytes:
        """The 36 device-readable bytes."""
        where = (self.virt_start, self.virt_end, self.phys_start)
        return self.layout.pack(self.type, self.head_reserved, self.domain, *where, self.flags)


@dataclass(slots=True, kw_only=True)
class Unmap:
    """UNMAP (struct virtio_iommu_req_unmap)."""

    layout: ClassVar[Struct] = Struct("<B3sIQQ4s")
    domain: int
    virt_start: int
    virt_end: int
    reserved: bytes = bytes(4)
    head_reserved: bytes = bytes(3)
    type: int = Type.UNMAP

    def pack(self) -> bytes:
        """The 28 device-readable bytes."""
        return self.layout.pack(
            self.type, self.head_reserved, self.domain, self.virt_start, self.virt_end, self.reserved
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Probe:
    """PROBE (struct virtio_iommu_req_probe) up to its properties, which the device writes."""

    layout: ClassVar[Struct] = Struct("<B3sI64s")
    endpoint: int
    reserved: bytes = bytes(64)
    head_reserved: bytes = bytes(3)
    type: int = Type.PROBE

    def pack(self) -> bytes:
        """The 72 device-readable bytes."""
        return self.layout.pack(self.type, self.head_reserved, self.endpoint, self.reserved)


class Range(NamedTuple):
    """Half-open [start, stop)."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Config:
    """The device configuration (struct virtio_iommu_config), ranges half-open; `raw` is its 40 bytes.

    A field whose feature the device does not offer is whatever the device has there.
    """

    layout: ClassVar[Struct] = Struct("<QQQIIIB3s")
    page_size_mask: int
    input_range: Range
    domain_range: Range
    probe_size: int
    bypass: bool
    raw: bytes = field(repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> Config:
        """From the 40 bytes."""
        mask, first, last, first_domain, last_domain, probe_size, bypass, _ = cls.layout.unpack(raw)
        inputs, domains = Range(first, last + 1), Range(first_domain, last_domain + 1)
        return cls(mask, inputs, domains, probe_size, bool(bypass & 1), raw)

    @property
    def granule(self) -> int:
        """The smallest page, in bytes."""
        return self.page_size_mask & -self.page_size_mask


CONFIG_NBYTES = Config.layout.size
BYPASS_OFFSET = 36


class Subtype(IntEnum):
    """Kinds of RESV_MEM."""

    RESERVED = 0
    MSI = 1


PROPERTY = Struct("<HH")  # type (low 12 bits), length of the value that follows
PROPERTY_TYPE_MASK = 0xFFF
RESV_MEM = 1
RESV_MEM_VALUE = Struct("<B3sQQ")  # subtype, reserved, start, end (inclusive)
PASID, RESV_PASID = 0xF00, 0xF01
PASID_VALUE = Struct("<BB2s")  # bits, flags, reserved
RESV_PASID_VALUE = Struct("<II")  # first, last (inclusive)


@dataclass(frozen=True, slots=True)
class ResvMem:
    """A RESV_MEM property: [start, stop) must not be mapped."""

    subtype: int
    start: int
    stop: int
    reserved: bytes = bytes(3)


class PasidFlag(IntFlag, boundary=enum.KEEP):
    """What an endpoint's accesses with a PASID can request, and that it makes no others."""

    EXECUTE = 1
    PRIVILEGED = 2
    ONLY = 4


@dataclass(frozen=True, slots=True)
class PasidWidth:
    """A PASID property: the endpoint's PASIDs are below 1 << bits."""

    bits: int
    flags: PasidFlag
    reserved: bytes = bytes(2)


@dataclass(frozen=True, slots=True)
class ResvPasid:
    """A RESV_PASID property: PASIDs [start, stop) are the endpoint's own."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class UnknownProperty:
    """A property of a type, or of a length, that we do not know."""

    type: int
    value: bytes


Property = ResvMem | PasidWidth | ResvPasid | UnknownProperty


def properties(raw: bytes) -> Iterator[Property]:
    """The properties in a PROBE answer's buffer, up to type 0 or its end. A value cut short ends the list."""
    at = 0
    while at + PROPERTY.size <= len(raw):
        kind, length = PROPERTY.unpack_from(raw, at)
        at += PROPERTY.size
        if kind & PROPERTY_TYPE_MASK == 0 or at + length > len(raw):
            return
        value = raw[at : at + length]
        at += length
        known = _PROPERTIES.get((kind, length))
        yield known(value) if known is not None else UnknownProperty(kind, value)


def _resv_mem(value: bytes) -> Property:
    subtype, reserved, start, end = RESV_MEM_VALUE.unpack(value)
    return ResvMem(subtype, start, end + 1, reserved)


def _pasid(value: bytes) -> Property:
    bits, flags, reserved = PASID_VALUE.unpack(value)
    return PasidWidth(bits, PasidFlag(flags), reserved)


def _resv_pasid(value: bytes) -> Property:
    first, last = RESV_PASID_VALUE.unpack(value)
    return ResvPasid(first, last + 1)


_PROPERTIES: dict[tuple[int, int], Callable[[bytes], Property]] = {  # by type and length
    (RESV_MEM, RESV_MEM_VALUE.size): _resv_mem,
    (PASID, PASID_VALUE.size): _pasid,
    (RESV_PASID, RESV_PASID_VALUE.size): _resv_pasid,
}


class Reason(IntEnum):
    """Why an access was refused."""

    UNKNOWN = 0
    DOMAIN = 1
    MAPPING = 2
    PASID = 0x40
    PASID_DISABLED = 0x41
    PASID_REQUIRED = 0x42


REASONS: dict[int, Reason] = {int(reason): reason for reason in Reason}
FAULT_READ, FAULT_WRITE, FAULT_EXEC, FAULT_PRIVILEGED, FAULT_ADDRESS, FAULT_PASID = 1, 2, 4, 8, 1 << 8, 1 << 9


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault record (struct virtio_iommu_fault, or its longer form with PASIDs).

    `address` is None where the device gave none, `pasid` where the access had none. `reason` is a plain number where
    it is no `Reason`; `raw` is the whole record, of 24 or of 48 bytes.
    """

    layout: ClassVar[Struct] = Struct("<B3sIIIQ")
    reason: int
    access: Access
    endpoint: int
    address: int | None
    raw: bytes = field(repr=False, compare=False, default=b"")
    pasid: int | None = None
    executes: bool = False
    is_privileged: bool = False

    @classmethod
    def parse(cls, raw: bytes) -> Fault:
        """From at least 24 bytes."""
        reason, _, flags, endpoint, pasid, address = cls.layout.unpack_from(raw)
        return cls(
            reason=REASONS.get(reason, reason),
            access=Access(flags & (FAULT_READ | FAULT_WRITE)),
            endpoint=endpoint,
            address=address if flags & FAULT_ADDRESS else None,
            raw=raw,
            pasid=pasid if flags & FAULT_PASID else None,
            executes=bool(flags & FAULT_EXEC),
            is_privileged=bool(flags & FAULT_PRIVILEGED),
        )


FAULT_NBYTES = Fault.layout.size
FAULT_PASID_NBYTES = 48  # what a driver with PASIDs posts buffers of
