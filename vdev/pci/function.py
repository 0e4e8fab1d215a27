"""A PCI function as a vfio-user connection sees it: regions, config space, interrupt vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vdev.memory import RegionTable

CONFIG_REGION = 7  # VFIO_PCI_CONFIG_REGION_INDEX
CONFIG_NBYTES = 4096


@dataclass(frozen=True, slots=True)
class Bar:
    """One BAR: `nbytes` is a power of two >= 16 (QEMU aborts otherwise); `index` is its first register, 0-5."""

    index: int
    nbytes: int
    is_64bit: bool = True
    prefetchable: bool = False


class Interrupts(Protocol):
    """What stands between a function and whoever it interrupts, while faults are injected there."""

    def take(self, vector: int) -> bool:
        """Whether the interrupt does not go out now: it is lost, or will be delivered later."""

    def forget(self) -> None:
        """The function was reset: what was kept is void."""


class Function(Protocol):
    """What the vfio-user server needs of a function. Synchronous, never blocks, never raises on guest input:
    an access outside the registers reads as zero (or all-ones for a surprise-removed function) and is dropped on write.
    """

    name: str
    bars: tuple[Bar, ...]
    msix_vectors: int
    memory: RegionTable  # the view of this function's own connection, filled by the transport
    raise_vector: Callable[[int], None]  # set by the transport; a no-op until then
    raise_message: Callable[[int, int, int], None]  # likewise: vector, address, data, where MSI-X is not QEMU's

    # likewise: a message that is not on its way yet is void (bus master off, function-level reset)
    void_messages: Callable[[], None]

    def config_read(self, offset: int, nbytes: int) -> bytes: ...

    def config_write(self, offset: int, data: bytes) -> None: ...

    def bar_read(self, bar: int, offset: int, nbytes: int) -> bytes: ...

    def bar_write(self, bar: int, offset: int, data: bytes) -> None: ...

    def reset(self) -> None:
        """DEVICE_RESET (system or bus reset): registers and command register to power-on values, DMA stopped."""

    def memory_changed(self) -> None:
        """`memory` gained or lost regions; cached views must be dropped."""

    def disconnected(self) -> None:
        """The connection is gone: stop all DMA, forget guest state."""
