"""QEMU's side of a vfio-user socket, with QEMU's traps: what would kill QEMU's connection kills this one.

Traps kept: a header must arrive in one read; a reply must fit the request's buffer; no reply carries fds; a reply
with payload to a forgotten request is fatal. Helpers build, send and raise `Refused` or `ClientDead`; tests assert.
"""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command, DmaLayout

READ_WRITE = int(wire.DmaFlags.READ | wire.DmaFlags.WRITE)
QEMU_CAPABILITIES: dict[str, Any] = {
    "pgsizes": 4096,
    "max_msg_fds": 16,
    "max_dma_maps": 65535,
    "max_data_xfer_size": 1048576,
    "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
    "write_multiple": True,
}


class Refused(Exception):
    """The server answered with an errno."""

    def __init__(self, code: int) -> None:
        self.errno = code
        super().__init__(os.strerror(code))


class ClientDead(Exception):
    """The connection is over, or the server did something QEMU's client does not survive."""


@dataclass
class _Waiting:
    future: asyncio.Future[bytes]
    buffer_nbytes: int


@dataclass
class DmaSide:
    """How this client serves DMA_READ and DMA_WRITE: guest memory, layout, bus mastering; `mute` never answers."""

    layout: DmaLayout = DmaLayout.SPECIFIED
    memory: bytearray = field(default_factory=lambda: bytearray(1 << 18))
    bus_master: bool = True
    mute: bool = False
    seen: list[tuple[int, int, int]] = field(default_factory=list)  # command, address, count


class VfioClient:
    """One connection, as QEMU would drive it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._next_id = 0
        self._waiting: dict[int, _Waiting] = {}
        self._body = bytearray()
        self._header: wire.Header | None = None
        self._body_seen = 0
        self.dma = DmaSide()
        self.death: str | None = None
        self.dead = asyncio.Event()
        self._loop.add_reader(sock, self._readable)

    @classmethod
    async def connect(cls, path: Path) -> Self:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        return cls(sock)

    def close(self) -> None:
        self._die("closed")
        self._sock.close()

    # Messages

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes as they are, in one sendmsg."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([data], rights)

    def send(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> int:
        """One request; the id it got."""
        self._next_id = (self._next_id + 1) & 0xFFFF
        self.send_raw(wire.message(self._next_id, command, payload, flags), fds)
        return self._next_id

    async def request(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), buffer_nbytes: int | None = None
    ) -> bytes:
        """The payload of the reply. Raises Refused, ClientDead, TimeoutError (5 s)."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        room = wire.HEADER_NBYTES + len(payload) if buffer_nbytes is None else buffer_nbytes
        if self.death is not None:
            raise ClientDead(self.death)
        ident = self.send(command, payload, fds)
        self._waiting[ident] = _Waiting(future, room)
        async with asyncio.timeout(5):
            return await future

    def forget(self) -> None:
        """What x-msg-timeout does: nobody waits for the outstanding replies any more."""
        for waiting in self._waiting.values():
            waiting.future.cancel()
        self._waiting.clear()

    # Requests by name

    async def negotiate(self, capabilities: dict[str, Any] | None = None) -> dict[str, Any]:
        """VERSION; the server's capabilities."""
        text = json.dumps({"capabilities": QEMU_CAPABILITIES if capabilities is None else capabilities}).encode()
        answer = await self.request(Command.VERSION, wire.Version(0, 0).pack() + text + b"\0")
        reply = answer[wire.Version.layout.size :]
        found: dict[str, Any] = json.loads(reply[:-1])["capabilities"] if reply else {}
        return found

    async def dma_map(
        self, gpa: int, nbytes: int, fd: int | None = None, offset: int = 0, flags: int = READ_WRITE
    ) -> None:
        request = wire.DmaMap(32, flags, offset, gpa, nbytes)
        await self.request(Command.DMA_MAP, request.pack(), () if fd is None else (fd,))

    async def dma_unmap(self, gpa: int, nbytes: int, flags: int = 0) -> bytes:
        return await self.request(Command.DMA_UNMAP, wire.DmaUnmap(24, flags, gpa, nbytes).pack())

    async def device_info(self) -> wire.DeviceInfo:
        return wire.DeviceInfo.parse(await self.request(Command.DEVICE_GET_INFO, wire.DeviceInfo(16, 0, 0, 0).pack()))

    async def region_info(self, index: int) -> wire.RegionInfo:
        request = wire.RegionInfo(32, 0, index, 0, 0, 0).pack()
        return wire.RegionInfo.parse(await self.request(Command.DEVICE_GET_REGION_INFO, request, buffer_nbytes=48))

    async def irq_info(self, index: int) -> wire.IrqInfo:
        request = wire.IrqInfo(16, 0, index, 0).pack()
        return wire.IrqInfo.parse(await self.request(Command.DEVICE_GET_IRQ_INFO, request))

    async def set_irqs(
        self, flags: int, start: int, count: int, fds: Sequence[int] = (), *, index: int = 2, data: bytes = b""
    ) -> None:
        request = wire.SetIrqs(20, flags, index, start, count)
        await self.request(Command.DEVICE_SET_IRQS, request.pack() + data, fds)

    async def region_read(self, region: int, offset: int, count: int) -> bytes:
        request = wire.RegionAccess(offset, region, count).pack()
        return (await self.request(Command.REGION_READ, request, buffer_nbytes=32 + count))[16:]

    async def region_write(self, region: int, offset: int, data: bytes) -> bytes:
        return await self.request(Command.REGION_WRITE, wire.RegionAccess(offset, region, len(data)).pack() + data)

    def post_write(self, region: int, offset: int, data: bytes) -> None:
        """A posted write: nobody answers."""
        payload = wire.RegionAccess(offset, region, len(data)).pack() + data
        self.send(Command.REGION_WRITE, payload, flags=wire.NO_REPLY)

    async def reset(self) -> None:
        await self.request(Command.DEVICE_RESET)

    # Receiving, as QEMU does it

    def _die(self, why: str) -> None:
        if self.death is None:
            self.death = why
            self._loop.remove_reader(self._sock)
            for waiting in self._waiting.values():
                if not waiting.future.done():
                    waiting.future.set_exception(ClientDead(why))
            self.dead.set()

    def _readable(self) -> None:
        try:
            while self.death is None and self._read_some():
                pass
        except BlockingIOError:
            pass
        except ConnectionError as error:
            self._die(str(error))

    def _read_some(self) -> bool:
        if self._header is None:
            data, ancillary, _, _ = self._sock.recvmsg(wire.HEADER_NBYTES, 256)
            if len(data) != wire.HEADER_NBYTES or ancillary:
                self._die("fds in a reply" if ancillary else "short read of header" if data else "EOF")
                return False
            self._header = wire.Header.parse(data)
            self._body = bytearray(self._header.size - wire.HEADER_NBYTES)
            self._body_seen = 0
        while self._body_seen < len(self._body):
            nbytes = self._sock.recv_into(memoryview(self._body)[self._body_seen :])
            if not nbytes:
                self._die("EOF in a body")
                return False
            self._body_seen += nbytes
        header, self._header = self._header, None
        (self._on_reply if header.is_reply else self._on_request)(header, bytes(self._body))
        return True

    def _on_reply(self, header: wire.Header, payload: bytes) -> None:
        waiting = self._waiting.pop(header.id, None)
        if waiting is None:
            if payload:
                self._die("unexpected reply, then bad header size")
        elif header.size > waiting.buffer_nbytes:
            self._die("reply larger than recv buffer")
            waiting.future.set_exception(ClientDead("reply larger than recv buffer"))
        elif header.flags & wire.ERROR:
            waiting.future.set_exception(Refused(header.errno))
        else:
            waiting.future.set_result(payload)

    def _on_request(self, header: wire.Header, payload: bytes) -> None:
        if self.dma.mute:
            return
        if header.command not in (Command.DMA_READ, Command.DMA_WRITE):
            self.send_raw(wire.error_reply(header, errno.ENOSYS))
            return
        layout, kind = self.dma.layout, wire.DmaAccess
        short = layout is DmaLayout.SHORT_COUNT
        access = wire.DmaAccessShort.parse(payload) if short else kind.parse(payload)
        self.dma.seen.append((header.command, access.address, access.count))
        stop = access.address + access.count
        if access.count and (not self.dma.bus_master or stop > len(self.dma.memory)):
            self.send_raw(wire.error_reply(header, errno.ENODEV))
        elif header.command == Command.DMA_READ:
            data = bytes(self.dma.memory[access.address : stop])
            self.send_raw(wire.reply(header, wire.dma_payload(layout, access.address, access.count, data)))
        else:
            self.dma.memory[access.address : stop] = wire.dma_data(layout, payload, access.count)
            self.send_raw(wire.reply(header, b"" if short else payload[: kind.layout.size]))
