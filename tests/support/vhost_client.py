"""QEMU's side of a vhost-user socket, in QEMU's order: start-up, DRIVER_OK, stop. Helpers act; tests assert."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support.driver import Completion, DriverRing
from tests.support.vfio_scene import GuestRam, fired
from vdev.wire import vhost_user as wire
from vdev.wire.vhost_user import Command, ProtocolFeature
from vdev.wire.virtio_pci import F_EVENT_IDX

HVA = 0x7F12_3400_0000  # where QEMU has guest RAM
RING_SIZE = 256
EVENT_RING_AT = 0x80000
QEMU_KNOWS = int(~ProtocolFeature.PAGEFAULT) & 0x1FFFF


@dataclass
class Front:
    """One ring's half that QEMU owns: its eventfds."""

    kick: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    call: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    error: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def close(self) -> None:
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


class VhostClient:
    """One connection. `request` waits for the reply, as QEMU does; nothing else is sent meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.fronts = [Front(), Front()]
        self.channel, self._channel_theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.features = 0

    @classmethod
    async def connect(cls, path: Path) -> Self:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        return cls(sock)

    def close(self) -> None:
        for front in self.fronts:
            front.close()
        self.fronts = []
        self._sock.close()
        self.channel.close()
        self._channel_theirs.close()

    # Messages

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([data], rights)

    def send(self, command: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """A message that gets no answer."""
        self.send_raw(wire.message(command, body, flags), fds)

    async def request(self, command: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> bytes:
        """The body of the answer; AssertionError for an answer to something else, or with flags QEMU refuses."""
        self.send(command, body, fds, flags)
        header = wire.Header.parse(await self.receive(wire.HEADER_NBYTES))
        assert (header.command, header.flags) == (command, wire.VERSION | wire.REPLY)
        return await self.receive(header.size)

    async def ended(self) -> bool:
        """Whether the back end closes the connection (within 5 s)."""
        async with asyncio.timeout(5):
            return await self._loop.sock_recv(self._sock, 1) == b""

    async def receive(self, nbytes: int) -> bytes:
        data = b""
        async with asyncio.timeout(5):
            while len(data) < nbytes:
                piece = await self._loop.sock_recv(self._sock, nbytes - len(data))
                if not piece:
                    raise ConnectionError("the back end closed the connection")
                data += piece
        return data

    async def u64(self, command: int) -> int:
        return wire.U64.parse(await self.request(command)).value

    async def acked(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> int:
        """The errno in the acknowledgement, 0 for success."""
        return wire.U64.parse(await self.request(command, body, fds, wire.NEED_REPLY)).value

    # QEMU's dialogues, as recorded

    async def start_up(self) -> None:
        """Realize: from GET_FEATURES to the rings' call and error eventfds."""
        self.features = await self.u64(Command.GET_FEATURES) & ~F_EVENT_IDX
        protocol = await self.u64(Command.GET_PROTOCOL_FEATURES) & QEMU_KNOWS
        self.send(Command.SET_PROTOCOL_FEATURES, wire.U64(protocol).pack())
        await self.u64(Command.GET_QUEUE_NUM)
        await self.u64(Command.GET_MAX_MEM_SLOTS)
        assert await self.acked(Command.SET_BACKEND_REQ_FD, fds=[self._channel_theirs.fileno()]) == 0
        self.send(Command.SET_OWNER)
        await self.u64(Command.GET_FEATURES)
        for index, front in enumerate(self.fronts):
            self.send(Command.SET_VRING_CALL, wire.U64(index).pack(), [front.call])
            self.send(Command.SET_VRING_ERR, wire.U64(index).pack(), [front.error])

    async def add_memory(self, gpa: int, nbytes: int, fd: int, offset: int = 0, hva: int | None = None) -> int:
        region = wire.SingleRegion(0, gpa, nbytes, HVA + gpa if hva is None else hva, offset)
        return await self.acked(Command.ADD_MEM_REG, region.pack(), [fd])

    async def remove_memory(self, gpa: int, nbytes: int) -> int:
        return await self.acked(Command.REM_MEM_REG, wire.SingleRegion(0, gpa, nbytes, HVA + gpa, 0).pack())

    async def start(self, rings: Sequence[DriverRing], bases: Sequence[int] = (0, 0)) -> None:
        """DRIVER_OK or `cont`, with the memory in place."""
        self.send(Command.SET_FEATURES, wire.U64(self.features).pack())
        for index, (ring, base) in enumerate(zip(rings, bases, strict=True)):
            front = self.fronts[index]
            address = wire.RingAddress(
                index, 0, HVA + ring.desc_gpa, HVA + ring.used_gpa, HVA + ring.avail_gpa, HVA + ring.used_gpa
            )
            self.send(Command.SET_VRING_NUM, wire.RingState(index, ring.size).pack())
            self.send(Command.SET_VRING_BASE, wire.RingState(index, base).pack())
            self.send(Command.SET_VRING_ADDR, address.pack())
            self.send(Command.SET_VRING_KICK, wire.U64(index).pack(), [front.kick])
            self.send(Command.SET_VRING_CALL, wire.U64(index).pack(), [front.call])
        await self.enable(True)
        for index, front in enumerate(self.fronts):
            self.send(Command.SET_VRING_CALL, wire.U64(index).pack(), [front.call])

    async def enable(self, enabled: bool) -> None:
        for index in range(2):
            assert await self.acked(Command.SET_VRING_ENABLE, wire.RingState(index, int(enabled)).pack()) == 0

    async def stop(self) -> list[int]:
        """QMP `stop` or a virtio reset; the indexes to go on from."""
        await self.enable(False)
        bases = []
        for index in range(2):
            answer = await self.request(Command.GET_VRING_BASE, wire.RingState(index, 0).pack())
            bases.append(wire.RingState.parse(answer).num)
        return bases

    async def config(self, nbytes: int = 64) -> bytes:
        """What QEMU asks for at every access of the guest."""
        request = wire.ConfigAccess(0, nbytes, 0).pack() + bytes(nbytes)
        return (await self.request(Command.GET_CONFIG, request))[wire.ConfigAccess.layout.size :]


class Guest:
    """A client, RAM and a driver with two rings in it. The driver waits for interrupts, as a driver does."""

    def __init__(self, client: VhostClient, ram: GuestRam) -> None:
        assert ram.map is not None
        self.client = client
        self.ram = ram
        self._view = memoryview(ram.map)
        self.new_rings()

    def new_rings(self) -> None:
        """Zeroed rings at the same addresses."""
        self._view[: 2 * EVENT_RING_AT] = bytes(2 * EVENT_RING_AT)
        self.requests = DriverRing(self._view, RING_SIZE)
        self.events = DriverRing(self._view, RING_SIZE, offset=EVENT_RING_AT)

    def release(self) -> None:
        """Let go of the RAM, which the caller unmaps."""
        for ring in (self.requests, self.events):
            ring.avail_words.release()
            ring.used_words.release()
        self._view.release()

    async def start(self, bases: Sequence[int] = (0, 0)) -> None:
        await self.client.start((self.requests, self.events), bases)

    async def ask(self, *requests: bytes) -> list[bytes]:
        """Submit, ring the doorbell where it is wanted, wait for the answers."""
        kick = False
        for request in requests:
            kick |= self.requests.submit([request], [4])
        if kick:
            os.eventfd_write(self.client.fronts[0].kick, 1)
        done: list[Completion] = []
        async with asyncio.timeout(5):
            while len(done) < len(requests):
                await self.interrupted(0)
                done += self.requests.reap()
        return [completion.data[: completion.used_nbytes] for completion in done]

    async def interrupted(self, index: int) -> None:
        """Wait for ring `index`'s interrupt."""
        loop, fd = asyncio.get_running_loop(), self.client.fronts[index].call
        came = asyncio.Event()
        loop.add_reader(fd, came.set)
        try:
            async with asyncio.timeout(5):
                await came.wait()
        finally:
            loop.remove_reader(fd)
        fired(fd)


@asynccontextmanager
async def connected(path: Path, ram: GuestRam) -> AsyncIterator[Guest]:
    """A guest after start-up, its RAM handed over, its driver not started."""
    client = await VhostClient.connect(path)
    guest = Guest(client, ram)
    try:
        await client.start_up()
        assert await client.add_memory(0, ram.nbytes, ram.fd) == 0
        yield guest
    finally:
        client.close()
        guest.release()
