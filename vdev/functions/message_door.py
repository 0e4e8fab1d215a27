"""The way of an endpoint's MSI-X messages through the IOMMU, where the endpoint keeps its MSI-X table itself.

A message is a write of four bytes to an address that a driver chose. Where QEMU has the table it does that write, and
asks no IOMMU, since it knows of none: whoever writes the table reaches memory (docs/isolation.md). Under
`isolation: required` no table is QEMU's, and each message is translated like any other access.
"""

from __future__ import annotations

from collections.abc import Callable

from vdev.errors import TranslationFault
from vdev.functions.dma import WRITE, DmaDoor, Translator

MESSAGE_NBYTES = 4


class MessageDoor:
    """The messages of the endpoint behind `door`; called with an address."""

    def __init__(self, engine: Translator, door: DmaDoor, after_fault: Callable[[], None]) -> None:
        """`after_fault` is told when a fault record may wait for delivery."""
        self._engine = engine
        self._door = door
        self._after_fault = after_fault

    def __call__(self, address: int) -> int | None:
        """The guest-physical address of a message to `address`; None when it is refused, which counts and is told."""
        number = self._door.endpoint_id
        try:
            pieces = self._door.translator.translate(number, address, MESSAGE_NBYTES, WRITE)
        except TranslationFault as error:
            self._door.count_untried(error.reason)
            self._engine.fault(number, error, WRITE)
            self._after_fault()
            return None
        # In two pieces it is no doorbell, which is all that messages are sent to.
        return pieces[0][0] if len(pieces) == 1 else None
