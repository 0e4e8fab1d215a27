"""What functions tell a listener beyond the engine's events: registers, resets, interrupts, DMA, connections.

They are made only while somebody traces: each source has an attribute `trace`, and None costs a comparison.
The cores know no clock; whoever listens adds the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

Trace = Callable[[object], None]


@dataclass(slots=True)
class RegisterWritten:
    """A driver's write that means something. `words` says what, and what became of it where that differs."""

    function: str
    register: str
    value: int
    words: str = ""


@dataclass(slots=True)
class FunctionReset:
    """A function is as at power-on. `kind`: virtio (status 0), function-level (FLR), system, power-on (it was removed
    and is back), or new-driver (one that started anew proves that there was a reset, over vhost-user)."""

    function: str
    kind: str


@dataclass(slots=True)
class InterruptRaised:
    """An MSI-X vector was signalled; over vhost-user, where the vectors are QEMU's, that of a queue (`vector` None)."""

    function: str
    vector: int | None
    queue: str = ""  # in words


@dataclass(slots=True)
class RingsChanged:
    """The rings of a virtio function as a whole. `state`: started, suspended, resumed, broken (until a reset)."""

    function: str
    state: str
    why: str = ""


@dataclass(slots=True)
class DmaDone:
    """One access of an endpoint to guest memory was allowed (`reason` empty) or refused.

    `npieces` counts the runs of guest memory it was served from.
    """

    endpoint: int
    iova: int
    nbytes: int
    write: bool
    npieces: int
    reason: str = ""
    pasid: int = 0  # it carried; 0: none


@dataclass(slots=True)
class DeviceError:
    """A device model refused something or halted, and says so in its own error register."""

    function: str
    code: str
    iova: int


@dataclass(slots=True)
class ConnectionChanged:
    """A peer came to a function's socket, or is gone."""

    function: str
    pid: int
    connected: bool


def flag_words(flags: IntFlag) -> str:
    """`ACKNOWLEDGE|DRIVER`; unnamed bits as one number, "0" when nothing is set."""
    named = [flag for flag in type(flags) if flag & flags]
    rest = int(flags) & ~sum(int(flag) for flag in named)
    return "|".join([*(str(flag.name) for flag in named), *([f"{rest:#x}"] if rest else [])]) or "0"
