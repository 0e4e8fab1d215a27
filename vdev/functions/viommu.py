"""The virtio-iommu device: rings in, `iommu.engine.Engine` in the middle, rings out.

One slice takes a bounded batch of requests with notifications suppressed and publishes once. After work it asks to be
polled for the window's time, then re-enables notifications, looks again, and goes idle until it is woken.

A reset first quiesces: bypass must not come back while an endpoint still runs on old IOVAs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vdev.functions.base import NoTransport, Progress, VirtioTransport, Worker
from vdev.functions.virtio_pci import CLASS_IOMMU, VirtioPciFunction
from vdev.iommu.engine import Engine
from vdev.virtio.ordering import Ordering
from vdev.virtio.polling import PollWindow
from vdev.virtio.queue import Chain, Queue, RingError, RingOutOfReach
from vdev.wire import viommu as wire
from vdev.wire.virtio_pci import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1

QUEUE_SIZES = (256, 256)
RING_FEATURES = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
# What one slice does at most, so that other sockets are served: milliseconds at tens of microseconds a request.
BATCH_REQUESTS = 256
BATCH_NBYTES = 1 << 20
BATCH_SEGMENTS = 8192  # a chain of 1024 empty buffers costs as much as a hundred requests


@dataclass(frozen=True, slots=True)
class Reply:
    """An answered request on its way back to the driver; good only for the ring it came from."""

    ring: Queue
    chain: Chain
    answer: bytes  # for offset 0 of the writable part; its length is the used length


Hold = Callable[[Reply], bool]


def _never(reply: Reply) -> bool:
    """No reply is held."""
    return False


class ViommuDevice:
    """A virtio-iommu unit as a `VirtioDevice` and a `Worker`."""

    device_id = wire.DEVICE_ID
    queue_sizes: tuple[int, ...] = QUEUE_SIZES
    config_nbytes = wire.CONFIG_NBYTES

    def __init__(
        self,
        engine: Engine,
        *,
        wake: Callable[[Worker], None],
        quiesce: Callable[[], None],
        window: PollWindow,
        hold: Hold = _never,
        ring_features: int = RING_FEATURES,
    ) -> None:
        """`quiesce` stops all DMA of the unit's endpoints before it returns. `hold` may keep a reply (True): its owner
        gives it back to `complete` later; how many it keeps is its to bound. `ring_features` includes VERSION_1."""
        self.name = engine.settings.name
        self.offered_features = ring_features | engine.offered_features
        self.dropped_faults = 0  # buffers too small for them
        self.oversized_requests = 0
        self.ring_errors = 0
        self.kicks = 0  # doorbells the guest had to ring: few for many requests when polling works
        self._engine = engine
        self.handle: Callable[[bytes | memoryview, int], bytes] = engine.handle  # a trace puts a timed one in its place
        self._wake = wake
        self._quiesce = quiesce
        self._window = window
        self._hold = hold
        self._max_request_nbytes = engine.settings.limits.max_request_nbytes
        self._transport: VirtioTransport = NoTransport()
        self._requests: Queue | None = None
        self._events: Queue | None = None
        self._armed = False  # the driver kicks for the next request

    def connect(self, transport: VirtioTransport) -> None:
        """The function that carries this device; once, before anything else."""
        self._transport = transport

    # VirtioDevice

    def config_read(self, offset: int, nbytes: int) -> bytes:
        """The 64 bytes of configuration, zeros beyond."""
        return self._engine.config_bytes()[offset : offset + nbytes].ljust(nbytes, b"\0")

    def config_write(self, offset: int, data: bytes, accepted_features: int) -> None:
        """Only the bypass byte is writable, and only once BYPASS_CONFIG was negotiated."""
        at = wire.BYPASS_OFFSET - offset
        if 0 <= at < len(data) and accepted_features & wire.F_BYPASS_CONFIG:
            self._engine.write_bypass(data[at])

    def driver_ok(self, accepted_features: int, queues: tuple[Queue | None, ...]) -> None:
        """Serve the rings from now on."""
        self._engine.set_features(accepted_features & self._engine.offered_features)
        self._requests, self._events = queues[wire.REQUEST_QUEUE], queues[wire.EVENT_QUEUE]
        self._armed = False
        self._wake(self)

    def memory_changed(self) -> None:
        """What was out of reach may be back."""
        self._wake(self)

    def queue_notified(self, index: int) -> None:
        """Requests, or buffers for faults that wait."""
        self.kicks += 1
        self._wake(self)

    def suspend(self) -> None:
        """The rings are gone for now; domains, mappings and waiting faults stay."""
        self._requests = self._events = None
        self._armed = False

    def reset(self) -> None:
        """Virtio reset or FLR: endpoints become unattached, bypass keeps its value (D6, D9)."""
        self._stop()
        self._engine.device_reset()
        self._wake(self)  # to sweep up

    def system_reset(self) -> None:
        """The machine was reset: bypass returns to its boot value as well (D7)."""
        self._stop()
        self._engine.system_reset()
        self._wake(self)

    def faults_pending(self) -> None:
        """The engine queued a fault record: deliver it soon."""
        self._wake(self)

    # Worker

    def run_slice(self, now_ns: int) -> Progress:
        """A batch of requests and of faults, a part of the sweeping up; IDLE leaves notifications enabled."""
        unfinished = self._engine.sweep()
        ring = self._requests
        if ring is not None and self._transport.dma_enabled:
            try:
                progress = self._work(ring, now_ns)
            except RingOutOfReach:
                # A reset would hang a stock driver for good, and QEMU gives memory back that it only re-arranges.
                # `memory_changed` wakes us; until then there is nothing that a doorbell could change.
                progress = Progress.IDLE
            except RingError:
                self._break()
                progress = Progress.IDLE
            if progress is not Progress.IDLE:
                return progress
        return Progress.BUSY if unfinished else Progress.IDLE

    def _work(self, ring: Queue, now_ns: int) -> Progress:
        handled = self._serve(ring)
        more_faults = self._deliver_faults()
        if handled:
            self._window.on_work(now_ns)
            return Progress.BUSY if handled >= BATCH_REQUESTS else Progress.POLL
        if more_faults:
            return Progress.BUSY
        if self._armed:
            return Progress.IDLE
        if self._window.should_poll(now_ns):
            return Progress.POLL
        if ring.rearm():
            return Progress.BUSY
        self._armed = True
        return Progress.IDLE

    def complete(self, reply: Reply) -> bool:
        """Give a held reply to the driver; False when its ring is gone (reset, broken) or out of reach for now."""
        if reply.ring is not self._requests or not self._transport.dma_enabled:
            return False
        try:
            self._push(reply)
            self._publish(reply.ring, wire.REQUEST_QUEUE)
        except RingOutOfReach:
            return False
        except RingError:
            self._break()
            return False
        return True

    # the request ring

    def _serve(self, ring: Queue) -> int:
        """Answer up to a batch; the number taken. What was answered is published even when the ring breaks."""
        handled, nbytes, nsegments = 0, 0, 0
        try:
            while handled < BATCH_REQUESTS and nbytes < BATCH_NBYTES and nsegments < BATCH_SEGMENTS:
                chain = ring.pop()
                if chain is None:
                    break
                handled += 1
                nbytes += chain.readable_nbytes + chain.writable_nbytes
                nsegments += chain.nsegments
                if handled == 1:
                    self._armed = False
                    ring.suppress()
                reply = Reply(ring, chain, self._answer(chain))
                if not self._hold(reply):
                    self._push(reply)
        finally:
            self._publish(ring, wire.REQUEST_QUEUE)
        return handled

    def _answer(self, chain: Chain) -> bytes:
        if chain.readable_nbytes <= self._max_request_nbytes:
            return self.handle(chain.read(self._max_request_nbytes), chain.writable_nbytes)
        self.oversized_requests += 1
        if chain.writable_nbytes < wire.TAIL_NBYTES:
            return b""
        is_probe = chain.read(1) == bytes([wire.T_PROBE]) and self._engine.offered_features & wire.F_PROBE
        room = chain.writable_nbytes - wire.TAIL_NBYTES
        before_tail = min(room, self._engine.settings.probe_size) if is_probe else 0
        return bytes(before_tail) + wire.TAILS[wire.S_INVAL]

    def _push(self, reply: Reply) -> None:
        reply.ring.push(reply.chain, reply.chain.write(reply.answer))

    # the event ring

    def _deliver_faults(self) -> bool:
        """Pending faults into the buffers the driver has posted; without buffers they wait in the engine's deque.

        True when there is more to deliver now; a ring out of reach is left for later, requests do not wait for it.
        """
        ring, pending = self._events, self._engine.pending_faults
        if ring is None or not pending:
            return False
        try:
            return self._fill_buffers(ring, pending)
        except RingOutOfReach:
            return False

    def _fill_buffers(self, ring: Queue, pending: deque[bytes]) -> bool:
        nsegments = 0
        try:
            for _ in range(2 * ring.size):  # a driver that posts while we look cannot keep us here
                if not pending or nsegments >= BATCH_SEGMENTS:
                    break
                chain = ring.pop()
                if chain is None:
                    if ring.rearm():
                        continue
                    return False
                nsegments += chain.nsegments
                record = pending.popleft()
                if chain.writable_nbytes < len(record):
                    # D61: not spread over several buffers, and there is no smaller format to fall back to.
                    self.dropped_faults += 1
                    ring.push(chain, 0)
                else:
                    ring.push(chain, chain.write(record))
        finally:
            self._publish(ring, wire.EVENT_QUEUE)
        return bool(pending)

    def _publish(self, ring: Queue, index: int) -> None:
        if ring.publish():
            self._transport.interrupt_queue(index)

    def _stop(self) -> None:
        self._quiesce()
        self.suspend()

    def _break(self) -> None:
        """The driver broke a ring: nothing is served until it resets the device."""
        self.ring_errors += 1
        self._requests = self._events = None
        self._transport.needs_reset()


def viommu_function(device: ViommuDevice, ordering: Ordering) -> VirtioPciFunction:
    """The PCI function of a unit, connected to its device."""
    function = VirtioPciFunction(
        device.name, device, ordering, class_code=CLASS_IOMMU, system_reset=device.system_reset
    )
    device.connect(function)
    return function
