"""What a virtio device is to whatever transport carries it (virtio-pci here, vhost-user later)."""

from __future__ import annotations

from typing import Protocol

from vdev.virtio.queue import Queue


class VirtioDevice(Protocol):
    """The transport-independent half of a virtio device. No method may block or do I/O."""

    device_id: int
    offered_features: int  # 64 bits, including VERSION_1 and the ring features
    queue_sizes: tuple[int, ...]  # maximum size of each queue, in order
    config_nbytes: int

    def config_read(self, offset: int, nbytes: int) -> bytes:
        """Device config bytes; what lies beyond `config_nbytes` reads as zero."""

    def config_write(self, offset: int, data: bytes, accepted_features: int) -> None:
        """A driver's write; fields that are not writable are ignored."""

    def features_ok(self, accepted_features: int) -> bool:
        """The driver wants FEATURES_OK with these, offered ones all: whether it gets it, and has accepted them."""

    def driver_ok(self, accepted_features: int, queues: tuple[Queue | None, ...]) -> None:
        """DRIVER_OK was set: `queues[i]` is None where the driver did not enable queue i."""

    def queue_notified(self, index: int) -> None:
        """The driver kicked queue `index`; cheap, only marks work."""

    def memory_changed(self) -> None:
        """Guest memory came or went: a ring that was out of reach may be back; cheap, only marks work."""

    def reset(self) -> None:
        """Device reset (status 0 was written, or the function was reset): drop queues and driver state, now."""

    def suspend(self) -> None:
        """Stop touching the queues, now, and keep everything else; `driver_ok` or `reset` follows.

        The transport took the queues away: over vhost-user a stopped VM looks like that.
        """
