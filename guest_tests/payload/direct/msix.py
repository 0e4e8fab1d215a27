"""MSI-X without a driver: user space cannot take an interrupt, but the message is a memory write, and memory it has.

Each vector's address is a word of RAM. An interrupt stores the vector's data there; we poll the word.
"""

from __future__ import annotations

import time

from . import wait
from .errors import DirectError, NoAnswer, NotNegotiated
from .function import CAP_MSIX, Function
from .memory import Allocator, DmaBuffer

NO_VECTOR = 0xFFFF

_CONTROL, _TABLE, _PBA = 2, 4, 8  # in the capability
_ENABLE, _MASK_ALL, _SIZE_MASK = 1 << 15, 1 << 14, 0x7FF
_ENTRY_NBYTES = 16
_ADDRESS, _ADDRESS_HIGH, _DATA, _VECTOR_CONTROL = 0, 4, 8, 12
_VECTOR_MASK = 1

_WORD_NBYTES = 64  # of RAM for each vector, so that a stray write does not look like its neighbour's
_DATA_BASE = 0x5600  # any number but 0 tells that the word was written


class Vector:
    """One vector of an enabled table. Interrupts are seen, not counted: two before a `clear` look like one."""

    def __init__(self, table: MsixTable, number: int, word: memoryview) -> None:
        self.number = number
        self.gpa = table.buffer.gpa + number * _WORD_NBYTES
        self.data = _DATA_BASE + number
        self._table = table
        self._word = word

    @property
    def has_fired(self) -> bool:
        """Whether its message arrived since the last `clear`. Raises DirectError if something else is there."""
        value = self._word[0]
        if value not in (0, self.data):
            raise DirectError(f"vector {self.number} wrote {value:#x}, its data is {self.data:#x}")
        return value == self.data

    def clear(self) -> None:
        """Forget earlier interrupts."""
        self._word[0] = 0

    def wait(self, timeout_s: float = 2.0) -> bool:
        """Whether it fired within `timeout_s`; clears it if so."""
        if not wait.until(lambda: self.has_fired, timeout_s):
            return False
        self.clear()
        return True

    def settle(self, quiet_s: float = 0.05, timeout_s: float = 2.0) -> None:
        """Clear until nothing came for `quiet_s`: before a test that wants silence. Raises NoAnswer if it never ends.

        QEMU may interrupt once too often after a start behind vhost-user, and a message takes its time.
        """
        deadline = time.monotonic() + timeout_s
        while self.wait(quiet_s):
            if time.monotonic() > deadline:
                raise NoAnswer(f"vector {self.number} keeps firing")

    def mask(self) -> None:
        """Hold its messages back; the device keeps them pending."""
        self._table.set_vector_control(self.number, _VECTOR_MASK)

    def unmask(self) -> None:
        """Let them through, a pending one at once."""
        self._table.set_vector_control(self.number, 0)

    @property
    def is_pending(self) -> bool:
        """Its bit in the pending-bit array."""
        return bool(self._table.pending() >> self.number & 1)

    def wait_pending(self, timeout_s: float = 2.0) -> bool:
        """Whether it became pending within `timeout_s`: behind vhost-user an interrupt is later than its answer."""
        return wait.until(lambda: self.is_pending, timeout_s)


class MsixTable:
    """The MSI-X table of a function, every vector pointed at a word of our memory, enabled and unmasked."""

    def __init__(self, function: Function, memory: Allocator) -> None:
        """Raises NotNegotiated when the function has no MSI-X."""
        self._function = function
        at = next((found.offset for found in function.capabilities() if found.id == CAP_MSIX), None)
        if at is None:
            raise NotNegotiated(f"{function.bdf} has no MSI-X capability")
        self._control = at + _CONTROL
        self.nvectors = (function.read_config(self._control, 2) & _SIZE_MASK) + 1
        table, pba = function.read_config(at + _TABLE, 4), function.read_config(at + _PBA, 4)
        self._table, self._table_offset = function.bar(table & 7), table & ~7
        self._pba, self._pba_offset = function.bar(pba & 7), pba & ~7
        self.buffer: DmaBuffer = memory.alloc(self.nvectors * _WORD_NBYTES)
        words = [self.buffer.memory[n * _WORD_NBYTES :][:4].cast("I") for n in range(self.nvectors)]
        self.vectors = [Vector(self, number, word) for number, word in enumerate(words)]
        self.program()

    def program(self) -> None:
        """Write every entry, masked as a whole meanwhile, and enable. Needed again after a function-level reset."""
        self._set_control(_ENABLE | _MASK_ALL)
        for vector in self.vectors:
            self.set_message(vector.number, vector.gpa, vector.data)
            self.set_vector_control(vector.number, 0)
        self._set_control(_ENABLE)
        for vector in self.vectors:
            vector.clear()  # what an earlier driver left pending arrives with the first enable

    def set_message(self, number: int, gpa: int, data: int) -> None:
        """What vector `number` writes, and where; mask it meanwhile unless nothing interrupts."""
        entry = self._table_offset + number * _ENTRY_NBYTES
        self._table.write32(entry + _ADDRESS, gpa & 0xFFFFFFFF)
        self._table.write32(entry + _ADDRESS_HIGH, gpa >> 32)
        self._table.write32(entry + _DATA, data)

    def mask_all(self, masked: bool) -> None:
        """The function mask: holds every vector back, whatever its own mask."""
        self._set_control(_ENABLE | (_MASK_ALL if masked else 0))

    def set_vector_control(self, number: int, value: int) -> None:
        """One 32-bit write of a vector's control word."""
        self._table.write32(self._table_offset + number * _ENTRY_NBYTES + _VECTOR_CONTROL, value)

    def pending(self) -> int:
        """The pending bits of the first 32 vectors, by one 32-bit read."""
        return self._pba.read32(self._pba_offset)

    def close(self) -> None:
        """Disable MSI-X and give the memory back."""
        self._set_control(0)
        for vector in self.vectors:
            vector._word.release()
        self.buffer.close()

    def _set_control(self, bits: int) -> None:
        self._function.write_config(self._control, 2, bits)
