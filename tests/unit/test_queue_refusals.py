"""What a driver may not do to a split ring: refused with RingError, nothing taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.driver import DriverRing
from vdev.memory import Region, RegionTable
from vdev.virtio.ordering import NoOrdering
from vdev.virtio.queue import MAX_INDIRECT_ENTRIES, Queue, RingError
from vdev.wire import vring

NEXT, WRITE, INDIRECT = vring.DESC_F_NEXT, vring.DESC_F_WRITE, vring.DESC_F_INDIRECT
BASE = 0x4000_0000
RAM_NBYTES = 1 << 16


def ring() -> DriverRing:
    """A driver over fresh RAM at BASE."""
    return DriverRing(memoryview(bytearray(RAM_NBYTES)), base_gpa=BASE)


def write_loop(d: DriverRing) -> None:
    d.write_descriptor(0, BASE, 1, NEXT, 1)
    d.write_descriptor(1, BASE, 1, NEXT, 0)


def write_nested(d: DriverRing) -> None:
    d.write_descriptor(0, BASE + 0x8000, 16, INDIRECT)
    vring.DESCRIPTOR.pack_into(d.buffer, 0x8000, BASE + 0x9000, 16, INDIRECT, 0)


def write_table_loop(d: DriverRing) -> None:
    d.write_descriptor(0, BASE + 0x8000, 16, INDIRECT)
    vring.DESCRIPTOR.pack_into(d.buffer, 0x8000, BASE, 1, NEXT, 0)


def write_table_index(d: DriverRing) -> None:
    d.write_descriptor(0, BASE + 0x8000, 32, INDIRECT)
    vring.DESCRIPTOR.pack_into(d.buffer, 0x8000, BASE, 1, NEXT, 2)


def write_order(d: DriverRing) -> None:
    d.write_descriptor(0, BASE, 1, NEXT | WRITE, 1)
    d.write_descriptor(1, BASE, 1, 0)


def write_total(d: DriverRing) -> None:
    for index in range(16):
        d.write_descriptor(index, BASE, 0xFFFF_FFFF, NEXT, index + 1)


def one(gpa: int, nbytes: int, flags: int, following: int = 0) -> Callable[[DriverRing], None]:
    """Descriptor 0 and nothing else."""
    return lambda d: d.write_descriptor(0, gpa, nbytes, flags, following)


BROKEN: dict[str, tuple[Callable[[DriverRing], None], str]] = {
    "loop": (write_loop, "loop"),
    "self loop": (one(BASE, 1, NEXT, 0), "loop"),
    "next out of range": (one(BASE, 1, NEXT, 16), "descriptor 16 of 16"),
    "readable after writable": (write_order, "readable descriptor after"),
    "too many bytes": (write_total, "more than"),
    "not RAM": (one(0x10, 1, 0), "no RAM"),
    "leaves RAM": (one(BASE + RAM_NBYTES - 1, 2, 0), "no RAM"),
    "wraps": (one((1 << 64) - 1, 2, 0), "no RAM"),
    "indirect and next": (one(BASE, 16, INDIRECT | NEXT), "both INDIRECT and NEXT"),
    "indirect of nothing": (one(BASE, 0, INDIRECT), "table of 0 bytes"),
    "indirect of a fraction": (one(BASE, 24, INDIRECT), "table of 24 bytes"),
    "indirect too long": (one(BASE, 16 * MAX_INDIRECT_ENTRIES + 16, INDIRECT), "more than 1024 entries"),
    "indirect not RAM": (one(0x10, 16, INDIRECT), "no RAM"),
    "nested": (write_nested, "inside an indirect table"),
    "loop in a table": (write_table_loop, "loop"),
    "next out of the table": (write_table_index, "descriptor 2 of 2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_chain_is_refused_and_nothing_is_taken(name: str) -> None:
    write, problem = BROKEN[name]
    driver = ring()
    queue = driver.device_queue()
    write(driver)
    driver.offer(0)
    driver.publish()

    for _ in range(2):  # it stays broken
        with pytest.raises(RingError, match=problem):
            queue.pop()

    assert queue.in_flight == 0
    assert not driver.has_used()


def test_a_head_outside_the_table_is_refused() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.offer(16)
    driver.publish()

    with pytest.raises(RingError, match="descriptor 16 of 16"):
        queue.pop()


def test_an_available_index_too_far_ahead_is_refused() -> None:
    driver = ring()
    queue = driver.device_queue()
    driver.avail_words[vring.IDX_WORD] = 17

    with pytest.raises(RingError, match="more than 16 ahead"):
        queue.pop()


def test_a_head_offered_again_in_flight_is_refused_so_that_flight_is_bounded() -> None:
    driver = ring()
    queue = driver.device_queue()
    head = driver.add([b"x"])
    driver.offer(head)
    driver.publish()
    queue.pop()

    with pytest.raises(RingError, match="in flight"):
        queue.pop()


def test_an_indirect_chain_that_was_not_negotiated_is_refused() -> None:
    driver = ring()
    queue = driver.device_queue(indirect=False)
    driver.submit([b"x"], indirect=True)

    with pytest.raises(RingError, match="without VIRTIO_RING_F_INDIRECT_DESC"):
        queue.pop()


def test_a_writable_buffer_in_read_only_ram_is_refused() -> None:
    driver = ring()
    memory = RegionTable()
    memory.add(Region(BASE, RAM_NBYTES, driver.buffer))
    memory.add(Region(0, 4096, memoryview(bytes(4096)), writable=False))
    queue = driver.queue_over(memory)
    driver.write_descriptor(0, 0, 8, NEXT, 1)
    driver.write_descriptor(1, 8, 8, WRITE)
    driver.offer(0)
    driver.publish()

    with pytest.raises(RingError, match="not writable"):
        queue.pop()


def make(size: int = 16, desc: int = BASE, avail: int = BASE + 0x1000, used: int = BASE + 0x2000) -> Queue:
    """A queue over two adjacent regions that meet at BASE + 0x8000."""
    memory = RegionTable()
    memory.add(Region(BASE, 0x8000, memoryview(bytearray(0x8000))))
    memory.add(Region(BASE + 0x8000, 0x8000, memoryview(bytearray(0x8000))))
    return Queue(memory, size, desc, avail, used, event_idx=True, indirect=True, ordering=NoOrdering())


@pytest.mark.parametrize("size", [0, -2, 3, 24, 65536])
def test_a_size_that_is_no_power_of_two_up_to_32768_is_refused(size: int) -> None:
    with pytest.raises(RingError, match="queue size"):
        make(size=size)


@pytest.mark.parametrize(
    ("area", "problem"),
    [
        ({"desc": BASE + 8}, "aligned to 16"),
        ({"avail": BASE + 1}, "aligned to 2"),
        ({"used": BASE + 2}, "aligned to 4"),
        ({"desc": 0}, "descriptor table.*no RAM"),
        ({"avail": BASE + 0x10000 - 36}, "available ring.*no RAM"),
        ({"used": BASE + 0x8000 - 64}, "used ring.*crosses RAM regions"),
        ({"avail": (1 << 64) - 2}, "available ring.*no RAM"),
    ],
)
def test_ring_areas_out_of_place_are_refused(area: dict[str, int], problem: str) -> None:
    with pytest.raises(RingError, match=problem):
        make(**area)


@pytest.mark.parametrize(("taken", "index"), [(5, 4), (5, 0xFFFF), (0, 0xFFFF)])
def test_an_available_index_that_goes_back_is_refused(taken: int, index: int) -> None:
    driver = ring()
    queue = driver.device_queue()
    for _ in range(taken):
        driver.submit([b"x"])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
    driver.avail_words[vring.IDX_WORD] = index

    with pytest.raises(RingError, match="ahead"):
        queue.pop()
