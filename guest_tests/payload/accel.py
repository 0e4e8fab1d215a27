"""A small driver for the accelerator: registers, descriptor ring, completions (docs/accelerator.md)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

VENDOR_ID = 0x1234
DEVICE_ID = 0x7664
ID_VALUE = 0x76414343

# Registers, offsets in BAR0.
ID = 0x00
VERSION = 0x04
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

RUNNING, HALTED, RESETTING = 1, 2, 4  # STATUS
ENABLE, RESET, IRQ_ENABLE = 1, 2, 4  # CONTROL
(
    ERROR_RING_FETCH,
    ERROR_COMPLETION_WRITE,
    ERROR_BAD_CONFIG,
    ERROR_BAD_TAIL,
    ERROR_NOT_RUNNING,
    ERROR_BUS_MASTER_OFF,
    ERROR_STOPPED,
) = range(1, 8)

NOP, COPY, FILL, COMPARE, CHECKSUM = range(5)
FLAG_IRQ, FLAG_SRC_DEVMEM, FLAG_DST_DEVMEM, FLAG_PASID_VALID, FLAG_EXECUTE, FLAG_PRIVILEGED = 1, 2, 4, 8, 16, 32

PENDING, OK, TRANSLATION_FAULT, UNSUPPORTED_REQUEST, MISMATCH, BAD_DESCRIPTOR, ABORTED, COMPLETER_ABORT = range(8)
STATUS_NAMES = (
    "pending",
    "OK",
    "translation fault",
    "unsupported request",
    "mismatch",
    "bad descriptor",
    "aborted",
    "completer abort",
)
READ, WRITE = 1, 2  # Completion.access

DESCRIPTOR = Struct("<BBHIQQQQ24x")  # op, flags, tag, pasid, src, dst, nbytes, arg, reserved
COMPLETION = Struct("<HBBIQQII")  # tag, status, 0, pasid, result, fault_iova, access, 0
STATUS_OFFSET = 2

RING_NENTRIES = 64
COMPLETIONS_OFFSET = 0x1000
MEMORY_NBYTES = 0x2000  # one page of descriptors, one of completions
TIMEOUT_S = 10.0
SPIN_NS = 2_000_000  # most operations end within this; after it the poller sleeps between looks


class Registers(Protocol):
    """What the driver needs of a mapped BAR: one access of the named width per call."""

    def read32(self, offset: int) -> int: ...
    def write32(self, offset: int, value: int) -> None: ...
    def read64(self, offset: int) -> int: ...
    def write64(self, offset: int, value: int) -> None: ...


@dataclass(frozen=True)
class Operation:
    """One piece of work; `src` and `dst` are IOVAs, or offsets into device memory with the DEVMEM flags.

    `pasid` other than 0 goes with the accesses to both; `flags` need not say so.
    """

    op: int
    src: int = 0
    dst: int = 0
    nbytes: int = 0
    arg: int = 0
    flags: int = 0
    pasid: int = 0


@dataclass(frozen=True)
class Completion:
    """What the device wrote about one operation, and how long it took from doorbell to status byte."""

    status: int
    result: int
    fault_iova: int
    access: int
    ms: float
    pasid: int = 0  # of the refused access

    def describe(self) -> str:
        """In words, for a person."""
        name = STATUS_NAMES[self.status] if self.status < len(STATUS_NAMES) else f"status {self.status}"
        if self.status != TRANSLATION_FAULT:
            return name
        where = f"{name}: {'write' if self.access == WRITE else 'read'} at IOVA {self.fault_iova:#x}"
        return f"{where}, PASID {self.pasid:#x}" if self.pasid else where


class AcceleratorTimeout(Exception):
    """The device did not answer in time."""


class Accelerator:
    """Drives the engine over `registers` with ring and completions in `memory`, which the device sees at `iova`."""

    def __init__(self, registers: Registers, memory: memoryview, iova: int, pasid: int = 0) -> None:
        """`pasid`: the device reaches them with it; 0: without one."""
        self.registers = registers
        self._pasid = pasid
        self._memory = memory
        self._iova = iova
        self._tail = 0
        self._tag = 0
        self._tags = [0] * RING_NENTRIES  # what the completion of each entry must carry

    def reset(self) -> None:
        """Reset the engine and wait until it says so. Raises AcceleratorTimeout."""
        self.registers.write32(CONTROL, RESET)
        deadline = time.monotonic() + TIMEOUT_S
        while self.registers.read32(STATUS) & RESETTING or self.registers.read32(CONTROL) & RESET:
            if time.monotonic() > deadline:
                raise AcceleratorTimeout("the engine does not come out of reset")

    def start(self, control: int = ENABLE) -> None:
        """Reset, give the engine its rings, switch it on. Raises AcceleratorTimeout."""
        self.reset()
        self.start_without_reset(control)

    def start_without_reset(self, control: int = ENABLE) -> None:
        """Give an engine that stands still its rings, switch it on."""
        self._memory[:MEMORY_NBYTES] = bytes(MEMORY_NBYTES)
        self._tail = 0
        self.registers.write64(RING_BASE, self._iova)
        self.registers.write32(RING_SIZE, RING_NENTRIES)
        self.registers.write64(COMPLETION_BASE, self._iova + COMPLETIONS_OFFSET)
        self.registers.write32(RING_PASID, self._pasid)
        self.registers.write32(CONTROL, control)

    def submit(self, *operations: Operation) -> int:
        """Put operations in the ring and ring the doorbell once; returns the ring index of the last one.

        RING_NENTRIES - 1 may be outstanding; the caller sees to it.
        """
        index = self._tail
        for operation in operations:
            index = self._put(operation)
        self.registers.write32(RING_TAIL, self._tail)
        return index

    def _put(self, operation: Operation) -> int:
        index = self._tail
        self._tag = self._tags[index] = (self._tag + 1) & 0xFFFF
        at = COMPLETIONS_OFFSET + index * COMPLETION.size
        self._memory[at : at + COMPLETION.size] = bytes(COMPLETION.size)
        DESCRIPTOR.pack_into(  # ordinary memory: the device looks only after the doorbell
            self._memory,
            index * DESCRIPTOR.size,
            operation.op,
            operation.flags | (FLAG_PASID_VALID if operation.pasid else 0),
            self._tag,
            operation.pasid,
            operation.src,
            operation.dst,
            operation.nbytes,
            operation.arg,
        )
        self._tail = (index + 1) % RING_NENTRIES
        return index

    def status_of(self, index: int) -> int:
        """The status byte of ring entry `index`; PENDING until the device has written everything else."""
        return self._memory[COMPLETIONS_OFFSET + index * COMPLETION.size + STATUS_OFFSET]

    def wait(self, index: int, started_ns: int) -> Completion:
        """Poll until entry `index` is complete. Raises AcceleratorTimeout."""
        while self.status_of(index) == PENDING:
            waited = time.monotonic_ns() - started_ns
            if waited > TIMEOUT_S * 1e9:
                raise AcceleratorTimeout(f"no completion after {TIMEOUT_S:.0f} s ({self.describe()})")
            if waited > SPIN_NS:
                time.sleep(0.0005)
        ms = (time.monotonic_ns() - started_ns) / 1e6
        at = COMPLETIONS_OFFSET + index * COMPLETION.size
        tag, status, _, pasid, result, fault_iova, access, _ = COMPLETION.unpack_from(self._memory, at)
        if tag != self._tags[index]:
            raise AcceleratorTimeout(f"completion {index} carries tag {tag}, expected {self._tags[index]}")
        return Completion(status, result, fault_iova, access, ms, pasid)

    def run(self, operation: Operation) -> Completion:
        """Submit one operation and wait for it. Raises AcceleratorTimeout."""
        started = time.monotonic_ns()
        return self.wait(self.submit(operation), started)

    def describe(self) -> str:
        """The registers that explain a stuck engine."""
        read = self.registers.read32
        return f"STATUS {read(STATUS):#x}, ERROR {read(ERROR)}, HEAD {read(RING_HEAD)}, TAIL {read(RING_TAIL)}"
