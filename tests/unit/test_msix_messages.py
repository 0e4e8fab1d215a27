"""MSI-X messages of a function that keeps its table: DMA_WRITEs of four bytes to the doorbell, and to nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.vfio_scene import until
from vdev.errors import DmaError
from vdev.transports.vfio_messages import DOORBELL, MsixMessages


class Bus:
    """Where messages are written; `open` is cleared while the bus answers nothing."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: DmaError | None = None

    async def write(self, address: int, data: bytes) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.writes.append((address, data))


@asynccontextmanager
async def sending(bus: Bus, *, held: bool = False) -> AsyncIterator[MsixMessages]:
    messages = MsixMessages(bus.write, held=held)
    task = asyncio.create_task(messages.run())
    try:
        yield messages
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_message_is_four_bytes_at_its_address() -> None:
    bus = Bus()
    async with sending(bus) as messages:
        messages.fire(3, 0xFEE01004, 0x4021)
        await until(lambda: bool(bus.writes))

    assert bus.writes == [(0xFEE01004, b"\x21\x40\0\0")]


@pytest.mark.parametrize("address", [0, 0x1000, DOORBELL.start - 4, DOORBELL.stop, DOORBELL.start + 2, 1 << 40])
async def test_what_is_no_doorbell_is_never_written_to(address: int) -> None:
    bus = Bus()
    async with sending(bus) as messages:
        messages.fire(0, address, 1)
        messages.fire(1, DOORBELL.start, 2)
        await until(lambda: bool(bus.writes))

    assert (messages.dropped, bus.writes) == (1, [(DOORBELL.start, b"\2\0\0\0")])


async def test_while_the_vm_is_stopped_messages_wait_one_of_each_vector() -> None:
    bus = Bus()
    async with sending(bus, held=True) as messages:
        for _ in range(3):
            messages.fire(0, DOORBELL.start, 7)
        await asyncio.sleep(0)
        held = bus.writes[:]

        messages.hold(False)
        await until(lambda: bool(bus.writes))

    assert (held, bus.writes) == ([], [(DOORBELL.start, b"\7\0\0\0")])


async def test_a_vector_that_fires_while_its_message_is_under_way_is_sent_again() -> None:
    bus = Bus()
    bus.open.clear()
    async with sending(bus) as messages:
        messages.fire(0, DOORBELL.start, 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(100):
            messages.fire(0, DOORBELL.start, 1)
        bus.open.set()
        await until(lambda: len(bus.writes) == 2)

    assert len(bus.writes) == 2


async def test_a_refused_message_is_counted_and_the_next_one_sent() -> None:
    bus = Bus()
    bus.error = DmaError("unmapped-or-bus-master-off", 0)
    async with sending(bus) as messages:
        messages.fire(0, DOORBELL.start, 1)
        await until(lambda: messages.dropped == 1)
        bus.error = None
        messages.fire(0, DOORBELL.start, 2)
        await until(lambda: bool(bus.writes))

    assert bus.writes == [(DOORBELL.start, b"\2\0\0\0")]


async def test_a_reset_voids_what_was_not_sent() -> None:
    bus = Bus()
    async with sending(bus, held=True) as messages:
        messages.fire(0, DOORBELL.start, 1)
        messages.reset()
        messages.fire(1, DOORBELL.start, 2)
        messages.hold(False)
        await until(lambda: bool(bus.writes))

    assert bus.writes == [(DOORBELL.start, b"\2\0\0\0")]
