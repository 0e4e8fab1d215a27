"""PCI configuration space: register offsets, bits and capability layouts (PCI Express Base Specification).

Little endian; offsets of capability registers count from the capability's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar

from vdev.wire.record import Record

BAR0 = 0x10
BAR_COUNT = 6
FIRST_CAPABILITY = 0x40
STANDARD_NBYTES = 0x100
FIRST_EXTENDED = 0x100
COMMAND = 0x04
STATUS = 0x06
CACHE_LINE_SIZE = 0x0C
CAPABILITY_POINTER = 0x34
INTERRUPT_LINE = 0x3C

BAR_64BIT = 0x4
BAR_PREFETCHABLE = 0x8
STATUS_CAPABILITIES = 0x0010
STATUS_ERRORS = 0xF900  # master data parity, signalled/received aborts, SERR, parity: all write 1 to clear


class Command(IntFlag):
    """Command register bits a memory-only endpoint implements."""

    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    PARITY = 1 << 6
    SERR = 1 << 8
    INTX_DISABLE = 1 << 10


class CapId(IntEnum):
    """Standard capability ids."""

    VENDOR = 0x09
    PCIE = 0x10
    MSIX = 0x11


class ExtCapId(IntEnum):
    """Extended capability ids."""

    AER = 0x0001
    ACS = 0x000D
    ATS = 0x000F
    PRI = 0x0013
    PASID = 0x001B


@dataclass(slots=True)
class Type0Header(Record):
    """Type 0 configuration space header, 64 bytes."""

    layout: ClassVar[Struct] = Struct("<HHHHB3sBBBB24sIHHIB7sBBBB")
    vendor: int
    device: int
    command: int
    status: int
    revision: int
    class_code: bytes  # programming interface, subclass, base class
    cache_line_size: int
    latency_timer: int
    header_type: int
    bist: int
    bars: bytes
    cardbus_cis: int
    subsystem_vendor: int
    subsystem: int
    rom: int
    capabilities: int
    reserved: bytes
    interrupt_line: int
    interrupt_pin: int
    min_grant: int
    max_latency: int


# PCI Express capability, version 2 (60 bytes)
PCIE_NBYTES = 60
PCIE_VERSION = 2
PCIE_TYPE_ENDPOINT = 0
DEVCAP = 0x04
DEVCTL = 0x08
DEVSTA = 0x0A
LNKCAP = 0x0C
LNKCTL = 0x10
LNKSTA = 0x12
DEVCAP2 = 0x24
DEVCTL2 = 0x28
LNKCAP2 = 0x2C
LNKCTL2 = 0x30
DEVCAP_EXTENDED_TAG = 1 << 5
DEVCAP_ROLE_BASED_ERRORS = 1 << 15
DEVCAP_FLR = 1 << 28
DEVCTL_WRITABLE = 0x7FFF  # error reporting, relaxed ordering, payload, tags, no-snoop, read size
DEVCTL_POWER_ON = 0x2810  # relaxed ordering, no-snoop, 512-byte reads: the architected defaults
DEVCTL_FLR = 1 << 15
DEVSTA_ERRORS = 0x000F
DEVSTA_CORRECTABLE, DEVSTA_NONFATAL, DEVSTA_FATAL, DEVSTA_UNSUPPORTED = 1, 2, 4, 8
LINK_2_5GT_X1 = 0x0011
LNKCTL_WRITABLE = 0x01CB  # ASPM, RCB, common clock, extended synch, clock power management
DEVCAP2_TIMEOUT_DISABLE = 1 << 4
DEVCAP2_END_TO_END_PREFIX = 1 << 21  # Linux enables PASID only along a path of these
DEVCAP2_ONE_PREFIX = 1 << 22  # Max End-End TLP Prefixes = 1
DEVCTL2_WRITABLE = 0x0010
LNKCAP2_2_5GT = 1 << 1
LNKCTL2_SPEED = 0x000F


@dataclass(slots=True)
class MsixCapability(Record):
    """MSI-X capability; `table` and `pba` carry the BAR index in their low three bits."""

    layout: ClassVar[Struct] = Struct("<BBHII")
    cap_id: int
    next: int
    control: int
    table: int
    pba: int


MSIX_CONTROL = 0x02
MSIX_FUNCTION_MASK = 1 << 14
MSIX_ENABLE = 1 << 15


class MsixControl(IntFlag):
    """What a driver sets in MSI-X's message control."""

    FUNCTION_MASK = MSIX_FUNCTION_MASK
    ENABLE = MSIX_ENABLE


MSIX_TABLE_ENTRY_NBYTES = 16
MSIX_VECTOR_CONTROL = 12  # offset in an entry, u32
MSIX_VECTOR_MASKED = 1

# Advanced Error Reporting (72 bytes with the TLP prefix log)
AER_NBYTES = 0x48
AER_UNCORRECTABLE_STATUS = 0x04
AER_UNCORRECTABLE_MASK = 0x08
AER_UNCORRECTABLE_SEVERITY = 0x0C
AER_CORRECTABLE_STATUS = 0x10
AER_CORRECTABLE_MASK = 0x14
AER_CONTROL = 0x18
AER_FIRST_ERROR = 0x1F  # of AER_CONTROL: the bit of the first uncorrectable error
AER_UNCORRECTABLE_BITS = 0x027FF030
AER_SEVERITY_POWER_ON = 0x00462030
AER_CORRECTABLE_BITS = 0x0000F1C1
AER_CORRECTABLE_MASK_POWER_ON = 0x0000E000

# Address Translation Services
ATS_NBYTES = 8
ATS_CAPABILITY = 0x04
ATS_CONTROL = 0x06
ATS_PAGE_ALIGNED = 1 << 5
ATS_STU = 0x001F
ATS_ENABLE = 1 << 15


class AtsControl(IntFlag):
    """ATS control; the smallest translation unit is in the low bits."""

    ENABLE = ATS_ENABLE


# Page Request Interface
PRI_NBYTES = 16
PRI_CONTROL = 0x04
PRI_STATUS = 0x06
PRI_CAPACITY = 0x08
PRI_ALLOCATION = 0x0C
PRI_ENABLE = 1 << 0
PRI_RESET = 1 << 1


class PriControl(IntFlag):
    """PRI control."""

    ENABLE = PRI_ENABLE
    RESET = PRI_RESET


PRI_RESPONSE_FAILURE = 1 << 0
PRI_UNEXPECTED_GROUP = 1 << 1
PRI_STOPPED = 1 << 8
PRI_RESPONSE_PASID_REQUIRED = 1 << 15

# Process Address Space ID
PASID_NBYTES = 8
PASID_CAPABILITY = 0x04
PASID_CONTROL = 0x06
PASID_ENABLE = 1 << 0
PASID_EXECUTE = 1 << 1  # the same bit in capability and control
PASID_PRIVILEGED = 1 << 2


class PasidControl(IntFlag):
    """PASID control."""

    ENABLE = PASID_ENABLE
    EXECUTE = PASID_EXECUTE
    PRIVILEGED = PASID_PRIVILEGED


PASID_WIDTH_SHIFT = 8
PASID_WIDTH_MAX = 20

# Access Control Services
ACS_NBYTES = 8
ACS_CAPABILITY = 0x04
ACS_CONTROL = 0x06
ACS_REQUEST_REDIRECT = 1 << 2
ACS_COMPLETION_REDIRECT = 1 << 3
ACS_DIRECT_TRANSLATED = 1 << 6
