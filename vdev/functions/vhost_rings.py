"""What a vhost-user front end says about rings, and how the trace tells of a start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vdev.events import RegisterWritten
from vdev.functions.virtio_words import feature_words, ring_words


@dataclass(slots=True)
class RingSettings:
    """What the front end said about one ring since it was last stopped."""

    size: int
    base: int = 0
    gpas: tuple[int, int, int] = (0, 0, 0)  # descriptor table, available ring, used ring
    has_kick: bool = False  # with it a ring takes part in the next start
    enabled: bool = False


RingKey = tuple[int, tuple[int, int, int]]  # size, addresses


def negotiated(function: str, device_id: int, features: int, rings: Sequence[RingSettings]) -> list[object]:
    """The events of a driver's negotiation, as far as it shows: by the registers the driver wrote for it."""
    events: list[object] = [RegisterWritten(function, "driver_features", features, feature_words(device_id, features))]
    for number, ring in enumerate(rings):
        if ring.has_kick:
            words = ring_words(device_id, number, ring.size, *ring.gpas)
            taken_over = f", from entry {ring.base}" if ring.base else ""
            events.append(RegisterWritten(function, "queue_enable", 1, words + taken_over))
    return events
