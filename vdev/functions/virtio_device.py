"""What every virtio device that works its queues itself shares: a `VirtioDevice` (virtio/device.py) and a `Worker`.

One slice takes a bounded batch of chains with notifications suppressed and publishes once. After work the device asks
to be polled for the window's time, then re-enables notifications, looks again, and goes idle until it is woken.

A subclass says which queues it serves and implements `take`; docs/endpoints.md shows how. Behind an IOMMU rings and
chains may be touched in slices only: who gets a result at another time keeps it and wakes the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdev.functions.base import NoTransport, Progress, VirtioTransport, Worker
from vdev.virtio.polling import PollWindow
from vdev.virtio.queue import Chain, Queue, RingError, RingOutOfReach
from vdev.wire.virtio_pci import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1

RING_FEATURES = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
# What one slice does at most, so that other sockets are served: milliseconds at tens of microseconds a request.
BATCH_CHAINS = 256
BATCH_NBYTES = 1 << 20
BATCH_SEGMENTS = 8192  # a chain of 1024 empty buffers costs as much as a hundred requests

Push = Callable[[Queue, Chain, int], None]


@dataclass(slots=True)
class _Served:
    """A queue whose chains are taken as they come."""

    index: int
    ring: Queue
    armed: bool = False  # the driver kicks for the next chain


class QueueDevice:
    """The base. Hooks for subclasses are at the end; none may block or raise anything but RingError."""

    device_id = 0
    queue_sizes: tuple[int, ...] = ()
    config_nbytes = 0
    served: tuple[int, ...] = (0,)  # the other queues hold buffers for when the device has something to say

    def __init__(
        self, name: str, *, offered_features: int, wake: Callable[[Worker], None], window: PollWindow | None = None
    ) -> None:
        """`offered_features` includes VERSION_1; `window` is for all served queues together."""
        self.name = name
        self.offered_features = offered_features
        self.batch_nbytes = BATCH_NBYTES  # less where a byte costs more: behind an IOMMU of small granule
        self.ring_errors = 0
        self.kicks = 0  # doorbells the guest had to ring: few for many requests when polling works
        self._wake = wake
        self._window = window or PollWindow()
        self._transport: VirtioTransport = NoTransport()
        self._queues: tuple[Queue | None, ...] = ()
        self._served: list[_Served] = []

    def connect(self, transport: VirtioTransport) -> None:
        """The function that carries this device; once, before anything else."""
        self._transport = transport

    def queue(self, index: int) -> Queue | None:
        """Queue `index` if the driver enabled it and nothing took it away since."""
        return self._queues[index] if index < len(self._queues) else None

    def describe(self) -> dict[str, int | bool]:
        """State for queries: plain data."""
        return {"kicks": self.kicks, "ring-errors": self.ring_errors}

    # VirtioDevice

    def config_read(self, offset: int, nbytes: int) -> bytes:
        """Zeros: for a device without configuration."""
        return bytes(nbytes)

    def config_write(self, offset: int, data: bytes, accepted_features: int) -> None:
        """No field is writable."""

    def features_ok(self, accepted_features: int) -> bool:
        """Any that are offered do."""
        return True

    def driver_ok(self, accepted_features: int, queues: tuple[Queue | None, ...]) -> None:
        """Serve the rings from now on."""
        self._queues = queues
        rings = ((index, queues[index]) for index in self.served)
        self._served = [_Served(index, ring) for index, ring in rings if ring is not None]
        self._wake(self)

    def memory_changed(self) -> None:
        """What was out of reach may be back."""
        self._wake(self)

    def queue_notified(self, index: int) -> None:
        """Chains to take, or buffers for what waits."""
        self.kicks += 1
        self._wake(self)

    def suspend(self) -> None:
        """The rings are gone for now; all other state stays."""
        self._queues = ()
        self._served = []

    def reset(self) -> None:
        """Device reset: the rings are gone. Subclasses with state of a driver's drop it, too."""
        self.suspend()

    # Worker

    def run_slice(self, now_ns: int) -> Progress:
        """A batch of every served queue; IDLE leaves notifications enabled. A device that may not work now overrides
        this to say IDLE, and wakes itself when it may."""
        if not self._queues or not self._transport.dma_enabled:
            return Progress.IDLE
        try:
            return self._work(now_ns)
        except RingOutOfReach:
            # A reset would hang a stock driver for good, and QEMU gives memory back that it only re-arranges.
            # `memory_changed` wakes us; until then there is nothing that a doorbell could change.
            return Progress.IDLE
        except RingError as error:
            self.break_down(str(error))
            return Progress.IDLE

    def _work(self, now_ns: int) -> Progress:
        worked = full = unarmed = False
        for served in self._served:
            taken = self._serve(served)
            if taken:
                worked = True
                full = full or taken >= BATCH_CHAINS
            elif not served.armed:
                unarmed = True
        more = self.work_beside(now_ns)
        if worked:
            self._window.on_work(now_ns)
            return Progress.BUSY if full else Progress.POLL
        if more:
            return Progress.BUSY
        if not unarmed:
            return Progress.IDLE
        if self._window.should_poll(now_ns):
            return Progress.POLL
        for served in self._served:
            if not served.armed:
                if served.ring.rearm():
                    return Progress.BUSY
                served.armed = True
        return Progress.IDLE

    def _serve(self, served: _Served) -> int:
        """Take up to a batch; the number taken. What was pushed is published even when the ring breaks."""
        ring, index, take, most_nbytes = served.ring, served.index, self.take, self.batch_nbytes
        taken, nbytes, nsegments = 0, 0, 0
        try:
            while taken < BATCH_CHAINS and nbytes < most_nbytes and nsegments < BATCH_SEGMENTS:
                chain = ring.pop()
                if chain is None:
                    break
                taken += 1
                nbytes += chain.readable_nbytes + chain.writable_nbytes
                nsegments += chain.nsegments
                if taken == 1:
                    served.armed = False
                    ring.suppress()
                if not take(ring, chain, index):
                    break
        finally:
            # Also when nothing was taken: what an earlier slice pushed may not have been in reach.
            if ring.publish():
                self._transport.interrupt_queue(index)
        return taken

    # for subclasses

    def publish(self, ring: Queue, index: int) -> None:
        """Show the driver what was pushed to queue `index`, with an interrupt if it wants one."""
        if ring.publish():
            self._transport.interrupt_queue(index)

    def finish(self, ring: Queue, chain: Chain, index: int, data: bytes, push: Push = Queue.push) -> bool:
        """Complete a chain that `take` kept, with `data` from the start of its writable part.

        False when its ring is gone (reset, broken) or out of reach for now. `push` is another only for faults.
        """
        if ring is not self.queue(index) or not self._transport.dma_enabled:
            return False
        try:
            push(ring, chain, chain.write(data))
            self.publish(ring, index)
        except RingOutOfReach:
            return False
        except RingError as error:
            self.break_down(str(error))
            return False
        return True

    def break_down(self, why: str) -> None:
        """The driver broke a ring, `why` says how: nothing is served until it resets the device."""
        self.ring_errors += 1
        self.suspend()
        self._transport.needs_reset(why)

    # Hooks

    def take(self, ring: Queue, chain: Chain, index: int) -> bool:
        """Serve `chain` of queue `index`: push it, or keep it for `finish`. False ends the batch of this queue."""
        raise NotImplementedError

    def work_beside(self, now_ns: int) -> bool:
        """What there is to do beside the served queues, a bounded piece of it; whether there is more to do now."""
        return False
