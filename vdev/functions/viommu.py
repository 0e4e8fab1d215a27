"""The virtio-iommu device: rings in, `iommu.engine.Engine` in the middle, rings out.

Requests are served as `virtio_device.QueueDevice` has it, faults go out beside them into buffers of the event queue.

The answer to a request that affects accesses in flight is held until they are over (`iommu.in_flight`); those behind it
are answered meanwhile. A chain that is held is not the driver's, so no more are held than the ring has descriptors.

A reset first quiesces: bypass must not come back while an endpoint still runs on old IOVAs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from vdev.functions.base import Progress, Worker
from vdev.functions.virtio_device import BATCH_SEGMENTS, RING_FEATURES, Push, QueueDevice
from vdev.functions.virtio_pci import CLASS_IOMMU, VirtioPciFunction
from vdev.iommu.engine import Engine
from vdev.iommu.in_flight import Wait
from vdev.virtio.ordering import Ordering
from vdev.virtio.polling import PollWindow
from vdev.virtio.queue import Chain, Queue, RingError, RingOutOfReach
from vdev.wire import viommu as wire

QUEUE_SIZES = (256, 256)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answered request on its way back to the driver; good only for the ring it came from."""

    ring: Queue
    chain: Chain
    answer: bytes  # for offset 0 of the writable part; its length is the used length
    wait: Wait | None = None  # it had, which is over


@dataclass(frozen=True, slots=True)
class _Held:
    """A reply whose accesses in flight are not over."""

    reply: Reply
    wait: Wait
    since_ns: int


Hold = Callable[[Reply], bool]


class ViommuDevice(QueueDevice):
    """A virtio-iommu unit as a `VirtioDevice` and a `Worker`."""

    device_id = wire.DEVICE_ID
    queue_sizes: tuple[int, ...] = QUEUE_SIZES
    config_nbytes = wire.CONFIG_NBYTES
    served = (wire.REQUEST_QUEUE,)

    def __init__(
        self,
        engine: Engine,
        *,
        wake: Callable[[Worker], None],
        quiesce: Callable[[], None],
        window: PollWindow,
        hold: Hold | None = None,
        ring_features: int = RING_FEATURES,
    ) -> None:
        """`quiesce` stops all DMA of the unit's endpoints before it returns. `hold` may take a reply (True): its owner
        gives it to `complete`, or to `keep`, now or later. `ring_features` includes VERSION_1."""
        features = ring_features | engine.offered_features
        super().__init__(engine.settings.name, offered_features=features, wake=wake, window=window)
        self.dropped_faults = 0  # buffers too small for them
        self.oversized_requests = 0
        self.held_replies = 0  # how many ever waited for accesses in flight
        self._engine = engine
        self.handle: Callable[[bytes | memoryview, int], bytes] = engine.handle  # a trace puts a timed one in its place
        self.hold = hold  # asked about every reply that may go; fault injection sets it while it has rules
        self._quiesce = quiesce
        self._held: list[_Held] = []
        self._now_ns = 0
        engine.in_flight.ended = self.look_at_held
        engine.config_changed = lambda: self._transport.config_changed()
        engine.config_moved = lambda: self._transport.config_moved()
        self._max_request_nbytes = engine.settings.limits.max_request_nbytes

    # VirtioDevice

    def config_read(self, offset: int, nbytes: int) -> bytes:
        """The 64 bytes of configuration, zeros beyond."""
        return self._engine.config_bytes()[offset : offset + nbytes].ljust(nbytes, b"\0")

    def config_write(self, offset: int, data: bytes, accepted_features: int) -> None:
        """Only the bypass byte is writable, and only once BYPASS_CONFIG was negotiated."""
        at = wire.BYPASS_OFFSET - offset
        if 0 <= at < len(data) and accepted_features & wire.F_BYPASS_CONFIG:
            self._engine.write_bypass(data[at])

    def features_ok(self, accepted_features: int) -> bool:
        """P2, P3: not without what they depend on. What depends on them shows from now on."""
        if not self._engine.takes_features(accepted_features):
            return False
        self._engine.set_features(accepted_features)
        return True

    def driver_ok(self, accepted_features: int, queues: tuple[Queue | None, ...]) -> None:
        """Serve the rings from now on."""
        self._engine.set_features(accepted_features & self._engine.offered_features)
        super().driver_ok(accepted_features, queues)

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

    def host_reset(self) -> None:
        """For people: as `system_reset`, but the rings go on, since a stock driver waits for an answer for ever."""
        self._quiesce()
        self._engine.host_reset()
        self._wake(self)

    def faults_pending(self) -> None:
        """The engine queued a fault record: deliver it soon."""
        self._wake(self)

    # Worker

    def run_slice(self, now_ns: int) -> Progress:
        """A batch of requests and of faults, a part of the sweeping up; IDLE leaves notifications enabled."""
        self._now_ns = now_ns
        if self._held:
            self.settle()
        unfinished = self._engine.sweep()
        progress = super().run_slice(now_ns)
        return Progress.BUSY if unfinished and progress is Progress.IDLE else progress

    def complete(self, reply: Reply, push: Push = Queue.push) -> bool:
        """Give a held reply to the driver; False when its ring is gone (reset, broken) or out of reach for now.

        To be called in a worker's slice: slices pause while the VM is stopped, and this writes to its memory.
        """
        return self.finish(reply.ring, reply.chain, wire.REQUEST_QUEUE, reply.answer, push)

    # replies that wait

    def keep(self, reply: Reply, wait: Wait) -> None:
        """Give `reply` to the driver when `wait` is over, and never once its ring is gone. Call `look_at_held` then."""
        self.held_replies += 1
        self._held.append(_Held(replace(reply, wait=wait), wait, self._now_ns))

    def keeps(self, wait: Wait) -> bool:
        """Whether a reply waits for it."""
        return any(held.wait is wait for held in self._held)

    def look_at_held(self) -> None:
        """A wait is over: what waited for it is answered soon. Replies are given in slices only, see `complete`."""
        if self._held:
            self._wake(self)

    def settle(self) -> None:
        """Answer what waits no longer. In a slice only."""
        over = {id(held) for held in tuple(self._held) if self._release(held)}
        self._held = [held for held in self._held if id(held) not in over]

    # the request ring

    def unanswered(self) -> tuple[int | None, int]:
        """Requests that wait in the ring (None while it is out of reach), and those whose answer is held back."""
        ring = self.queue(wire.REQUEST_QUEUE)
        if ring is None:
            return None, len(self._held)
        try:
            return ring.waiting(), ring.in_flight
        except RingError:
            return None, ring.in_flight

    def take(self, ring: Queue, chain: Chain, index: int) -> bool:
        """Answer a request; the answer waits for accesses in flight, and where `hold` wants it to."""
        answer = self._answer(chain)
        wait = self._engine.wait
        if wait is not None:
            self._engine.wait = None
            self.keep(Reply(ring, chain, answer), wait)
        elif self.hold is None or not self.hold(Reply(ring, chain, answer)):
            ring.push(chain, chain.write(answer))
        return True

    def _release(self, held: _Held) -> bool:
        """Whether `held` waits no longer; one whose ring is out of reach is tried again when that has changed."""
        if not held.wait.is_over:
            return False
        answer = held.wait.answer()  # of an allocation; else it has been known since the request was handled
        reply = held.reply if answer is None else replace(held.reply, answer=answer)
        if self.hold is not None and self.hold(reply):
            if any(other.reply.chain is reply.chain for other in self._held if other is not held):
                return True  # kept anew
        elif not self.complete(reply):
            return False
        self._engine.answered_late(held.wait, self._now_ns - held.since_ns)
        return True

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

    # the event ring

    def work_beside(self, now_ns: int) -> bool:
        """Pending faults into the buffers the driver has posted; without buffers they wait in the engine's deque.

        True when there is more to deliver now; a ring out of reach is left for later, requests do not wait for it.
        """
        pending = self._engine.pending_faults
        if not pending:
            return False
        ring = self.queue(wire.EVENT_QUEUE)
        if ring is None:
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
                record = self._engine.told_fault(record, chain.writable_nbytes)
                if chain.writable_nbytes < len(record):
                    # D61: not spread over several buffers, and there is no smaller format (left) to fall back to.
                    self.dropped_faults += 1
                    ring.push(chain, 0)
                else:
                    ring.push(chain, chain.write(record))
        finally:
            self.publish(ring, wire.EVENT_QUEUE)
        return bool(pending)

    def _stop(self) -> None:
        self._held.clear()  # their rings go
        self._quiesce()
        self.suspend()


def viommu_function(device: ViommuDevice, ordering: Ordering) -> VirtioPciFunction:
    """The PCI function of a unit, connected to its device."""
    function = VirtioPciFunction(
        device.name, device, ordering, class_code=CLASS_IOMMU, system_reset=device.system_reset
    )
    device.connect(function)
    return function
