"""Clients of a monitor: ordinary ones, which check that nothing is lost and order is kept; one that never reads; one
that sends what is no JSON.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

LIMIT_NBYTES = 16 << 20
BURST = ("query-status", "query-name", "query-version", "query-nonsense", "query-kvm")
_NEGOTIATE = b'{"execute": "qmp_capabilities"}'
_WASTE = (b"{", b"}", b"[", b"]", b'"', b"'", b"@", b"\\", b"\n", b"\x00", b"\xff", b"nonsense", b"-", b"0", b'{"a": 1',
          b'{"execute": "query-name"', b'{"execute": 5}', b"[[[[", b"true")  # fmt: skip


class Disorder(Exception):
    """A reply was lost, came twice or in the wrong place."""


@dataclass(slots=True)
class Tally:
    """What ordinary clients have seen. Times before `since` are not kept: programs start, the first reply is made."""

    since: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of single commands, sent to received
    commands: int = 0
    events: int = 0


async def ordinary(path: str, goes_on: Callable[[], bool], pause_s: float, tally: Tally) -> None:
    """One command, a pause, some commands at once, a pause, and so on. Raises Disorder."""
    reader, writer = await asyncio.open_unix_connection(path, limit=LIMIT_NBYTES)
    with closing(writer):
        await reader.readline()
        await _ask(reader, writer, ["qmp_capabilities"], 0, tally)
        number = 0
        while goes_on():
            began = time.perf_counter()
            await _ask(reader, writer, ["query-status"], number, tally)
            if began >= tally.since:
                tally.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(pause_s)
            await _ask(reader, writer, BURST, number + 1, tally)
            number += 1 + len(BURST)
            await asyncio.sleep(pause_s)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, names: Any, number: int, tally: Tally
) -> None:
    requests = [{"execute": name, "id": [number + at, name]} for at, name in enumerate(names)]
    writer.write("".join(map(json.dumps, requests)).encode())
    for request in requests:
        while "event" in (message := json.loads(await reader.readline())):
            tally.events += 1
        if message.get("id") != request["id"] or ("error" in message) != (request["execute"] == "query-nonsense"):
            raise Disorder(f"{request} is answered by {message}")
        tally.commands += 1


def deaf(path: str) -> socket.socket:
    """A client that asks for much and never reads; the caller closes it."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.setblocking(False)
    with suppress(BlockingIOError):
        sock.send(_NEGOTIATE + b'{"execute": "query-qmp-schema"}' * 1000)
    return sock


def malformed(path: str, goes_on: Callable[[], bool], seed: int) -> int:
    """Send what is no JSON as fast as it is taken, and read what comes, unread by anybody; how many bytes were sent."""
    random, sent = Random(seed), 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(_NEGOTIATE)
        sock.setblocking(False)
        while goes_on():
            try:
                sent += sock.send(b"".join(random.choices(_WASTE, k=200)))
            except BlockingIOError:
                time.sleep(0.001)
            try:
                while sock.recv(1 << 16):
                    pass
            except BlockingIOError:
                pass
    return sent
