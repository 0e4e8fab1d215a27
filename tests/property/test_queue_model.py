"""The queue against a model of what driver and device agreed on, and against memory full of anything."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.driver import DriverRing
from vdev.memory import Region, RegionTable
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.queue import Chain, Queue, RingError
from vdev.wire import vring

RAM_NBYTES = 1 << 15
BASE = 0x10_0000
buffers = st.lists(st.binary(min_size=1, max_size=20), max_size=3)
room = st.lists(st.integers(1, 20), max_size=3)


class RingMachine(RuleBasedStateMachine):
    """Driver and device take turns in any order; chains complete in any order; memory moves under both."""

    @initialize(
        size=st.sampled_from([2, 8, 16]),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 1, 0x7FFE, 0xFFF0, 0xFFFF]),
    )
    def begin(self, size: int, event_idx: bool, start: int) -> None:
        self.ram = memoryview(bytearray(RAM_NBYTES))
        self.driver = DriverRing(self.ram, size, base_gpa=BASE, event_idx=event_idx, start=start)
        self.memory = RegionTable()
        self.memory.add(Region(BASE, RAM_NBYTES, self.ram))
        self.queue = self.driver.queue_over(self.memory)
        self.queue.restore({"version": 1, "next_avail": start, "next_used": start, "in_flight": []})
        self.queue.rearm()
        self.armed = True
        self.waiting = True  # the device's promise: a kick comes before work it does not know of
        self.unpublished: list[tuple[int, bytes, int]] = []
        self.available: list[tuple[int, bytes, int]] = []
        self.flying: list[tuple[Chain, int]] = []
        self.pushed: list[tuple[int, bytes]] = []
        self.used: list[tuple[int, bytes]] = []

    @rule(readable=buffers, writable=room, indirect=st.booleans())
    def add(self, readable: list[bytes], writable: list[int], indirect: bool) -> None:
        count = len(readable) + len(writable)
        if not count or len(self.driver.free) < (1 if indirect else count):
            return
        head = self.driver.add(readable, writable, indirect=indirect)
        self.unpublished.append((head, b"".join(readable), sum(writable)))

    @rule()
    def driver_publishes(self) -> None:
        fresh = bool(self.unpublished)
        idle = not self.available
        self.driver.publish()
        kick = self.driver.kick_needed()
        self.available += self.unpublished
        self.unpublished = []
        if fresh and idle and self.waiting:
            assert kick, "the device waits for a kick and gets none"
        if kick:
            self.waiting = False
        if not self.armed:
            assert not kick, "kicked although suppressed"

    @rule()
    def device_pops(self) -> None:
        chain = self.queue.pop()
        assert (chain is not None) == bool(self.available)
        if chain is not None:
            head, readable, nbytes = self.available.pop(0)
            assert (chain.head, chain.read(1 << 16), chain.writable_nbytes) == (head, readable, nbytes)
            assert chain.readable_nbytes == len(readable)
            self.flying.append((chain, nbytes))
            self.waiting = False

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def device_pushes(self, data: st.DataObject) -> None:
        chain, nbytes = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        reply = data.draw(st.binary(max_size=nbytes))
        assert chain.write(reply) == len(reply)
        self.queue.push(chain, len(reply))
        self.pushed.append((chain.head, reply))

    @rule()
    def device_publishes(self) -> None:
        interrupt = self.queue.publish()
        if not self.driver.event_idx:
            wanted = not self.driver.avail_words[vring.FLAGS_WORD]
            assert interrupt == (bool(self.pushed) and wanted)
        self.used += self.pushed
        self.pushed = []

    @rule()
    def device_suppresses(self) -> None:
        self.queue.suppress()
        self.armed = self.waiting = False

    @rule()
    def device_rearms(self) -> None:
        work = self.queue.rearm()
        assert work == bool(self.available)
        self.armed, self.waiting = True, not work

    @rule()
    def driver_reaps(self) -> None:
        completions = [(c.head, c.data[: c.used_nbytes]) for c in self.driver.reap()]
        assert completions == self.used
        self.used = []

    @rule(wanted=st.booleans())
    def driver_wants_interrupts(self, wanted: bool) -> None:
        if wanted:
            self.driver.enable_interrupts()
        else:
            self.driver.disable_interrupts()

    @rule()
    def memory_moves(self) -> None:
        self.memory.remove(BASE, RAM_NBYTES)
        self.queue.memory_changed()
        self.memory.add(Region(BASE, RAM_NBYTES // 2, self.ram[: RAM_NBYTES // 2]))
        self.memory.add(Region(BASE + RAM_NBYTES // 2, RAM_NBYTES // 2, self.ram[RAM_NBYTES // 2 :]))

    @invariant()
    def flight_is_known_and_bounded(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.in_flight == len(self.flying) <= self.queue.size
            assert not self.driver.event_idx or not self.driver.used_words[vring.FLAGS_WORD]


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)

descriptors = st.builds(
    vring.DESCRIPTOR.pack,
    st.one_of(st.integers(BASE - 64, BASE + 4096 + 64), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.sampled_from([0, 15, 16, 32, 64, 256]), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
)


@given(
    table=st.lists(descriptors, min_size=8, max_size=64),
    avail=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)), min_size=8, max_size=8),
    idx=st.one_of(st.integers(0, 10), st.integers(0, 0xFFFF)),
    event_idx=st.booleans(),
    indirect=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_whatever_a_driver_writes_is_served_or_refused_within_the_caps(
    table: list[bytes], avail: list[int], idx: int, event_idx: bool, indirect: bool
) -> None:
    ram = memoryview(bytearray(4096))
    content = b"".join(table)
    ram[: len(content)] = content
    words = ram[2048:2066].cast("H")
    words[1] = idx
    for position, head in enumerate(avail):
        words[2 + position % 7] = head
    memory = RegionTable()
    memory.add(Region(BASE, 4096, ram))
    queue = Queue(
        memory, 8, BASE, BASE + 2048, BASE + 3072, event_idx=event_idx, indirect=indirect, ordering=NoOrdering()
    )
    taken = 0

    try:
        while (chain := queue.pop()) is not None and taken <= 8:
            taken += 1
            assert sum(map(len, chain.readable)) == chain.readable_nbytes
            assert sum(map(len, chain.writable)) == chain.writable_nbytes
            assert chain.readable_nbytes + chain.writable_nbytes <= queue.max_chain_nbytes
    except RingError:
        pass

    assert queue.in_flight == taken <= 8
