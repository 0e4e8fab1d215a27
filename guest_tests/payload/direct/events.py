"""The event queue: buffers the device fills with faults."""

from __future__ import annotations

import time
from collections import deque

from .memory import Allocator
from .queue import TIMEOUT_S, Queue
from .virtio import VirtioPci
from .vring import Segment
from .wire import FAULT_NBYTES, FAULT_PASID_NBYTES, Fault, Feature

_SLOT_NBYTES = 64  # of the ring's own memory for each buffer; larger ones are allocated


class EventQueue(Queue):
    """Queue 1 of a unit. `nshort` counts buffers that came back with less than a whole fault record.

    A buffer whose fault was read is posted again, unless `reposts` is False.
    """

    def __init__(
        self, transport: VirtioPci, index: int, memory: Allocator, features: Feature, *, size: int | None = None
    ) -> None:
        """See `Queue`."""
        super().__init__(transport, index, memory, features, size=size, slot_nbytes=_SLOT_NBYTES)
        self.nshort = 0
        self.fault_nbytes = FAULT_PASID_NBYTES if features & Feature.PASID else FAULT_NBYTES  # Q8: of a buffer
        self.reposts = True
        self._pending: deque[Fault] = deque()

    def post(self, count: int = 1, nbytes: int | None = None) -> None:
        """Give the device `count` buffers of `nbytes`, by default what a whole record takes. Raises RingFull."""
        for _ in range(count):
            self.ring.post(self.ring.chain([Segment(nbytes or self.fault_nbytes, is_writable=True)]))
        if count:
            self.publish()

    def take(self) -> list[Fault]:
        """The faults that arrived since the last call, oldest first."""
        self._drain()
        faults = list(self._pending)
        self._pending.clear()
        return faults

    def wait_fault(self, timeout_s: float = TIMEOUT_S) -> Fault:
        """The next fault. Raises NoAnswer, DeviceBroken."""
        deadline = time.monotonic() + timeout_s
        self._drain()
        while not self._pending:
            self.wait_any(deadline, f"no fault within {timeout_s:g} s, {self.nshort} too short")
            self._drain()
        return self._pending.popleft()

    def _drain(self) -> None:
        for used in self.ring.reap():
            record, nbytes = used.chain.written()[: used.nbytes], used.chain.nwritable
            self.ring.recycle(used.chain)
            if len(record) < FAULT_NBYTES:
                self.nshort += 1
            else:
                self._pending.append(Fault.parse(record))
            if self.reposts:
                self.post(1, nbytes)
