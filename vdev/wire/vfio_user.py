"""vfio-user messages: the header, every payload QEMU's client sends or accepts, and how replies are framed.

The protocol is host-endian; every host we run on is little-endian, so the layouts are fixed.
Sizes and quirks are those of QEMU's `hw/vfio-user` (10.1 to 11.1), which is stricter than the specification.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar

from vdev.wire.record import Record

HEADER_NBYTES = 16
MAX_FDS = 16  # fds in one message; QEMU calls a larger promise malformed
MAX_TRANSFER_NBYTES = 1 << 20  # data bytes in one REGION_READ or REGION_WRITE
MAX_MESSAGE_NBYTES = MAX_TRANSFER_NBYTES + 4096  # what we accept: data, headers, room for VERSION's text
MAX_DMA_MAPS = 65535  # regions per connection, the most QEMU lets a server promise
MAX_MULTI_WRITES = 200  # entries of one REGION_WRITE_MULTI
MAX_VERSION_REPLY_NBYTES = 214  # QEMU 11.1's reply buffer: the size of its own VERSION request
PAGE_SIZES = 4096
MAX_ID = 0xFFFF


class Command(IntEnum):
    """Message types (Message Types)."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11  # server to client
    DMA_WRITE = 12  # server to client
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


COMMAND_NAMES = {int(command): command.name for command in Command}

# Header flags
TYPE_MASK = 0xF
TYPE_REQUEST = 0
TYPE_REPLY = 1
NO_REPLY = 0x10
ERROR = 0x20


class DmaFlags(IntFlag):
    """DMA_MAP flags; MMAP and FILE_IO are in the specification and never set by QEMU."""

    READ = 1
    WRITE = 2
    MMAP = 4
    FILE_IO = 8


UNMAP_DIRTY_BITMAP = 1
UNMAP_ALL = 2

DEVICE_FLAG_RESET = 1
DEVICE_FLAG_PCI = 2
REGION_FLAG_READ = 1
REGION_FLAG_WRITE = 2
REGION_ROM = 6
REGION_CONFIG = 7
NUM_REGIONS = 9  # 0-5 BARs, 6 ROM, 7 config, 8 VGA

IRQ_MSIX = 2
NUM_IRQS = 5  # 0 INTx, 1 MSI, 2 MSI-X, 3 ERR, 4 REQ
IRQ_FLAG_EVENTFD = 1

SET_DATA_NONE = 1
SET_DATA_BOOL = 2
SET_DATA_EVENTFD = 4
SET_DATA_MASK = 7
SET_ACTION_MASK = 8
SET_ACTION_UNMASK = 0x10
SET_ACTION_TRIGGER = 0x20
SET_ACTIONS = 0x38


@dataclass(slots=True)
class Header(Record):
    """Header (16 bytes). `size` counts the whole message; `errno` is positive and means something with ERROR only."""

    layout: ClassVar[Struct] = Struct("<HHIII")
    id: int
    command: int
    size: int
    flags: int
    errno: int

    @property
    def is_reply(self) -> bool:
        return self.flags & TYPE_MASK == TYPE_REPLY

    @property
    def wants_reply(self) -> bool:
        return not self.flags & NO_REPLY


@dataclass(slots=True)
class Version(Record):
    """VERSION, before its NUL-terminated JSON text."""

    layout: ClassVar[Struct] = Struct("<HH")
    major: int
    minor: int


@dataclass(slots=True)
class DmaMap(Record):
    """DMA_MAP: `nbytes` of guest memory at `iova`, backed by the message's fd from `offset` (no fd: not shared)."""

    layout: ClassVar[Struct] = Struct("<IIQQQ")
    argsz: int
    flags: int
    offset: int
    iova: int
    nbytes: int


@dataclass(slots=True)
class DmaUnmap(Record):
    """DMA_UNMAP; the reply repeats it."""

    layout: ClassVar[Struct] = Struct("<IIQQ")
    argsz: int
    flags: int
    iova: int
    nbytes: int


@dataclass(slots=True)
class DeviceInfo(Record):
    """DEVICE_GET_INFO, request and reply."""

    layout: ClassVar[Struct] = Struct("<IIII")
    argsz: int
    flags: int
    num_regions: int
    num_irqs: int


@dataclass(slots=True)
class RegionInfo(Record):
    """DEVICE_GET_REGION_INFO, request and reply; capabilities would follow at `cap_offset`."""

    layout: ClassVar[Struct] = Struct("<IIIIQQ")
    argsz: int
    flags: int
    index: int
    cap_offset: int
    nbytes: int
    offset: int


@dataclass(slots=True)
class RegionIoFds(Record):
    """DEVICE_GET_REGION_IO_FDS, request and reply, before its sub-regions (we have none)."""

    layout: ClassVar[Struct] = Struct("<IIII")
    argsz: int
    flags: int
    index: int
    count: int


@dataclass(slots=True)
class IrqInfo(Record):
    """DEVICE_GET_IRQ_INFO, request and reply."""

    layout: ClassVar[Struct] = Struct("<IIII")
    argsz: int
    flags: int
    index: int
    count: int


@dataclass(slots=True)
class SetIrqs(Record):
    """DEVICE_SET_IRQS, before its BOOL bytes. Eventfds travel beside the message and `argsz` counts neither."""

    layout: ClassVar[Struct] = Struct("<IIIII")
    argsz: int
    flags: int
    index: int
    start: int
    count: int


@dataclass(slots=True)
class RegionAccess(Record):
    """REGION_READ and REGION_WRITE, before the data."""

    layout: ClassVar[Struct] = Struct("<QII")
    offset: int
    region: int
    count: int


@dataclass(slots=True)
class WriteMulti(Record):
    """REGION_WRITE_MULTI, before its `count` WriteMultiEntry records."""

    layout: ClassVar[Struct] = Struct("<Q")
    count: int


@dataclass(slots=True)
class WriteMultiEntry(Record):
    """One write of a REGION_WRITE_MULTI; `count` of the eight data bytes are meant."""

    layout: ClassVar[Struct] = Struct("<QII8s")
    offset: int
    region: int
    count: int
    data: bytes


@dataclass(slots=True)
class DeviceFeature(Record):
    """DEVICE_FEATURE, before its data; the low 16 bits of `flags` number the feature."""

    layout: ClassVar[Struct] = Struct("<II")
    argsz: int
    flags: int


@dataclass(slots=True)
class MigrationData(Record):
    """MIG_DATA_READ and MIG_DATA_WRITE, before the data."""

    layout: ClassVar[Struct] = Struct("<II")
    argsz: int
    nbytes: int


@dataclass(slots=True)
class DmaAccess(Record):
    """DMA_READ and DMA_WRITE, server to client, as specified and as QEMU 11.1 has them."""

    layout: ClassVar[Struct] = Struct("<QQ")
    address: int
    count: int


@dataclass(slots=True)
class DmaAccessShort(Record):
    """DMA_READ and DMA_WRITE of QEMU 10.1 to 11.0: a 32-bit count, so the data starts 4 bytes earlier."""

    layout: ClassVar[Struct] = Struct("<QI")
    address: int
    count: int


class DmaLayout(IntEnum):
    """Which DMA_READ/DMA_WRITE layout the client speaks; the value is where the data starts in the payload."""

    SHORT_COUNT = 12
    SPECIFIED = 16


# Both layouts count the padded 16-byte structure in the message size; the short one leaves 4 bytes unused at the end.
DMA_FIXED_NBYTES = 16


def message(ident: int, command: int, payload: bytes = b"", flags: int = TYPE_REQUEST) -> bytes:
    """A whole message without error."""
    header = Header.layout.pack(ident, command, HEADER_NBYTES + len(payload), flags, 0)
    return header + payload


def reply(header: Header, payload: bytes) -> bytes:
    """The successful reply to `header`."""
    return message(header.id, header.command, payload, TYPE_REPLY)


def error_reply(header: Header, code: int) -> bytes:
    """The refusal of `header` with errno `code`: header only, as QEMU demands."""
    return Header.layout.pack(header.id, header.command, HEADER_NBYTES, TYPE_REPLY | ERROR, code)


def dma_payload(layout: DmaLayout, address: int, count: int, data: bytes | memoryview = b"") -> bytes:
    """Payload of a DMA_READ (no data) or DMA_WRITE, request or reply, in the client's layout."""
    if layout is DmaLayout.SPECIFIED:
        return DmaAccess(address, count).pack() + bytes(data)
    return DmaAccessShort(address, count).pack() + bytes(data) + bytes(DMA_FIXED_NBYTES - layout)


def dma_data(layout: DmaLayout, payload: bytes | memoryview, count: int) -> bytes:
    """The `count` data bytes of a DMA message; shorter when the payload is."""
    return bytes(payload[layout : layout + count])


def late_reply(data: bytes) -> bytes:
    """What may still be sent for a request whose time is over: the reply `data` as a header-only ETIMEDOUT.

    Requests (ours) and replies that are header-only already stay as they are.
    """
    header = Header.parse(data)
    if not header.is_reply or header.size == HEADER_NBYTES:
        return data
    return error_reply(header, errno.ETIMEDOUT)
