"""The accelerator's guest-visible layouts: registers, descriptor, completion record (docs/accelerator.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar

from vdev.wire.record import Record

ID_VALUE = 0x76414343
VERSION_VALUE = 1

MIN_RING_ENTRIES = 2
MAX_RING_ENTRIES = 1024
MAX_OPERATION_NBYTES = 1 << 30  # bounds how long one descriptor can keep the engine busy


class Register(IntEnum):
    """Offsets in BAR0. 64-bit registers are two 32-bit halves, the low one first."""

    ID = 0x00
    VERSION = 0x04
    CAPS = 0x08
    STATUS = 0x0C
    CONTROL = 0x10
    RING_BASE = 0x18
    RING_SIZE = 0x20
    RING_HEAD = 0x24
    RING_TAIL = 0x28
    COMPLETION_BASE = 0x30
    ERROR = 0x38
    ERROR_IOVA = 0x40
    DEVMEM_NBYTES = 0x48
    COMPLETED = 0x50
    FAULTED = 0x54
    RING_PASID = 0x58
    KERNEL_PASID = 0x5C


class Status(IntFlag):
    """Bits of STATUS."""

    RUNNING = 1
    HALTED = 2
    RESETTING = 4


class Control(IntFlag):
    """Bits of CONTROL."""

    ENABLE = 1
    RESET = 2
    IRQ_ENABLE = 4


class ErrorCode(IntEnum):
    """Values of ERROR."""

    NONE = 0
    RING_FETCH = 1
    COMPLETION_WRITE = 2
    BAD_CONFIG = 3
    BAD_TAIL = 4
    NOT_RUNNING = 5
    BUS_MASTER_OFF = 6
    STOPPED = 7


class Op(IntEnum):
    """Descriptor.op; bit n of CAPS says that operation n exists."""

    NOP = 0
    COPY = 1
    FILL = 2
    COMPARE = 3
    CHECKSUM = 4


CAPS_VALUE = sum(1 << op for op in Op)


class Flag(IntFlag):
    """Bits of Descriptor.flags."""

    IRQ = 1
    SRC_DEVMEM = 2
    DST_DEVMEM = 4
    PASID_VALID = 8
    EXECUTE = 16  # with PASID_VALID only, as the next
    PRIVILEGED = 32


FLAGS_DEFINED = sum(Flag)
PASID_STOP = 1 << 20


class Access(IntEnum):
    """Completion.access: what the refused DMA wanted."""

    NONE = 0
    READ = 1
    WRITE = 2


class CompletionStatus(IntEnum):
    """Completion.status."""

    PENDING = 0
    OK = 1
    TRANSLATION_FAULT = 2
    UNSUPPORTED_REQUEST = 3
    MISMATCH = 4
    BAD_DESCRIPTOR = 5
    ABORTED = 6
    COMPLETER_ABORT = 7


@dataclass(slots=True)
class Descriptor(Record):
    """One ring entry; `src` and `dst` are IOVAs or, with the DEVMEM flags, offsets into device memory."""

    layout: ClassVar[Struct] = Struct("<BBHIQQQQ24s")
    op: int
    flags: int
    tag: int
    pasid: int
    src: int
    dst: int
    nbytes: int
    arg: int
    reserved: bytes


@dataclass(slots=True)
class Completion(Record):
    """What the engine writes for the ring entry of the same index; `status` becomes visible last."""

    layout: ClassVar[Struct] = Struct("<HBBIQQII")
    tag: int
    status: int
    reserved0: int
    pasid: int  # of the refused access
    result: int
    fault_iova: int
    access: int
    reserved2: int


DESCRIPTOR_NBYTES = Descriptor.layout.size
COMPLETION_NBYTES = Completion.layout.size
COMPLETION_STATUS_OFFSET = 2
