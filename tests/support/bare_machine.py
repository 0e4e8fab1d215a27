"""A machine that runs nothing but `guest_tests.bare_metal`: its processor does what we say, one access at a time."""

from __future__ import annotations

import queue
import re
import struct
from collections.abc import Callable, Iterable

from guest_tests.bare_metal import READY
from guest_tests.payload.bar import Registers
from guest_tests.payload.direct.function import Function
from guest_tests.payload.guest import endpoint_id
from tests.qtest.function import QtestBar

BOOT_S = 60.0  # SeaBIOS takes less than a second, also emulated; a machine under load much more
REPLY_S = 20.0
BATCH = 256  # commands that are typed in one go
_ANSWER = re.compile(rb" ([0-9a-f]{8})\r\n")
_STORE = {1: "Y", 2: "X", 4: "W"}
_LOAD = {1: "T", 2: "S", 4: "R"}
_MCH_PCIEXBAR = 0x80000060  # of the host bridge, as port 0xcf8 wants it
_ECAM_BASE = 0xF0000000  # its bits of the address
_BAR0 = 0x10
_BAR_FLAGS = 0xF


class BareMachine:
    """Accesses of its processor. For a thread of its own: each call waits for the answer. TimeoutError when none comes.

    `heard` is given all that the serial port says; `write` types there.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self._ecam = 0

    def heard(self, data: bytes) -> None:
        """The serial port said `data`; may come from another thread."""
        self._heard.put(data)

    def booted(self) -> None:
        """Wait until the program takes commands; what was said before, by an earlier boot, is forgotten."""
        while READY + b"\r\n" not in self._rest:
            self._rest += self._next(BOOT_S)
        self._rest = b""
        self._write(b"E")  # half of all that would be said
        self._ask([f"cf8@{_MCH_PCIEXBAR:x}O"])
        self._ecam = self._ask(["cfc@I"])[0] & _ECAM_BASE

    def read(self, address: int, nbytes: int) -> int:
        """One load of 1, 2 or 4 bytes; 8 bytes are two of them."""
        if nbytes == 8:
            return self.read(address, 4) | self.read(address + 4, 4) << 32
        return self._ask([f"{address:x}@{_LOAD[nbytes]}"])[0]

    def write(self, address: int, nbytes: int, value: int) -> None:
        """One store of 1, 2 or 4 bytes; 8 bytes are two of them."""
        if nbytes == 8:
            self.write(address, 4, value & 0xFFFFFFFF)
            self.write(address + 4, 4, value >> 32)
        else:
            self._ask([f"{address:x}@{value:x}{_STORE[nbytes]}"])

    def store(self, address: int, data: bytes) -> None:
        """Put `data`, a multiple of four bytes, into memory, by stores of four bytes."""
        words = struct.unpack(f"<{len(data) // 4}I", data)
        self._ask(f"{address + 4 * at:x}@{word:x}W" for at, word in enumerate(words))

    def type_in(self, text: str) -> list[int]:
        """Commands as a person types them, with blanks between: their answers, one each."""
        return self._ask(text.split())

    def halt(self) -> None:
        """The processor stops for good, with interrupts off. Nobody says that it has."""
        self._write(b"Z")

    def function(self, bdf: str) -> BareFunction:
        """The function at `bdf`, where the BIOS placed it, with memory and bus master on."""
        return BareFunction(self, bdf)

    def config_address(self, endpoint: int) -> int:
        """Where the configuration space of a function is."""
        return self._ecam + (endpoint << 12)

    def _ask(self, commands: Iterable[str]) -> list[int]:
        """What commands, of one answer each, are answered."""
        waiting, answers = list(commands), list[int]()
        while waiting:
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            self._write("".join(batch).encode())
            for _ in batch:
                while (found := _ANSWER.search(self._rest)) is None:
                    self._rest += self._next(REPLY_S)
                self._rest = self._rest[found.end() :]
                answers.append(int(found[1], 16))
        return answers

    def _next(self, seconds: float) -> bytes:
        try:
            return self._heard.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"the program said nothing for {seconds:.0f} s, last {self._rest[-200:]!r}") from None


class BareFunction(Function):
    """A function as the BIOS left it."""

    def __init__(self, machine: BareMachine, bdf: str) -> None:
        self.bdf = f"0000:{bdf}"
        self._machine = machine
        self._config = machine.config_address(endpoint_id(self.bdf))
        assert self.vendor_id != 0xFFFF, f"there is no function {bdf}"
        self.awake()

    def bar_address(self, index: int) -> int:
        """Where the BIOS placed BAR `index`. AssertionError if that is above 4 GiB, where the program cannot reach."""
        low, high = (self.read_config(_BAR0 + 4 * (index + half), 4) for half in (0, 1))
        assert not high or not low & 4, f"{self.bdf}: BAR {index} is above 4 GiB"
        return low & ~_BAR_FLAGS

    def bar(self, index: int) -> Registers:
        return QtestBar(self._machine, self.bar_address(index))

    def _config_read(self, offset: int, nbytes: int) -> bytes:
        return self._machine.read(self._config + offset, nbytes).to_bytes(nbytes, "little")

    def _config_write(self, offset: int, data: bytes) -> None:
        self._machine.write(self._config + offset, len(data), int.from_bytes(data, "little"))
