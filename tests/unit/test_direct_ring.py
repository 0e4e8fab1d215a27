"""The driver's side of a ring against the device's: well-formed chains arrive, broken ones break as meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guest_tests.payload.direct.answers import Layout
from guest_tests.payload.direct.errors import RingFull, RingViolation
from guest_tests.payload.direct.memory import HUGE_NBYTES, DmaPool
from guest_tests.payload.direct.vring import (
    INDIRECT,
    NEXT,
    SLOT_NBYTES,
    UNWRITTEN,
    WRITE_ONLY,
    Chain,
    Descriptor,
    Segment,
    SplitRing,
    need_event,
    ring_nbytes,
)
from vdev.memory import Region, RegionTable
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.queue import Queue, RingError
from vdev.wire import vring as wire

GPA = 0x4000_0000
REQUEST = bytes(range(20))


class OnePage:
    """RAM of one huge page."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(HUGE_NBYTES))
        self.table = RegionTable()
        self.table.add(Region(GPA, HUGE_NBYTES, self.memory))

    def take(self) -> tuple[int, memoryview]:
        return GPA, self.memory

    def close(self) -> None:
        pass


class Rig:
    """A driver's ring and the device's queue over the same memory."""

    def __init__(self, size: int = 8, *, event_idx: bool = False, indirect: bool = True) -> None:
        page = OnePage()
        self.pool = DmaPool(page, max_pages=1)
        self.ring = SplitRing(size, self.pool, event_idx=event_idx)
        self.queue = Queue(
            page.table,
            size,
            self.ring.desc_gpa,
            self.ring.avail_gpa,
            self.ring.used_gpa,
            event_idx=event_idx,
            indirect=indirect,
            ordering=NoOrdering(),
        )

    def chain(self, layout: Layout | None = None) -> Chain:
        """A request of 20 bytes with room for 4, not posted."""
        layout = layout or Layout()
        chain = self.ring.chain(layout.segments(len(REQUEST), 4), indirect=layout.indirect)
        chain.set_readable(REQUEST)
        return chain

    def post(self, chain: Chain) -> None:
        self.ring.post(chain)
        self.ring.publish()

    def serve(self, answer: bytes = b"\x06\0\0\0") -> bytes:
        """The device takes one chain and answers it; what it read."""
        taken = self.queue.pop()
        assert taken is not None
        data = taken.read(1 << 20)
        self.queue.push(taken, taken.write(answer))
        self.queue.publish()
        return data


LAYOUTS = (
    Layout(),
    Layout(piece_nbytes=5),
    Layout(readable=(0, 20), writable=(4, 0)),
    Layout(indirect=True),
    Layout(piece_nbytes=1, indirect=True),
)


@pytest.mark.parametrize("size", [1, 8, 32768])
@pytest.mark.parametrize("event_idx", [False, True])
def test_areas_are_as_long_as_the_device_thinks(size: int, event_idx: bool) -> None:
    desc, avail, used = ring_nbytes(size)

    assert desc == wire.desc_nbytes(size)
    assert avail >= wire.avail_nbytes(size, event_idx=event_idx)
    assert used >= wire.used_nbytes(size, event_idx=event_idx)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_request_arrives_and_its_answer_comes_back_in_any_layout(layout: Layout) -> None:
    rig = Rig()
    rig.post(rig.chain(layout))

    data = rig.serve()

    (used,) = rig.ring.reap()
    assert data == REQUEST
    assert (used.nbytes, used.chain.written()) == (4, b"\x06\0\0\0")


def test_a_chain_that_was_given_up_is_not_shown_when_it_comes_back() -> None:
    rig = Rig()
    late, in_time = rig.chain(), rig.chain()
    rig.post(late)
    rig.ring.give_up(late)
    rig.post(in_time)

    rig.serve()
    rig.serve()

    assert [used.chain for used in rig.ring.reap()] == [in_time]
    assert (rig.ring.nlate, rig.ring.outstanding) == (1, {})


def test_descriptors_of_a_chain_that_was_given_up_are_free_once_it_came_back() -> None:
    rig = Rig(size=2)
    late = rig.chain()
    rig.post(late)
    rig.ring.give_up(late)
    with pytest.raises(RingFull):
        rig.chain()

    rig.serve()

    assert rig.ring.reap() == []
    assert rig.chain().indexes == late.indexes


def test_giving_up_what_came_back_already_changes_nothing() -> None:
    rig = Rig()
    chain = rig.chain()
    rig.post(chain)
    rig.serve()
    assert len(rig.ring.reap()) == 1

    rig.ring.give_up(chain)
    rig.ring.recycle(chain)

    again = rig.chain()
    rig.post(again)
    rig.serve()
    assert (again.head, [used.chain for used in rig.ring.reap()]) == (chain.head, [again])


def test_bytes_the_device_leaves_alone_are_told_apart() -> None:
    rig = Rig()
    rig.post(rig.chain())

    rig.serve(b"\x06")

    (used,) = rig.ring.reap()
    assert used.chain.written() == b"\x06" + bytes([UNWRITTEN]) * 3


def test_thousands_of_requests_go_round_the_ring_and_its_indexes() -> None:
    rig = Rig(size=2, event_idx=True)
    for number in range(66_000):
        rig.post(rig.chain())
        assert rig.serve(number.to_bytes(4, "little"))
        (used,) = rig.ring.reap()
        rig.ring.recycle(used.chain)

    assert used.chain.written() == (65_999).to_bytes(4, "little")


def test_descriptors_are_taken_lowest_first_and_come_back() -> None:
    rig = Rig()
    first, second = rig.chain(), rig.chain()
    rig.ring.recycle(second)
    rig.ring.recycle(first)

    assert (first.indexes, second.indexes) == ([0, 1], [2, 3])
    assert rig.chain().indexes == [0, 1]


def test_a_chain_that_does_not_fit_its_slot_has_memory_of_its_own_and_gives_it_back() -> None:
    rig = Rig()
    free = rig.pool.nbytes_free
    chain = rig.ring.chain([Segment(SLOT_NBYTES + 1, is_writable=True)])
    rig.post(chain)
    rig.serve(b"x" * (SLOT_NBYTES + 1))

    (used,) = rig.ring.reap()
    written = used.chain.written()
    rig.ring.recycle(used.chain)

    assert written == b"x" * (SLOT_NBYTES + 1)
    assert rig.pool.nbytes_free == free


def test_a_full_ring_says_so() -> None:
    rig = Rig(size=2)
    rig.chain()

    with pytest.raises(RingFull, match="2 descriptors wanted, 0 of 2 are free"):
        rig.chain()


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_size_no_ring_can_have_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"ring size {size} is not a power of two up to 32768"):
        SplitRing(size, DmaPool(OnePage()))


def _loop(chain: Chain) -> None:
    chain.parts[-1].flags |= NEXT
    chain.parts[-1].next = len(chain.table) - 1 if chain.table else chain.indexes[-1]


def _next_out(chain: Chain) -> None:
    chain.parts[0].next = 999


def _head_out(chain: Chain) -> None:
    chain.head = 999


def _out_of_ram(chain: Chain) -> None:
    chain.parts[0].gpa = 1 << 50


def _wrong_order(chain: Chain) -> None:
    chain.parts[0].flags ^= WRITE_ONLY
    chain.parts[1].flags ^= WRITE_ONLY


def _nested(chain: Chain) -> None:
    chain.parts[0].flags |= INDIRECT


def _odd_table(chain: Chain) -> None:
    chain.descriptors[0].nbytes -= 1


def _empty_table(chain: Chain) -> None:
    chain.descriptors[0].nbytes = 0


def _indirect_and_next(chain: Chain) -> None:
    chain.descriptors[0].flags |= NEXT


FLAWS: tuple[tuple[Callable[[Chain], None], Layout, str], ...] = (
    (_loop, Layout(), "is a loop"),
    (_loop, Layout(indirect=True), "is a loop"),
    (_next_out, Layout(), "descriptor 999 of 8"),
    (_next_out, Layout(indirect=True), "descriptor 999 of 2"),
    (_head_out, Layout(), "999"),
    (_out_of_ram, Layout(), "0x4000000000000"),
    (_wrong_order, Layout(), "a readable descriptor after a writable one"),
    (_nested, Layout(indirect=True), "indirect descriptor inside an indirect table"),
    (_odd_table, Layout(indirect=True), "indirect table of 31 bytes"),
    (_empty_table, Layout(indirect=True), "indirect table of 0 bytes"),
    (_indirect_and_next, Layout(indirect=True), "both INDIRECT and NEXT"),
)


@pytest.mark.parametrize(("flaw", "layout", "complaint"), FLAWS)
def test_one_changed_field_is_the_flaw_the_device_finds(
    flaw: Callable[[Chain], None], layout: Layout, complaint: str
) -> None:
    rig = Rig()
    chain = rig.chain(layout)
    flaw(chain)
    rig.post(chain)

    with pytest.raises(RingError, match=complaint):
        rig.queue.pop()


def test_writable_segments_may_come_first_and_are_still_told_apart() -> None:
    rig = Rig()
    chain = rig.ring.chain([Segment(4, is_writable=True), Segment(20)])
    chain.set_readable(REQUEST)

    first, second = chain.parts
    assert (first.flags, second.flags) == (WRITE_ONLY | NEXT, 0)
    assert (first.gpa - second.gpa, chain.written()) == (20, bytes([UNWRITTEN]) * 4)


def test_a_segment_may_be_anywhere() -> None:
    rig = Rig()

    chain = rig.ring.chain([Segment(20, gpa=0x1234_5678), Segment(4, is_writable=True)])

    assert chain.parts[0] == Descriptor(0x1234_5678, 20, NEXT, 1)
    assert chain.nreadable == 0


def test_an_index_may_run_ahead_of_what_was_posted() -> None:
    rig = Rig()
    rig.ring.publish(ahead=9)

    with pytest.raises(RingError, match="available index 9 is more than 8 ahead"):
        rig.queue.pop()


def test_a_used_id_that_is_not_out_is_a_violation_with_the_rings_state() -> None:
    rig = Rig()
    rig.post(rig.chain())
    rig.serve()
    rig.ring.outstanding.clear()

    with pytest.raises(RingViolation, match=r"names id 0, which is not out; ring of 8: available idx 1, used idx 1"):
        rig.ring.reap()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_kick_is_due_when_the_device_waits_and_not_while_it_polls(event_idx: bool) -> None:
    rig = Rig(event_idx=event_idx)

    rig.post(rig.chain())
    waiting = rig.ring.wants_kick()
    rig.serve()
    rig.queue.suppress()
    rig.post(rig.chain())
    polling = rig.ring.wants_kick()
    rig.serve()
    rig.queue.rearm()
    rig.post(rig.chain())

    assert (waiting, polling, rig.ring.wants_kick()) == (True, False, True)


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_device_interrupts_for_every_answer_while_that_is_wanted_and_never_otherwise(event_idx: bool) -> None:
    rig = Rig(event_idx=event_idx)
    seen = []
    for wanted in (True, True, False, False, True):
        rig.ring.want_interrupts(wanted)
        rig.post(rig.chain())
        taken = rig.queue.pop()
        assert taken is not None
        rig.queue.push(taken, 0)
        seen.append(rig.queue.publish())
        (used,) = rig.ring.reap()
        rig.ring.recycle(used.chain)

    assert seen == [True, True, False, False, True]


def test_interrupts_are_asked_for_again_after_each_answer() -> None:
    rig = Rig(event_idx=True)
    rig.ring.want_interrupts(True)
    seen = []
    for _ in range(3):
        rig.post(rig.chain())
        taken = rig.queue.pop()
        assert taken is not None
        rig.queue.push(taken, 0)
        seen.append(rig.queue.publish())
        rig.ring.reap()

    assert seen == [True, True, True]


@pytest.mark.parametrize(("event", "new", "old"), [(0, 1, 0), (5, 6, 3), (0xFFFF, 0, 0xFFFF), (7, 7, 6), (2, 9, 5)])
def test_the_event_rule_is_the_devices(event: int, new: int, old: int) -> None:
    assert need_event(event, new, old) == wire.need_event(event, new, old)
