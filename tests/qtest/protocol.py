"""QEMU's qtest protocol without I/O: a command is a line, and so is its reply; interrupts come in between.

Source: QEMU, docs/devel/testing/qtest.rst and system/qtest.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_LINE_NBYTES = 1 << 20
WIDTHS = {1: "b", 2: "w", 4: "l", 8: "q"}


class QtestError(Exception):
    """QEMU refused a command, or said what is no reply. The text has the line."""


@dataclass(slots=True)
class Lines:
    """Bytes in, replies out. Interrupt lines ("IRQ raise 1") go to `interrupts`."""

    interrupts: list[str] = field(default_factory=list)
    _rest: bytes = b""

    def feed(self, data: bytes) -> list[str]:
        """The replies completed by `data`, without their OK. Raises QtestError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_NBYTES:
            raise QtestError(f"a line of more than {MAX_LINE_NBYTES} bytes")
        replies = []
        for line in lines:
            text = line.decode("ascii", "replace").strip()
            if text.startswith("IRQ "):
                self.interrupts.append(text)
            else:
                replies.append(_value(text))
        return replies


def _value(text: str) -> str:
    word, _, value = text.partition(" ")
    if word != "OK":
        raise QtestError(text)
    return value


def read_command(address: int, nbytes: int) -> bytes:
    """One read of memory, 1, 2, 4 or 8 bytes wide."""
    return f"read{WIDTHS[nbytes]} {address:#x}\n".encode()


def write_command(address: int, nbytes: int, value: int) -> bytes:
    """One write of memory, 1, 2, 4 or 8 bytes wide."""
    return f"write{WIDTHS[nbytes]} {address:#x} {value:#x}\n".encode()


def out_command(port: int, value: int) -> bytes:
    """One 32-bit write of an I/O port."""
    return f"outl {port:#x} {value:#x}\n".encode()
