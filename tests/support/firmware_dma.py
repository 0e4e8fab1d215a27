"""What a program from before any driver has an accelerator do: everything the engine can, into RAM it was not given.

`prepare` stores rings in RAM. `run` is register accesses only: what RAM is afterwards is the device's doing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from guest_tests.payload.bar import Registers
from guest_tests.payload.direct.function import CAP_MSIX, Function
from vdev.wire import pci
from vdev.wire.accelerator import (
    COMPLETION_NBYTES,
    Control,
    Descriptor,
    ErrorCode,
    Flag,
    Op,
    Register,
    Status,
)

PAGE = 4096
RAM_NBYTES = 0x0400_0000  # all of this is within
SECRET = 0x0200_0000
STOLEN = 0x0220_0000
INTERRUPT = 0x0240_0000  # an MSI-X message is a write of four bytes, wherever the table says: of completions here,
ERROR_INTERRUPT = INTERRUPT + 64  # and of errors here
FAR = 0x03C0_0000
RING_ENTRIES = 8
_RUN_S = 20.0
_MESSAGE = 0x5EC0_0000
_REGISTERS_BAR, _TABLE_BAR = 0, 4


@dataclass(frozen=True, slots=True)
class Program:
    """A ring of descriptors. `lands` are the pages it changes where nothing is in its way."""

    name: str
    ring: int
    completions: int
    operations: tuple[tuple[Op, int, int], ...]  # what, source, destination
    lands: tuple[int, ...]

    @property
    def in_ram(self) -> bool:
        """Whether there is memory to store the ring in."""
        return self.ring < RAM_NBYTES

    @property
    def pages(self) -> set[int]:
        """All that changes with it: what it writes, its completion records, its interrupt."""
        return {*self.lands, self.completions, INTERRUPT}

    def descriptors(self, stamp: int) -> bytes:
        """Its ring; `stamp`, a byte, makes what it writes differ from run to run."""
        return b"".join(
            Descriptor(op, Flag.IRQ, stamp << 8 | index, 0, source, target, PAGE, 0x0101010101010101 * stamp, bytes(24))
            .pack()
            for index, (op, source, target) in enumerate(self.operations)
        )  # fmt: skip


HIGH = Program(
    "ring above 1 MiB",
    ring=0x0180_0000,
    completions=0x0180_1000,
    operations=((Op.FILL, 0, FAR), (Op.COPY, SECRET, STOLEN), (Op.COMPARE, SECRET, STOLEN), (Op.CHECKSUM, SECRET, 0)),
    lands=(FAR, STOLEN),
)
LOW = Program(
    "ring in conventional memory",
    ring=0x5_0000,
    completions=0x5_1000,
    operations=((Op.FILL, 0, 0x6_0000),),
    lands=(0x6_0000,),
)
PROGRAMS = (HIGH, LOW)
# For a driver that maps ring and records: what else the engine does, each by itself. All but the ring is not mapped.
OPERANDS = Program(
    "operands",
    ring=0x0190_0000,
    completions=0x0190_1000,
    operations=(
        (Op.FILL, 0, FAR),
        (Op.COPY, SECRET, STOLEN),
        (Op.COPY, 0x0190_0000, STOLEN),
        (Op.COMPARE, SECRET, STOLEN),
        (Op.CHECKSUM, SECRET, 0),
    ),
    lands=(),
)
# Where there is no RAM: 4 GiB, the BIOS's flash, the doorbell of MSIs.
ELSEWHERE = tuple(
    Program(name, at, at, ((Op.NOP, 0, 0),), ())
    for name, at in (("4 GiB", 1 << 32), ("flash", 0xFFFC_0000), ("MSI", 0xFEE0_0000))
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the registers say in the end."""

    error: str
    error_iova: int
    completed: int
    faulted: int

    @classmethod
    def done(cls, count: int, faulted: int = 0) -> Outcome:
        """All is well."""
        return cls("NONE", 0, count, faulted)

    @classmethod
    def no_ring(cls, program: Program) -> Outcome:
        """Not even the ring could be read."""
        return cls("RING_FETCH", program.ring, 0, 0)


class Memory(Protocol):
    """Who stores in RAM: a processor, or a test in its place."""

    def store(self, address: int, data: bytes) -> None: ...


class Attacker:
    """The accelerator in a program's hands."""

    def __init__(self, function: Function, memory: Memory) -> None:
        self._function, self._memory = function, memory
        self._registers = function.bar(_REGISTERS_BAR)
        self._table = function.bar(_TABLE_BAR)

    def prepare(self, programs: Sequence[Program], stamp: int) -> None:
        """Store secret and rings, and have interrupts write to RAM."""
        self._memory.store(SECRET, bytes([stamp]) * 64)
        for program in (program for program in programs if program.in_ram):
            self._memory.store(program.ring, program.descriptors(stamp))
            self._memory.store(program.completions, bytes(COMPLETION_NBYTES * len(program.operations)))
        interrupts_to_ram(self._function, self._table, _MESSAGE | stamp)

    def run(self, program: Program) -> Outcome:
        """Start the engine and follow it to its end, by register accesses alone. TimeoutError if it has none."""
        return run(self._registers, program)


def interrupts_to_ram(function: Function, table: Registers, data: int) -> None:
    """Both vectors of the accelerator become writes of `data` and a number to memory."""
    for vector in (0, 1):
        entry = vector * pci.MSIX_TABLE_ENTRY_NBYTES
        table.write64(entry, (INTERRUPT, ERROR_INTERRUPT)[vector])
        table.write32(entry + 8, data + (vector << 16))
        table.write32(entry + pci.MSIX_VECTOR_CONTROL, 0)
    control = function.capability(CAP_MSIX).offset + pci.MSIX_CONTROL
    function.write_config(control, 2, function.read_config(control, 2) | pci.MSIX_ENABLE)


def run(registers: Registers, program: Program) -> Outcome:
    """Start the engine and follow it to its end, by register accesses alone. TimeoutError if it has none."""
    read32, write32, write64 = registers.read32, registers.write32, registers.write64
    write32(Register.CONTROL, Control.RESET)
    write64(Register.RING_BASE, program.ring)
    write32(Register.RING_SIZE, RING_ENTRIES)
    write64(Register.COMPLETION_BASE, program.completions)
    write32(Register.CONTROL, Control.ENABLE | Control.IRQ_ENABLE)
    write32(Register.RING_TAIL, len(program.operations))
    deadline = time.monotonic() + _RUN_S
    while read32(Register.RING_HEAD) != len(program.operations) and not read32(Register.STATUS) & Status.HALTED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{program.name}: the engine neither ends nor halts")
    error, iova = read32(Register.ERROR), registers.read64(Register.ERROR_IOVA)
    return Outcome(ErrorCode(error).name, iova, read32(Register.COMPLETED), read32(Register.FAULTED))


def differing(before: list[bytes], after: list[bytes]) -> Iterator[int]:
    """Addresses of the pages whose hash has changed."""
    return (PAGE * at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
