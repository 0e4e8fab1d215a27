"""vhost-user messages: header, numbers, payloads, and how replies are framed. Host-endian, and our hosts are little.

Sizes are those of QEMU's documents and client (10.2 to 11.1). A front end waits for some replies without any time-out,
so whatever must be answered is answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar

from vdev.wire.record import Record

HEADER_NBYTES = 12
VERSION = 1
MAX_BODY_NBYTES = 4096  # ours; the largest message of any device we know has a few hundred
MAX_CONFIG_NBYTES = 256
MAX_TABLE_REGIONS = 8  # in one SET_MEM_TABLE, an fd each
MAX_MEM_SLOTS = 509  # what Linux' vhost and other back ends allow: enough for a machine full of DIMMs
MAX_FDS = MAX_TABLE_REGIONS

# Header flags
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

F_PROTOCOL_FEATURES = 1 << 30  # among the virtio features; never shown to the guest

RING_INDEX_MASK = 0xFF  # of the u64 of SET_VRING_KICK, _CALL and _ERR
RING_NO_FD = 0x100


class Command(IntEnum):
    """Front-end message types; those without a row in the session's table are refused."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


COMMAND_NAMES = {int(command): command.name for command in Command}

BACKEND_CONFIG_CHANGE_MSG = 2  # the one message we send of our own accord


class ProtocolFeature(IntFlag):
    """Protocol features by the names of the document, those we know."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


@dataclass(slots=True)
class Header(Record):
    """Before every message; `size` is of the body alone."""

    layout: ClassVar[Struct] = Struct("<III")
    command: int
    flags: int
    size: int

    @property
    def needs_reply(self) -> bool:
        """Whether the front end asks for an acknowledgement (REPLY_ACK)."""
        return bool(self.flags & NEED_REPLY)


@dataclass(slots=True)
class U64(Record):
    """One number: features, ring index with flags, acknowledgement."""

    layout: ClassVar[Struct] = Struct("<Q")
    value: int


@dataclass(slots=True)
class RingState(Record):
    """A ring's index and a number: size, base index or enabled."""

    layout: ClassVar[Struct] = Struct("<II")
    index: int
    num: int


@dataclass(slots=True)
class RingAddress(Record):
    """Where a ring is, in the front end's virtual addresses (HVA)."""

    layout: ClassVar[Struct] = Struct("<IIQQQQ")
    index: int
    flags: int  # bit 0: log writes to the used ring, which is never negotiated here
    desc: int
    used: int
    avail: int
    log: int


@dataclass(slots=True)
class MemoryRegion(Record):
    """A piece of guest RAM: [gpa, gpa+nbytes) is at `hva` in the front end and at `offset` in the file."""

    layout: ClassVar[Struct] = Struct("<QQQQ")
    gpa: int
    nbytes: int
    hva: int
    offset: int


@dataclass(slots=True)
class MemoryTable(Record):
    """SET_MEM_TABLE, before its regions."""

    layout: ClassVar[Struct] = Struct("<II")
    count: int
    padding: int


@dataclass(slots=True)
class SingleRegion(Record):
    """ADD_MEM_REG and REM_MEM_REG: a padding, then a region."""

    layout: ClassVar[Struct] = Struct("<QQQQQ")
    padding: int
    gpa: int
    nbytes: int
    hva: int
    offset: int

    @property
    def region(self) -> MemoryRegion:
        """Without the padding."""
        return MemoryRegion(self.gpa, self.nbytes, self.hva, self.offset)


@dataclass(slots=True)
class ConfigAccess(Record):
    """GET_CONFIG and SET_CONFIG, before the `nbytes` bytes of configuration."""

    layout: ClassVar[Struct] = Struct("<III")
    offset: int
    nbytes: int
    flags: int  # 0: a driver's write; 1: migration


CONFIG_BY_DRIVER = 0


def message(command: int, body: bytes = b"", flags: int = 0) -> bytes:
    """A whole message of this version."""
    return Header.layout.pack(command, flags | VERSION, len(body)) + body


def reply(header: Header, body: bytes) -> bytes:
    """The answer to `header`; QEMU accepts exactly these flags."""
    return message(header.command, body, REPLY)


def acknowledgement(header: Header, code: int) -> bytes:
    """The answer REPLY_ACK promises: 0 for success, else an errno."""
    return reply(header, U64.layout.pack(code))
