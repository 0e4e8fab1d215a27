"""A place to plug an endpoint model into, for tests without a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdev.backends.entropy import open_entropy
from vdev.endpoints.base import Bay, OpenDoor
from vdev.functions.base import Worker
from vdev.virtio.ordering import NoOrdering


def bay(
    open_door: OpenDoor,
    wake: Callable[[Worker], Any] = lambda worker: None,
    wake_at: Callable[[Worker, int], Any] = lambda worker, when_ns: None,
) -> Bay:
    """A bay without ordering, whose entropy is the real one."""
    return Bay(open_door, wake, wake_at, NoOrdering(), open_entropy)
