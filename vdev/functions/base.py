"""What the event loop needs of a function that works on its own, and what a virtio device needs of its transport."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Progress(Enum):
    """What `run_slice` says about the next call."""

    BUSY = "busy"  # there is more: call again
    POLL = "poll"  # nothing now, but something is likely: call again soon, serving others in between
    IDLE = "idle"  # nothing; the worker calls its `wake` when there is


class Worker(Protocol):
    """Something the scheduler runs in short slices inside the one event loop."""

    name: str

    def run_slice(self, now_ns: int) -> Progress:
        """Do a bounded piece of work. Never blocks, never raises on guest input; `now_ns` is a monotonic clock."""


class VirtioTransport(Protocol):
    """What a virtio device needs of the function that carries it. All of it is synchronous and cheap."""

    @property
    def dma_enabled(self) -> bool:
        """Whether the rings may be touched now (bus master)."""

    def interrupt_queue(self, index: int) -> None:
        """Tell the driver that queue `index` has used buffers."""

    def config_changed(self) -> None:
        """Tell the driver that the device configuration changed."""

    def config_moved(self) -> None:
        """The device configuration changed, which is nothing to tell: who reads it in parts reads on anew."""

    def needs_reset(self, why: str) -> None:
        """DEVICE_NEEDS_RESET, with a configuration interrupt if DRIVER_OK is set. `why` is for people."""


class NoTransport:
    """A transport before there is one: rings are out of reach and nobody is told."""

    dma_enabled = False

    def interrupt_queue(self, index: int) -> None:
        """Nobody listens."""

    def config_changed(self) -> None:
        """Nobody listens."""

    def config_moved(self) -> None:
        """Nobody listens."""

    def needs_reset(self, why: str) -> None:
        """Nobody listens."""
