"""A virtqueue at work: a ring, its doorbell, and waiting for it with everything said when nothing comes."""

from __future__ import annotations

import time
from collections.abc import Callable

from . import wait
from .errors import DeviceBroken, NoAnswer, QueueRefused
from .memory import Allocator
from .virtio import DeviceStatus, VirtioPci
from .vring import SLOT_NBYTES, SplitRing, Used
from .wire import Feature

LOOK_S = 0.02  # between two looks at the status register while nothing comes: each costs the guest an exit
TIMEOUT_S = 2.0


class Queue:
    """Queue `index` of a device, set up and enabled with a ring of ours. Valid until the device is reset."""

    def __init__(
        self,
        transport: VirtioPci,
        index: int,
        memory: Allocator,
        features: Feature,
        *,
        size: int | None = None,
        slot_nbytes: int = SLOT_NBYTES,
    ) -> None:
        """`size` entries, by default what the device has. Raises QueueRefused."""
        most = transport.queue_size(index)
        if not most:
            raise QueueRefused(f"{transport.function.bdf} has no queue {index}")
        if size is not None and size > most:
            raise QueueRefused(f"queue {index} of {transport.function.bdf} has {most} entries, not {size}")
        self.index = index
        self.transport = transport
        self.nkicks = 0
        self.ring = SplitRing(
            size or most, memory, event_idx=bool(features & Feature.EVENT_IDX), slot_nbytes=slot_nbytes
        )
        self.ring.want_interrupts(False)
        ring = self.ring
        transport.setup_queue(index, ring.size, ring.desc_gpa, ring.avail_gpa, ring.used_gpa)

    def publish(self) -> bool:
        """Show the device what was posted, and ring the doorbell if it wants that; whether it did."""
        self.ring.publish()
        if wanted := self.ring.wants_kick():
            self.kick()
        return wanted

    def kick(self) -> None:
        """Ring the doorbell, wanted or not."""
        self.nkicks += 1
        self.transport.notify(self.index)

    def wait_used(self, count: int, timeout_s: float = TIMEOUT_S, explain: Callable[[], str] = str) -> list[Used]:
        """`count` used elements, in the device's order.

        Raises NoAnswer when they do not come in time, DeviceBroken as soon as the device says it is, RingViolation.
        `explain` adds to the text of the first two. What did come is lost with the exception.
        """
        found: list[Used] = []
        deadline = time.monotonic() + timeout_s
        while len(found) < count:
            missing = f"{count - len(found)} of {count} answers did not come within {timeout_s:g} s"
            self.wait_any(deadline, missing, explain)
            found += self.ring.reap()
        return found

    def wait_any(self, deadline: float, missing: str, explain: Callable[[], str] = str) -> None:
        """Until there is something to reap. `deadline` is of `time.monotonic`.

        Raises NoAnswer with the words `missing`, DeviceBroken; `explain` adds to the text of both.
        """
        while True:
            left = deadline - time.monotonic()
            if wait.until(lambda: self.ring.has_used, max(0.0, min(LOOK_S, left))):
                return
            status = self.transport.status
            if self.ring.has_used:  # it came while the register was read: what a device broke after is told as well
                return
            if status & DeviceStatus.NEEDS_RESET:
                raise DeviceBroken(f"the device needs a reset. {self.describe(status)}{explain()}")
            if left <= 0:
                raise NoAnswer(f"{missing}. {self.describe(status)}{explain()}")

    def describe(self, status: DeviceStatus) -> str:
        """The queue in words."""
        return f"{self.transport.function.bdf} status {status!r}, queue {self.index}: {self.ring}, {self.nkicks} kicks"
