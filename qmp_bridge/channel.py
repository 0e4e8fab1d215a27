"""The payload's channel: JSON lines over a virtio-serial port. The guest is not trusted: lines and queue are capped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from qmp_bridge.errors import VmDied

MAX_LINE_NBYTES = 1 << 18
MAX_WAITING = 1024  # messages; a guest that sends more waits until somebody has read some
_CHUNK = 1 << 16


class Channel:
    """The host's end. `run` reads until QEMU hangs up, whether or not anybody listens to `messages`."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_WAITING)
        self._writer: asyncio.StreamWriter | None = None
        self.greeted = asyncio.Event()  # the guest has said something
        self.ended = asyncio.Event()  # nothing more will come
        self.verdict: dict[str, Any] | None = None  # the `done` message

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read until the end. Raises VmDied when the guest sends what is not a JSON object a line."""
        self._writer = writer
        pending = bytearray()
        try:
            while chunk := await reader.read(_CHUNK):
                *lines, rest = (pending + chunk).split(b"\n")
                pending = bytearray(rest)
                if len(pending) > MAX_LINE_NBYTES:
                    raise VmDied(f"the guest's payload sent a line of more than {MAX_LINE_NBYTES} bytes")
                for line in lines:
                    await self._take(line)
        except ConnectionError:
            pass  # the same as its end
        finally:
            self._writer = None
            writer.close()
            self.ended.set()

    async def _take(self, line: bytes | bytearray) -> None:
        if not line.strip():
            return
        message = parse_message(line)
        self.greeted.set()
        if message.get("done") is True:
            self.verdict = message
        await self._waiting.put(message)

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Every message in order, `done` being the last. Ends earlier when QEMU hangs up."""
        while True:
            message = await self._next()
            if message is None:
                return
            yield message
            if message.get("done") is True:
                return

    async def _next(self) -> dict[str, Any] | None:
        """The next message, None when no more will come."""
        getting = asyncio.ensure_future(self._waiting.get())
        ending = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait([getting, ending], return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            return None if self._waiting.empty() else self._waiting.get_nowait()
        finally:
            getting.cancel()
            ending.cancel()

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message. Raises VmDied when there is no channel any more."""
        if self._writer is None:
            raise VmDied("the guest's channel is closed")
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        await self._writer.drain()


def parse_message(line: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `line`. Raises VmDied for anything else."""
    shown = bytes(line[:80])
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise VmDied(f"the guest's payload sent what is not JSON: {shown!r}") from None
    match message:
        case dict():
            return message
        case _:
            raise VmDied(f"the guest's payload sent JSON that is not an object: {shown!r}")
