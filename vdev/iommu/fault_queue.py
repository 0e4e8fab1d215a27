"""Wire fault records waiting for event buffers of the guest: bounded, newest dropped and counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from vdev.errors import TranslationFault
from vdev.iommu.events import Event, FaultRaised, FaultsDropped
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

ACCESS_MASK = wire.FAULT_F_READ | wire.FAULT_F_WRITE
Z3 = bytes(3)
PLAIN_FLAGS = ACCESS_MASK | wire.FAULT_F_ADDRESS


def fault_record(reason: int, access: int, endpoint: int, iova: int, tag: Tag | None = None) -> bytes:
    """One struct virtio_iommu_fault, or of an access with a PASID one virtio_iommu_fault_pasid. D57, D58: reserved
    fields and undefined flags are zero."""
    flags = (access & ACCESS_MASK) | wire.FAULT_F_ADDRESS
    iova &= (1 << 64) - 1
    if tag is None:
        return wire.Fault(reason, bytes(3), flags, endpoint, 0, iova).pack()
    flags |= _tag_flags(tag)
    return pasid_wire.FaultPasid(reason, Z3, flags, endpoint, tag.pasid, iova).pack()


def _tag_flags(tag: Tag) -> int:
    """P48, P49: that there was a PASID, and what the access requested."""
    flags = pasid_wire.FAULT_F_PASID
    flags |= pasid_wire.FAULT_F_EXEC if tag.execute else 0
    return flags | (pasid_wire.FAULT_F_PRIVILEGED if tag.privileged else 0)


def fitted(record: bytes, nbytes: int, *, has_pasids: bool) -> bytes:
    """`record` as a driver is told it in a buffer of `nbytes`; longer than that where it does not fit at all."""
    if has_pasids:
        # P50: 48 bytes or the first 24 of them
        if nbytes < pasid_wire.FAULT_PASID_NBYTES:
            return record[: wire.FAULT_NBYTES]
        return record.ljust(pasid_wire.FAULT_PASID_NBYTES, b"\0")
    # P1: the driver knows neither the format nor the reasons
    plain = wire.Fault.parse(record)
    if plain.reason in pasid_wire.FAULT_REASON_NAMES:
        plain.reason = wire.FAULT_R_DOMAIN
    plain.flags &= PLAIN_FLAGS
    plain.reserved1 = 0
    return plain.pack()


Filter = Callable[[bytes], Iterable[bytes]]


class FaultQueue:
    """`pending` holds records in order of occurrence; whoever delivers them takes from its left end. `counts` are of
    all refused accesses, by reason word."""

    def __init__(self, limit: int, unit: str = "", emit: Callable[[Event], None] | None = None) -> None:
        self.counts: dict[str, int] = {}
        self._unit = unit
        self._emit = emit
        self._limit = limit
        self._overflowing = False
        self.pending: deque[bytes] = deque()
        self.dropped = 0
        self.filter: Filter | None = None  # what becomes of a record: set by fault injection while it has rules

    def report(self, endpoint: int, error: TranslationFault, access: int, tag: Tag | None) -> None:
        """Count a refused access, emit it, queue the record for the guest."""
        self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
        record = fault_record(error.fault_reason, access, endpoint, error.iova, tag)
        if self._emit is not None:
            pasid = 0 if tag is None else tag.pasid
            self._emit(FaultRaised(self._unit, endpoint, error.reason, access, error.iova, pasid))
        self.tell((record,) if self.filter is None else self.filter(record))

    def tell(self, records: Iterable[bytes]) -> None:
        """Queue records for the guest, and emit that an overflow begins."""
        for record in records:
            if self.put(record) and self._emit is not None:
                self._emit(FaultsDropped(self._unit, self.dropped))

    def withdraw(self, record: bytes) -> int:
        """Take out all that are this very object; how many."""
        before = len(self.pending)
        kept = [other for other in self.pending if other is not record]
        self.pending.clear()
        self.pending.extend(kept)
        return before - len(kept)

    @property
    def room(self) -> int:
        """How many more can wait."""
        return self._limit - len(self.pending)

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
