"""One ring as a vhost-user front end describes it, as it is built and left, and how the trace tells of a start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from vdev.errors import MemoryAccessError
from vdev.events import RegisterWritten
from vdev.functions.virtio_words import feature_words, ring_words
from vdev.memory import RegionTable
from vdev.virtio.ordering import Ordering
from vdev.virtio.queue import Queue, RingError
from vdev.wire import vring
from vdev.wire.virtio_pci import F_EVENT_IDX, F_INDIRECT_DESC


class State(Enum):
    """What the carrier knows about the driver."""

    IDLE = "idle"  # none since power-up or the last proven reset
    RUNNING = "running"
    SUSPENDED = "suspended"  # stopped or reset: not known yet


@dataclass(slots=True)
class RingSettings:
    """What the front end said about one ring since it was last stopped."""

    size: int
    base: int = 0
    gpas: tuple[int, int, int] | None = None  # descriptor table, available ring, used ring; None: not known
    has_kick: bool = False  # with it a ring takes part in the next start
    enabled: bool = False


RingKey = tuple[int, tuple[int, int, int] | None]  # size, addresses


@dataclass(frozen=True, slots=True)
class SuspendedRings:
    """The rings as they were left."""

    features: int
    keys: tuple[RingKey | None, ...]
    queues: tuple[Queue | None, ...]
    used: tuple[bytes | None, ...]  # the used rings' bytes


def used_bytes(memory: RegionTable, features: int, key: RingKey | None) -> bytes | None:
    """The used ring of `key` as it lies in memory; None where there is none, or it is out of reach."""
    if key is None:
        return None
    size, gpas = key
    if gpas is None:
        return None
    try:
        return memory.read(gpas[2], vring.used_nbytes(size, event_idx=bool(features & F_EVENT_IDX)))
    except MemoryAccessError:
        return None


def build_queue(memory: RegionTable, features: int, ring: RingSettings, ordering: Ordering) -> Queue:
    """The queue a driver described; RingError when it cannot be."""
    if ring.gpas is None:
        raise RingError("it was given no addresses that are in RAM")
    queue = Queue(
        memory,
        ring.size,
        *ring.gpas,
        event_idx=bool(features & F_EVENT_IDX),
        indirect=bool(features & F_INDIRECT_DESC),
        ordering=ordering,
    )
    if ring.base:
        # Taken over from a back end before us: the used index is where that one left it.
        queue.start_at(ring.base)
    return queue


def negotiated(function: str, device_id: int, features: int, rings: Sequence[RingSettings]) -> list[object]:
    """The events of a driver's negotiation, as far as it shows: by the registers the driver wrote for it."""
    events: list[object] = [RegisterWritten(function, "driver_features", features, feature_words(device_id, features))]
    for number, ring in enumerate(rings):
        if ring.has_kick and ring.gpas is not None:
            words = ring_words(device_id, number, ring.size, *ring.gpas)
            taken_over = f", from entry {ring.base}" if ring.base else ""
            events.append(RegisterWritten(function, "queue_enable", 1, words + taken_over))
    return events
