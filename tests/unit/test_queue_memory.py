"""The ring when guest memory is in pieces, moves or goes away."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable

import pytest

from tests.support.driver import DriverRing
from vdev.memory import Region, RegionTable
from vdev.virtio.queue import Queue, RingError
from vdev.wire import vring

WRITE, INDIRECT = vring.DESC_F_WRITE, vring.DESC_F_INDIRECT
BASE = 0x4000_0000
RAM_NBYTES = 1 << 16


def ring() -> DriverRing:
    """A driver over fresh RAM at BASE."""
    return DriverRing(memoryview(bytearray(RAM_NBYTES)), base_gpa=BASE)


def test_buffers_and_indirect_tables_may_cross_regions() -> None:
    driver = ring()
    memory = RegionTable()
    memory.add(Region(BASE, 0x8000, driver.buffer[:0x8000]))
    memory.add(Region(BASE + 0x8000, 0x8000, driver.buffer[0x8000:]))
    queue = driver.queue_over(memory)
    vring.DESCRIPTOR.pack_into(driver.buffer, 0x8000 - 24, BASE + 0x8000 - 40, 64, WRITE, 0)
    driver.write_descriptor(0, BASE + 0x8000 - 24, 16, INDIRECT)
    driver.offer(0)
    driver.publish()

    chain = queue.pop()

    assert chain is not None
    assert [len(view) for view in chain.writable] == [40, 24]
    assert chain.write(bytes(range(64))) == 64
    assert bytes(driver.buffer[0x8000 - 40 : 0x8000 + 24]) == bytes(range(64))


def test_changed_memory_is_followed_by_the_ring_and_by_held_chains() -> None:
    driver = ring()
    memory = RegionTable()
    memory.add(Region(BASE, RAM_NBYTES, driver.buffer))
    queue = driver.queue_over(memory)
    driver.submit([b"held"], [4])
    driver.submit([b"next"], [4])
    held = queue.pop()
    assert held is not None
    moved = memoryview(bytearray(driver.buffer))
    memory.remove(BASE, RAM_NBYTES)

    queue.memory_changed()
    memory.add(Region(BASE, RAM_NBYTES, moved))
    held.write(b"late")
    queue.push(held, 4)
    chain = queue.pop()
    queue.publish()

    assert chain is not None
    assert chain.read(4) == b"next"
    assert (bytes(moved).count(b"late"), bytes(driver.buffer).count(b"late")) == (1, 0)


@pytest.mark.parametrize("call", [Queue.pop, Queue.rearm, Queue.suppress])
def test_a_ring_whose_memory_went_away_is_an_error_at_next_use_not_before(call: Callable[[Queue], object]) -> None:
    driver = ring()
    memory = RegionTable()
    memory.add(Region(BASE, RAM_NBYTES, driver.buffer))
    queue = driver.queue_over(memory)
    memory.clear()
    queue.memory_changed()

    with pytest.raises(RingError, match="no RAM"):
        call(queue)


def test_memory_can_be_unmapped_once_the_ring_was_told_although_a_chain_is_held() -> None:
    mapping = mmap.mmap(-1, RAM_NBYTES)
    ram = memoryview(mapping)
    memory = RegionTable()
    memory.add(Region(0, RAM_NBYTES, ram))
    driver = DriverRing(memoryview(bytearray(RAM_NBYTES)))
    driver.add([b"x" * 8], [8])
    driver.publish()
    ram[:] = driver.buffer
    queue = driver.queue_over(memory)
    held = queue.pop()
    assert held is not None

    memory.remove(0, RAM_NBYTES)
    queue.memory_changed()
    ram.release()
    mapping.close()  # BufferError if a view were left

    with pytest.raises(RingError):
        held.read(8)


def test_a_dropped_queue_frees_its_views_without_the_cycle_collector() -> None:
    mapping = mmap.mmap(-1, RAM_NBYTES)
    ram = memoryview(mapping)
    driver = DriverRing(ram)
    queue = driver.device_queue()
    driver.submit([b"x"], [1])
    gc.disable()
    try:
        assert queue.pop() is not None
        del driver, queue
        ram.release()
        mapping.close()
    finally:
        gc.enable()


def test_a_ring_that_goes_on_at_an_index_in_memory_that_is_gone_is_refused() -> None:
    driver = ring()
    memory = RegionTable()
    memory.add(Region(BASE, RAM_NBYTES, driver.buffer))
    memory.remove(BASE, RAM_NBYTES)
    queue = driver.queue_over(memory)

    with pytest.raises(RingError, match="no RAM at 0x40000000 any more"):
        queue.start_at(7)


def test_a_used_ring_in_memory_that_is_read_only_is_refused() -> None:
    driver = ring()
    memory = RegionTable()
    memory.add(Region(BASE, RAM_NBYTES, driver.buffer, writable=False))

    with pytest.raises(RingError, match="used ring"):
        driver.queue_over(memory)
