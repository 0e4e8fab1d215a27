"""The bridge's connections to vdev's control socket: commands, events, and whether it answers at all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any

from qmp_bridge.bridge.messages import event_line
from qmp_bridge.control_client import ControlClient
from qmp_bridge.errors import Refused, VmDied

MAX_COMMANDS = 4  # at once, each on a connection of its own: freeze and thaw have theirs and wait for none
PING_SECONDS = 2.0
STALLED_SECONDS = 3.0  # without an answer
RETRY_SECONDS = 2.0
_MAX_EVENT_NBYTES = 1 << 20

Tell = Callable[[bytes, str, Mapping[str, Any]], None]


class VdevLink:
    """One vdev's. `tell` gets vdev's events and our own about it: a line for clients, the name without prefix, data."""

    def __init__(self, path: str, prefix: str, tell: Tell) -> None:
        self._path = path
        self._prefix = prefix
        self._tell = tell
        self._slots = asyncio.Semaphore(MAX_COMMANDS)

    async def ask(self, command: str, arguments: Mapping[str, object]) -> Any:
        """What vdev's command returns. Raises Refused; VmDied when vdev does not answer."""
        async with self._slots:
            with closing(ControlClient(self._path)) as control:
                return await control.ask(command, arguments)

    async def run(self) -> None:
        """Follow vdev's events and its health until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_forever())
            tasks.create_task(self._ping_forever())

    async def _follow_forever(self) -> None:
        while True:
            with suppress(OSError, ValueError):  # vdev is away, or sends what cannot be: the ping tells the clients
                await self._follow()
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=_MAX_EVENT_NBYTES)
        with closing(writer):
            writer.write(b'{"execute": "events-follow"}\n')
            while line := await reader.readline():
                message = json.loads(line)
                if "event" in message:
                    name, data = message["event"], message.get("data", {})
                    event = {"timestamp": message["timestamp"], "event": self._prefix + name, "data": data}
                    self._tell(json.dumps(event).encode() + b"\r\n", name, data)

    async def _ping_forever(self) -> None:
        stalled_since = 0.0
        with closing(ControlClient(self._path)) as control:
            while True:
                asked = time.monotonic()
                try:
                    await control.ask("query-status", {}, STALLED_SECONDS)
                except Refused:
                    pass  # an answer
                except VmDied as error:
                    if not stalled_since:
                        stalled_since = asked
                        self._say("BACKEND_STALLED", {"seconds": time.monotonic() - asked, "reason": str(error)})
                    await asyncio.sleep(PING_SECONDS)
                    continue
                if stalled_since:
                    self._say("BACKEND_RESUMED", {"seconds": time.monotonic() - stalled_since})
                    stalled_since = 0.0
                await asyncio.sleep(PING_SECONDS)

    def _say(self, event: str, data: Mapping[str, object]) -> None:
        self._tell(event_line(self._prefix + event, data, time.time()), event, data)
