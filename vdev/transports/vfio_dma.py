"""DMA_READ and DMA_WRITE: reaching guest memory through QEMU, for RAM that came without an fd.

Slow, and with rules: QEMU serves these from its main loop, under its global lock, which it also holds while it waits
for our answer to a register access. So they are coroutines only: no synchronous handler can wait for one. A reset
fails what is under way or waiting, and nothing is sent for it afterwards. What QEMU has received already cannot be
called back; it refuses it (ENODEV) because its reset switches bus mastering off first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass

from vdev.errors import DmaError
from vdev.wire import vfio_user as wire
from vdev.wire.vfio_user import Command, DmaLayout

log = logging.getLogger(__name__)

MAX_DMA_NBYTES = 64 << 10  # QEMU loses what does not fit its socket buffer (about 208 KiB) and hangs the connection
MAX_IN_FLIGHT = 16  # requests QEMU has and has not answered
MAX_OVERDUE = 256  # ids whose reply never came; beyond it no more are sent
DEFAULT_TIMEOUT_S = 5.0
REASONS = {
    errno.EFAULT: "memory-error",
    errno.ENODEV: "unmapped-or-bus-master-off",
    errno.EPERM: "access-denied",
    errno.E2BIG: "too-large",
    errno.ENOSYS: "unsupported",
}


@dataclass(slots=True)
class _Answer:
    header: wire.Header
    payload: bytes


class DmaMessages:
    """The DMA requests of one connection. `send` takes one message; `client_limit` is the client's largest transfer."""

    def __init__(
        self, send: Callable[[bytes], None], client_limit: Callable[[], int], timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self._send = send
        self._client_limit = client_limit
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._overdue: set[int] = set()  # given up on, but their replies may still come: not to be used again
        self._next_id = 0
        self._generation = 0
        self._closed = False
        self.layout: DmaLayout | None = None

    @property
    def in_flight(self) -> int:
        """Requests QEMU may still carry out, given up ones included."""
        return len(self._waiting) + len(self._overdue)

    async def probe(self) -> DmaLayout:
        """Learn which layout the client speaks, by a write of no bytes, good in both; DmaError as in `read`."""
        if self.layout is None:
            request = wire.dma_payload(DmaLayout.SPECIFIED, 0, 0)
            answer = await self._exchange(Command.DMA_WRITE, request, 0, self._generation)
            self.layout = DmaLayout.SPECIFIED if answer.payload else DmaLayout.SHORT_COUNT
        return self.layout

    async def read(self, address: int, nbytes: int) -> bytes:
        """`nbytes` at guest-physical `address`; DmaError when refused, late, or cut off by a reset or the end."""
        generation = self._generation
        layout = await self.probe()
        parts = []
        for start, count in self._pieces(address, nbytes):
            request = wire.dma_payload(layout, start, count)
            answer = await self._exchange(Command.DMA_READ, request, start, generation)
            data = wire.dma_data(layout, answer.payload, count)
            if len(data) != count:
                raise DmaError("bad-reply", start, f"{len(data)} of {count} bytes")
            parts.append(data)
        return b"".join(parts)

    async def write(self, address: int, data: bytes) -> None:
        """Store `data` at guest-physical `address`; DmaError as in `read`, with earlier pieces then written."""
        generation = self._generation
        layout = await self.probe()
        for start, count in self._pieces(address, len(data)):
            piece = data[start - address : start - address + count]
            request = wire.dma_payload(layout, start, count, piece)
            await self._exchange(Command.DMA_WRITE, request, start, generation)

    def complete(self, header: wire.Header, payload: memoryview) -> None:
        """A reply came; one nobody waits for any more is dropped."""
        if header.id in self._overdue:
            self._overdue.discard(header.id)
            return
        future = self._waiting.pop(header.id, None)
        if future is None:
            log.debug("a reply to request %d, which was never sent", header.id)
        elif not future.done():
            future.set_result(_Answer(header, bytes(payload)))

    def cancel(self, reason: str) -> None:
        """Fail everything under way or queued behind it with DmaError(`reason`)."""
        self._generation += 1
        for ident, future in self._waiting.items():
            self._overdue.add(ident)
            if not future.done():
                future.set_exception(DmaError(reason, 0, "while a DMA message was under way"))
        self._waiting.clear()

    def close(self) -> None:
        """The connection is over."""
        self._closed = True
        self.cancel("disconnected")

    def _pieces(self, address: int, nbytes: int) -> list[tuple[int, int]]:
        step = min(MAX_DMA_NBYTES, self._client_limit())
        return [(address + at, min(step, nbytes - at)) for at in range(0, nbytes, step)]

    async def _exchange(self, command: Command, payload: bytes, address: int, generation: int) -> _Answer:
        async with self._slots:
            if self._closed or generation != self._generation:
                raise DmaError("disconnected" if self._closed else "reset", address)
            ident = self._new_id(address)
            future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
            self._waiting[ident] = future
            self._send(wire.message(ident, command, payload))
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await future
            except TimeoutError as error:
                raise DmaError("timeout", address, f"no answer in {self._timeout_s} s") from error
            finally:
                if self._waiting.pop(ident, None) is not None:
                    self._overdue.add(ident)
        if answer.header.command != command:
            raise DmaError("bad-reply", address, f"command {answer.header.command}")
        if answer.header.flags & wire.ERROR:
            reason = REASONS.get(answer.header.errno, "refused")
            raise DmaError(reason, address, f"errno {answer.header.errno}")
        return answer

    def _new_id(self, address: int) -> int:
        if len(self._overdue) >= MAX_OVERDUE:
            raise DmaError("timeout", address, f"{len(self._overdue)} earlier requests were never answered")
        while True:
            self._next_id = (self._next_id + 1) & wire.MAX_ID
            if self._next_id not in self._waiting and self._next_id not in self._overdue:
                return self._next_id
