"""Wire fault records waiting for event buffers of the guest: bounded, newest dropped and counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from vdev.wire import viommu as wire

ACCESS_MASK = wire.FAULT_F_READ | wire.FAULT_F_WRITE


def fault_record(reason: int, access: int, endpoint: int, iova: int) -> bytes:
    """One struct virtio_iommu_fault; D57, D58: reserved fields and undefined flags are zero."""
    flags = (access & ACCESS_MASK) | wire.FAULT_F_ADDRESS
    return wire.Fault(reason, bytes(3), flags, endpoint, 0, iova & ((1 << 64) - 1)).pack()


class FaultQueue:
    """`pending` holds records in order of occurrence; whoever delivers them takes from its left end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._overflowing = False
        self.pending: deque[bytes] = deque()
        self.dropped = 0

    def put(self, record: bytes) -> bool:
        """Queue `record`. True exactly when this drops the first one of an overflow (D62: wait or drop)."""
        if len(self.pending) < self._limit:
            self.pending.append(record)
            self._overflowing = False
            return False
        self.dropped += 1
        first, self._overflowing = not self._overflowing, True
        return first

    def replace(self, records: Iterable[bytes]) -> None:
        """Forget what waits and hold `records` instead (resets: none; restore: the snapshot's)."""
        self.pending.clear()
        self.pending.extend(records)
        self._overflowing = False
