"""The split ring's device side against a driver that keeps the rules (test_queue_refusals.py has the others)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.driver import DriverRing
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.queue import RingError
from vdev.wire import vring

NEXT, WRITE, INDIRECT = vring.DESC_F_NEXT, vring.DESC_F_WRITE, vring.DESC_F_INDIRECT
BASE = 0x4000_0000
RAM_NBYTES = 1 << 16


def ring(**options: object) -> DriverRing:
    """A driver over fresh RAM at BASE."""
    return DriverRing(memoryview(bytearray(RAM_NBYTES)), base_gpa=BASE, **options)  # type: ignore[arg-type]


class HookOrdering(NoOrdering):
    """Calls `hook` where the full barrier stands, and notes the kinds of barriers in order."""

    def __init__(self, hook: Callable[[], None] = lambda: None) -> None:
        self.hook = hook
        self.seen: list[str] = []

    def acquire(self) -> None:
        self.seen.append("acquire")

    def release(self) -> None:
        self.seen.append("release")

    def full(self) -> None:
        self.seen.append("full")
        self.hook()


@pytest.mark.parametrize("indirect", [False, True])
def test_a_request_is_read_answered_and_reaped(indirect: bool) -> None:
    driver = ring()
    queue = driver.device_queue()
    head = driver.add([b"request ", b"body"], [3, 5], indirect=indirect)
    driver.publish()

    chain = queue.pop()
    assert chain is not None
    asked = chain.read(1000)
    stored = chain.write(b"replied")
    queue.push(chain, stored)
    queue.publish()

    assert (asked, chain.readable_nbytes, chain.writable_nbytes) == (b"request body", 12, 8)
    completion = driver.reap()[0]
    assert (completion.head, completion.used_nbytes, completion.data) == (head, 7, b"replied\0")
    assert queue.pop() is None


def test_reading_stops_at_the_limit_and_writing_at_the_end() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.submit([b"abc", b"def"], [2])

    chain = queue.pop()

    assert chain is not None
    assert (chain.read(4), chain.read(0), chain.write(b"12345")) == (b"abcd", b"", 2)


def test_direct_descriptors_may_lead_to_an_indirect_table_whose_write_flag_is_ignored() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.write_descriptor(0, BASE, 4, NEXT, 1)
    table = RAM_NBYTES - 64
    vring.DESCRIPTOR.pack_into(driver.buffer, table, BASE + 8, 6, NEXT, 1)
    vring.DESCRIPTOR.pack_into(driver.buffer, table + 16, BASE + 64, 10, WRITE, 0)
    driver.write_descriptor(1, BASE + table, 32, INDIRECT | WRITE)
    driver.offer(0)
    driver.publish()

    chain = queue.pop()

    assert chain is not None
    assert (chain.readable_nbytes, chain.writable_nbytes) == (10, 10)


def test_an_empty_buffer_is_tolerated_and_shows_no_view() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.write_descriptor(0, 0, 0, 0)
    driver.offer(0)
    driver.publish()

    chain = queue.pop()

    assert chain is not None
    assert (chain.readable, chain.writable, chain.read(10)) == ([], [], b"")


def test_chains_complete_in_any_order() -> None:
    driver = ring()
    queue = driver.device_queue()
    heads = [driver.add([bytes([n])], [1]) for n in range(4)]
    driver.publish()
    chains = [chain for _ in range(4) if (chain := queue.pop())]
    held = queue.in_flight

    for index in (2, 0, 3, 1):
        chains[index].write(bytes([index]))
        queue.push(chains[index], 1)
    queue.publish()

    assert [(c.head, c.data) for c in driver.reap()] == [(heads[i], bytes([i])) for i in (2, 0, 3, 1)]
    assert (held, queue.in_flight) == (4, 0)


def test_pushed_chains_are_invisible_until_published() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.submit([b"x"], [1])
    chain = queue.pop()
    assert chain is not None

    queue.push(chain, 0)
    before = driver.has_used()
    queue.publish()

    assert (before, driver.has_used()) == (False, True)


def test_a_finished_chain_reaches_nothing() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.submit([b"x"], [1])
    chain = queue.pop()
    assert chain is not None

    queue.push(chain, 0)

    assert (chain.read(9), chain.write(b"y")) == (b"", 0)
    with pytest.raises(ValueError, match="not in flight"):
        queue.push(chain, 0)


def test_claiming_more_than_the_writable_part_is_a_bug_of_the_device() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.submit([b"x"], [4])
    chain = queue.pop()
    assert chain is not None

    with pytest.raises(ValueError, match="5 bytes used of 4"):
        queue.push(chain, 5)


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_wrong_push_uses_a_chain_more_than_once_and_with_any_length(event_idx: bool) -> None:
    driver = ring(size=4, event_idx=event_idx, start=0xFFFE)
    queue = driver.device_queue()
    queue.restore({"version": 1, "next_avail": 0xFFFE, "next_used": 0xFFFE, "in_flight": []})
    driver.enable_interrupts()
    driver.submit([b"x"], [4])
    chain = queue.pop()
    assert chain is not None
    head = chain.head

    queue.push_wrong(chain, 99, 3)
    wants_interrupt = queue.publish()

    elements = driver.used_words.cast("B")
    found = [vring.USED_ELEMENT.unpack_from(elements, vring.USED_RING_OFFSET + 8 * at) for at in (2, 3, 0)]
    assert found == [(head, 99)] * 3
    assert (driver.used_words[vring.IDX_WORD], wants_interrupt, queue.in_flight) == (1, True, 0)
    with pytest.raises(ValueError, match="not in flight"):
        queue.push_wrong(chain, 0)


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_indexes_wrap(event_idx: bool) -> None:
    driver = ring(size=4, event_idx=event_idx, start=0xFFFA)
    queue = driver.device_queue()
    queue.restore({"version": 1, "next_avail": 0xFFFA, "next_used": 0xFFFA, "in_flight": []})
    queue.rearm()

    for n in range(20):
        kick = driver.submit([bytes([n])], [1])
        chain = queue.pop()
        assert chain is not None
        assert kick
        chain.write(chain.read(1))
        queue.push(chain, 1)
        assert queue.publish() == (not event_idx or n == 6)
        assert [c.data for c in driver.reap()] == [bytes([n])]
        queue.rearm()


def test_suppression_by_flags_stops_kicks_until_rearmed() -> None:
    driver = ring()
    queue = driver.device_queue()

    first = driver.submit([b"1"])
    queue.suppress()
    second = driver.submit([b"2"])
    while (chain := queue.pop()) is not None:
        queue.push(chain, 0)
    work = queue.rearm()
    third = driver.submit([b"3"])

    assert (first, second, work, third) == (True, False, False, True)


def test_suppression_by_event_index_stops_kicks_and_leaves_the_flags_alone() -> None:
    driver = ring(event_idx=True)
    queue = driver.device_queue()

    queue.suppress()
    while_suppressed = [driver.submit([b"x"]) for _ in range(8)]
    flags = driver.used_words[vring.FLAGS_WORD]
    for _ in range(8):
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
    work = queue.rearm()
    after = [driver.submit([b"x"]), driver.submit([b"x"])]

    assert (while_suppressed, flags, work) == ([False] * 8, 0, False)
    assert after == [True, False]  # one kick per rearm: the event has been passed


def test_suppression_by_event_index_holds_over_the_whole_index_space() -> None:
    driver = ring(event_idx=True, size=2)
    queue = driver.device_queue()
    kicks = 0

    for _ in range(70_000):
        queue.suppress()
        kicks += driver.submit([b"x"])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        queue.publish()
        driver.reap()

    assert kicks == 0


@pytest.mark.parametrize("event_idx", [False, True])
def test_rearm_sees_what_was_published_while_suppressed(event_idx: bool) -> None:
    driver = ring(event_idx=event_idx)
    queue = driver.device_queue()
    queue.suppress()
    kick = driver.submit([b"x"])

    assert (kick, queue.rearm()) == (False, True)
    assert queue.pop() is not None


@pytest.mark.parametrize("event_idx", [False, True])
def test_rearm_asks_for_kicks_before_the_barrier_and_looks_after_it(event_idx: bool) -> None:
    driver = ring(event_idx=event_idx)
    wishes: list[bool] = []
    # The driver publishes exactly at the barrier: it must see the wish, and the recheck must see the work.
    ordering = HookOrdering(lambda: wishes.append(driver.submit([b"x"])))
    queue = driver.device_queue(ordering)
    queue.suppress()

    work = queue.rearm()

    assert (wishes, work, ordering.seen) == ([True], True, ["full"])


def test_publish_releases_the_elements_then_orders_the_index_before_the_drivers_wish() -> None:
    driver = ring()
    driver.disable_interrupts()
    ordering = HookOrdering(driver.enable_interrupts)  # between the store of idx and the load of the wish
    queue = driver.device_queue(ordering)
    driver.submit([b"x"])
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)

    interrupt = queue.publish()

    assert interrupt
    assert ordering.seen == ["acquire", "release", "full"]


@pytest.mark.parametrize("event_idx", [False, True])
def test_interrupts_are_asked_for_only_when_wanted(event_idx: bool) -> None:
    driver = ring(event_idx=event_idx)
    queue = driver.device_queue()
    interrupts: list[bool] = []

    def complete_one() -> None:
        driver.submit([b"x"])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        interrupts.append(queue.publish())
        driver.reap()

    driver.enable_interrupts()
    complete_one()
    driver.disable_interrupts()
    complete_one()
    driver.enable_interrupts()
    complete_one()
    interrupts.append(queue.publish())  # nothing new

    assert interrupts == [True, False, True, False]


def test_need_event_is_the_specifications_rule() -> None:
    cases = [(e, n, o) for e in range(8) for n in range(8) for o in range(n + 1)]

    # `event` lies in the half-open range [old, new) of indexes just passed.
    assert all(vring.need_event(e, n, o) == (o <= e < n) for e, n, o in cases)
    assert vring.need_event(0xFFFF, 1, 0xFFFE)
    assert not vring.need_event(1, 1, 0xFFFE)


def test_a_snapshot_continues_with_the_chains_that_were_in_flight() -> None:
    driver = ring()
    queue = driver.device_queue()
    for n in range(3):
        driver.submit([bytes([n])], [1])
    done, _held = queue.pop(), queue.pop()
    assert done is not None
    queue.push(done, 0)
    with pytest.raises(ValueError, match="publish before"):
        queue.snapshot()
    queue.publish()

    restored = driver.device_queue()
    (chain,) = restored.restore(queue.snapshot())
    following = restored.pop()
    assert following is not None

    assert (chain.read(1), following.read(1)) == (b"\1", b"\2")
    with pytest.raises(ValueError, match="version 9"):
        restored.restore({**queue.snapshot(), "version": 9})


@pytest.mark.parametrize("event_idx", [False, True])
def test_suppression_begins_anew_after_each_rearm(event_idx: bool) -> None:
    driver = ring(event_idx=event_idx)
    queue = driver.device_queue()
    queue.suppress()
    queue.rearm()

    queue.suppress()

    assert not driver.submit([b"x"])


def test_more_chains_waiting_than_the_ring_has_are_an_error() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.avail_words[vring.IDX_WORD] = 0x100

    with pytest.raises(RingError, match="256 chains"):
        queue.waiting()


def test_event_words_follow_the_entries_of_their_rings() -> None:
    assert (vring.used_event_word(16), vring.avail_event_word(16)) == ((4 + 2 * 16) // 2, (4 + 8 * 16) // 2)
