"""A peer that is admitted and hostile: it does not hold the loop, and costs memory for what it sends only."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support import vfio_scene
from tests.support.vfio_scene import served, until
from vdev.transports.stream import (
    FIRST_BUFFER_NBYTES,
    MAX_QUEUED_NBYTES,
    MAX_QUEUED_REPLIES,
    MESSAGES_PER_WAKEUP,
    NBYTES_PER_WAKEUP,
    Message,
    MessageStream,
)
from vdev.transports.vfio_user import FRAMING
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command

every_fd_is_closed = vfio_scene.every_fd_is_closed

SMALL = wire.message(1, Command.DEVICE_RESET, b"", wire.NO_REPLY)


class Turns:
    """A stream whose messages are counted per wake-up; `now` is its clock."""

    def __init__(self, stack: ExitStack) -> None:
        self.here, self.there = (stack.enter_context(end) for end in socket.socketpair())
        self.there.setblocking(False)
        self.now = 0
        self.arrived: list[int] = []
        self.stream = MessageStream(self.here, FRAMING, self._take, lambda: self.now)
        stack.callback(self.stream.close)

    def _take(self, message: Message[wire.Header]) -> None:
        message.fds.close()
        self.arrived.append(message.arrived_ns)

    def send(self, data: bytes) -> int:
        """As much of `data` as the socket takes."""
        sent = 0
        while sent < len(data):
            try:
                sent += self.there.send(data[sent:])
            except BlockingIOError:
                break
        return sent

    def turn(self) -> int:
        """One wake-up; how many messages it delivered."""
        before = len(self.arrived)
        self.stream.poll()
        return len(self.arrived) - before


async def test_a_flood_of_small_messages_is_taken_in_turns() -> None:
    with ExitStack() as stack:
        turns = Turns(stack)
        turns.send(SMALL * (3 * MESSAGES_PER_WAKEUP))

        assert [turns.turn() for _ in range(4)] == [MESSAGES_PER_WAKEUP] * 3 + [0]


async def test_a_peer_that_writes_while_we_read_is_cut_off_after_some_bytes() -> None:
    with ExitStack() as stack:
        turns = Turns(stack)
        body = bytes(wire.MAX_TRANSFER_NBYTES)
        data = memoryview(wire.Header(1, 99, 16 + len(body), wire.NO_REPLY, 0).pack() + body)
        wakeups, most, sent = 0, 0, 0
        while not turns.arrived:
            sent += turns.send(bytes(data[sent:]))
            before = turns.stream._incoming.filled
            turns.turn()
            wakeups += 1
            most = max(most, turns.stream._incoming.filled - before)

        assert most <= NBYTES_PER_WAKEUP + FIRST_BUFFER_NBYTES
        assert wakeups >= wire.MAX_TRANSFER_NBYTES // (NBYTES_PER_WAKEUP + FIRST_BUFFER_NBYTES)


async def test_what_a_cut_wakeup_left_counts_as_arrived_when_it_began() -> None:
    with ExitStack() as stack:
        turns = Turns(stack)
        turns.send(SMALL * (MESSAGES_PER_WAKEUP + 1))
        for turns.now in (100, 200):
            turns.turn()
        turns.send(SMALL)
        turns.now = 300
        turns.turn()

        assert turns.arrived[-3:] == [100, 100, 300]


async def test_one_flooding_function_leaves_the_others_their_turns(tmp_path: Path) -> None:
    quiet = vfio_scene.FakeFunction()
    quiet.name = "quiet0"
    async with served(tmp_path) as flooded, served(tmp_path, quiet, flooded.vm) as other:
        flooder, client = await flooded.negotiated(), await other.negotiated()
        sent = 0
        with suppress(BlockingIOError):
            while True:
                flooder.send_raw(SMALL * 16)
                sent += 16
        before = flooded.function.calls.count("reset")

        assert (await client.device_info()).num_regions == 9

        # Between the request and its answer the loop went round a few times, and each time the flood had one turn.
        served_meanwhile = flooded.function.calls.count("reset") - before
        assert sent > 4 * MESSAGES_PER_WAKEUP
        assert served_meanwhile <= 4 * MESSAGES_PER_WAKEUP


async def test_the_largest_promise_costs_little_until_it_is_kept() -> None:
    with ExitStack() as stack:
        turns = Turns(stack)
        turns.send(wire.Header(1, Command.REGION_WRITE, wire.MAX_MESSAGE_NBYTES, 0, 0).pack() + b"x")
        turns.turn()

        assert len(turns.stream._incoming.buffer) == FIRST_BUFFER_NBYTES


async def test_small_replies_nobody_reads_are_bounded_in_number() -> None:
    with ExitStack() as stack:
        turns = Turns(stack)
        reply = wire.error_reply(wire.Header(1, 99, 16, 0, 0), 22)
        while not turns.stream.ended.done():
            turns.stream.send(reply)

        assert "does not read" in str(turns.stream.ended.exception())
        assert len(turns.stream._outgoing) == MAX_QUEUED_REPLIES
        assert turns.stream._queued_nbytes < MAX_QUEUED_NBYTES


async def test_an_eventfd_the_peer_made_blocking_and_full_does_not_hold_the_loop(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with vfio_scene.eventfds(1) as fds:
            await client.set_irqs(0x24, 0, 1, fds)
            os.eventfd_write(fds[0], (1 << 64) - 2)
            fcntl.fcntl(fds[0], fcntl.F_SETFL, 0)
            scene.function.raise_vector(0)

            assert (await client.device_info()).num_regions == 9


def _lingering(stack: ExitStack) -> int:
    """The last fd of a TCP connection whose peer reads nothing and whose close would wait a minute to send the rest."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    sock = socket.create_connection(listening.getsockname())
    stack.enter_context(listening.accept()[0])
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    return sock.detach()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("count", [1, 40])
async def test_a_socket_that_lingers_does_not_hold_the_loop_when_it_is_closed(tmp_path: Path, count: int) -> None:
    async with served(tmp_path) as scene:
        client = await scene.negotiated()
        with ExitStack() as stack:
            (spare,) = stack.enter_context(vfio_scene.eventfds(1))
            fd = _lingering(stack)
            client.send(Command.DEVICE_GET_INFO, bytes(16), [*[spare] * (count - 1), fd], wire.NO_REPLY)
            os.close(fd)

            assert (await client.device_info()).num_regions == 9


@pytest.mark.timeout(30)
async def test_fds_nobody_read_do_not_hold_the_loop_when_their_connection_is_closed(tmp_path: Path) -> None:
    async with served(tmp_path) as scene:
        first = await scene.negotiated()
        with ExitStack() as stack, socket.socket(socket.AF_UNIX) as refused:
            refused.connect(str(scene.path))
            fd = _lingering(stack)
            rights = array.array("i", [fd])
            refused.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os.close(fd)
            await until(lambda: scene.server.refused == 1)

            assert (await first.device_info()).num_regions == 9
        await asyncio.sleep(0)
