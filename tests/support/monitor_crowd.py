"""Clients of one monitor who check what they are told: their own replies in their order, the events in all others'."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

WAIT_S = 30.0
MAX_LINE_NBYTES = 1 << 20
_EVENT = re.compile(rb'\{"timestamp": \{"seconds": \d+, "microseconds": +\d+\}, "event": "(\w+)"')
NUMBERED = "DEVICE_DELETED"


class Client:
    """One that reads everything. `events` are lines as they came, `replies` wait to be taken."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[bytes] = []
        self.numbered = 0  # of them, how many with a number
        self.told = asyncio.Event()  # one more has come
        self.replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self, path: Path) -> None:
        """Connect and negotiate."""
        self._reader, self._writer = await asyncio.open_unix_connection(path, limit=MAX_LINE_NBYTES)
        assert "QMP" in json.loads(await self._reader.readline())
        self._tasks.append(asyncio.create_task(self._read()))
        assert await self.ask([{"execute": "qmp_capabilities", "id": self.name}]) == [{"return": {}, "id": self.name}]

    async def close(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        while line := await self._reader.readline():
            if event := _EVENT.match(line):
                self.events.append(line)
                self.numbered += event[1].decode() == NUMBERED
                self.told.set()
            else:
                self.replies.put_nowait(json.loads(line))
        self.replies.put_nowait({"hung up": self.name})

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self._writer.write(data)

    async def reply(self) -> dict[str, Any]:
        """The next one. TimeoutError when there is none."""
        async with asyncio.timeout(WAIT_S):
            return await self.replies.get()

    async def ask(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As many replies as requests, which are sent at once."""
        self.send(b"".join(json.dumps(request).encode() for request in requests))
        return [await self.reply() for _ in requests]

    async def has_heard(self, numbered: int) -> None:
        """Wait until so many events with numbers have come. AssertionError when they do not."""
        try:
            async with asyncio.timeout(WAIT_S):
                while self.numbered < numbered:
                    self.told.clear()
                    await self.told.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name} has heard {self.numbered} events, not {numbered}") from None


class Asker:
    """Asks what has one right answer, different from everybody else's: `batches` counts those that were all right.

    Counts up in an object of its own in QEMU, so that a command that overtakes another one is seen.
    """

    def __init__(self, client: Client, seed: int) -> None:
        self.client = client
        self.batches = 0
        self._random = Random(f"{seed} {client.name}")
        self._number = self._counter = 0

    async def run(self, until: asyncio.Event) -> None:
        """Batch after batch. AssertionError when a reply is not the one that is due."""
        arguments = {"qom-type": "iothread", "id": self.client.name, "poll-max-ns": 0}
        add = {"execute": "object-add", "arguments": arguments, "id": 0}
        assert await self.client.ask([add]) == [{"return": {}, "id": 0}]
        while not until.is_set():
            pairs = [self._pair() for _ in range(self._random.randint(1, 12))]
            replies = await self.client.ask([request for request, _ in pairs])
            expected = [reply for _, reply in pairs]
            assert replies == expected, (replies, expected)
            self.batches += 1

    def _pair(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """A request and its reply."""
        self._number += 1
        who = f"{self.client.name}-{self._number}"
        own_id = self._random.choice([who, self._number, {"client": who}, [who, None], 0.5 + self._number])
        request, reply = self._random.choice([self._set, self._get, self._unknown, self._absent])(who)
        return {**request, "id": own_id}, {**reply, "id": own_id}

    def _counter_of(self, **value: int) -> dict[str, Any]:
        return {"path": f"/objects/{self.client.name}", "property": "poll-max-ns", **value}

    def _set(self, _: str) -> tuple[dict[str, Any], dict[str, Any]]:
        self._counter += 1
        return {"execute": "qom-set", "arguments": self._counter_of(value=self._counter)}, {"return": {}}

    def _get(self, _: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"execute": "qom-get", "arguments": self._counter_of()}, {"return": self._counter}

    def _unknown(self, who: str) -> tuple[dict[str, Any], dict[str, Any]]:
        error = {"class": "CommandNotFound", "desc": f"The command x-{who} has not been found"}
        return {"execute": f"x-{who}"}, {"error": error}

    def _absent(self, who: str) -> tuple[dict[str, Any], dict[str, Any]]:
        error = {"class": "DeviceNotFound", "desc": f"Device '{who}' not found"}
        return {"execute": "device_del", "arguments": {"id": who}}, {"error": error}
