"""A PCI function of a machine under qtest, as the guest's user-space driver wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from guest_tests.payload.bar import Registers
from guest_tests.payload.direct.function import Function
from guest_tests.payload.guest import endpoint_id

if TYPE_CHECKING:
    from tests.qtest.machine import QtestMachine

_BAR0, _NBARS = 0x10, 6
_IO, _64_BIT = 1, 4  # in a BAR's low bits
_FLAGS = 0xF


class Accesses(Protocol):
    """Loads and stores at physical addresses, 1, 2, 4 or 8 bytes wide."""

    def read(self, address: int, nbytes: int) -> int: ...
    def write(self, address: int, nbytes: int, value: int) -> None: ...


class QtestBar:
    """Registers at a physical address: each call is one access of its width."""

    def __init__(self, machine: Accesses, address: int) -> None:
        self._machine, self._address = machine, address

    def read8(self, offset: int) -> int:
        return self._machine.read(self._address + offset, 1)

    def read16(self, offset: int) -> int:
        return self._machine.read(self._address + offset, 2)

    def read32(self, offset: int) -> int:
        return self._machine.read(self._address + offset, 4)

    def read64(self, offset: int) -> int:
        return self._machine.read(self._address + offset, 8)

    def write8(self, offset: int, value: int) -> None:
        self._machine.write(self._address + offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        self._machine.write(self._address + offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        self._machine.write(self._address + offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        self._machine.write(self._address + offset, 8, value)


class QtestFunction(Function):
    """A function of the root bus, its memory BARs sized and placed as firmware does."""

    def __init__(self, machine: QtestMachine, bdf: str) -> None:
        self.bdf = f"0000:{bdf}"
        self._machine = machine
        self._config = machine.config_address(endpoint_id(self.bdf))
        assert self.vendor_id != 0xFFFF, f"there is no function {bdf}"
        self._bars: dict[int, QtestBar] = {}
        number = 0
        while number < _NBARS:
            number += self._place(number)
        self.awake()

    def bar(self, index: int) -> Registers:
        return self._bars[index]

    def _place(self, number: int) -> int:
        """Size and place one; how many registers it takes."""
        at = _BAR0 + 4 * number
        self.write_config(at, 4, 0xFFFFFFFF)
        low = self.read_config(at, 4)
        if low & _IO or not low:
            self.write_config(at, 4, 0)
            return 1
        is_wide = bool(low & _64_BIT)
        high = 0xFFFFFFFF
        if is_wide:
            self.write_config(at + 4, 4, 0xFFFFFFFF)
            high = self.read_config(at + 4, 4)
        address = self._machine.place((1 << 64) - (high << 32 | low & ~_FLAGS))
        self.write_config(at, 4, address)
        if is_wide:
            self.write_config(at + 4, 4, 0)
        self._bars[number] = QtestBar(self._machine, address)
        return 1 + is_wide

    def _config_read(self, offset: int, nbytes: int) -> bytes:
        return self._machine.read(self._config + offset, nbytes).to_bytes(nbytes, "little")

    def _config_write(self, offset: int, data: bytes) -> None:
        self._machine.write(self._config + offset, len(data), int.from_bytes(data, "little"))
