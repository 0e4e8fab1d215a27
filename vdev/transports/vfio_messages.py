"""MSI-X messages of a function that keeps its vector table itself: each a DMA_WRITE of four bytes to the doorbell.

QEMU writes them to the bus, where the interrupt controller takes them, as it takes those of QEMU's own devices.
One is under way at a time. A vector that fires again before its message is sent needs no second one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from vdev.errors import DmaError

log = logging.getLogger(__name__)

DOORBELL = range(0xFEE00000, 0xFEF00000)  # x86's. Another address would be memory, and a way past the IOMMU


class MsixMessages:
    """Those of one connection. While `held` is true they are remembered, not sent."""

    def __init__(self, write: Callable[[int, bytes], Awaitable[None]], *, held: bool = False) -> None:
        """`write` stores bytes at a guest-physical address, by QEMU. DmaError."""
        self._write = write
        self._held = held
        self._due: dict[int, tuple[int, int]] = {}  # by vector, so it is bounded by their number
        self._changed = asyncio.Event()
        self.dropped = 0  # to addresses that are no doorbell, or refused by QEMU

    def fire(self, vector: int, address: int, data: int) -> None:
        """Send `data` to `address` soon."""
        if address not in DOORBELL or address % 4:
            self.dropped += 1
            return
        self._due[vector] = (address, data)
        self._changed.set()

    def hold(self, held: bool) -> None:
        """Send nothing from now on, or send what was remembered. Idempotent."""
        self._held = held
        self._changed.set()

    def reset(self) -> None:
        """The function was reset, or may not reach the bus any more: what was not sent is void.

        The one that is under way cannot be called back. It is an interrupt, never memory, and QEMU refuses it once bus
        mastering is off.
        """
        self._due.clear()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._due and not self._held:
                address, data = self._due.pop(next(iter(self._due)))
                try:
                    await self._write(address, data.to_bytes(4, "little"))
                except DmaError as error:  # bus mastering is off by now, or the function was reset
                    self.dropped += 1
                    log.debug("an MSI-X message is lost: %s", error)
