"""20 clients on one bridge in front of a real QEMU: one never reads, one sends what is no JSON, all others are served.

VDEV_TIER=soak does it for a minute, and until the one who never reads was cut off. Nothing is timed here: `make bench`
is for that.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bridge.client import GARBAGE
from benchmarks.bridge.stage import bridge, qemu
from qmp_bridge.bridge.output import MAX_NBYTES
from tests.support.monitor_crowd import Asker, Client
from vdev.parts.qemu import find_qemu

pytestmark = pytest.mark.timeout(600)

SOAK = os.environ.get("VDEV_TIER") == "soak"
SECONDS = 60 if SOAK else 3
SEED = 20261125
ASKERS = 16
# Replugging a USB device makes an event with its name, twice: here the number, and what fills a silent client's queue.
FILLING = "x" * (8 << 10 if SOAK else 1 << 10)
LEAD = 16  # events that the one who makes them is ahead of the slowest reader: readers are not to be cut off
ROOM_NBYTES = MAX_NBYTES + (16 << 20) if SOAK else 4 << 20  # a client that is paused costs little, until events come
SILENT_ASKS = 4000  # for more than that in all
MACHINE = ("-machine", "q35", "-accel", "qtest", "-device", "qemu-xhci,id=usb")
CUT_OFF = "a client does not read"


@dataclass
class Crowd:
    """Everybody, and what came of it. `over`: time is up."""

    path: Path
    log: Path
    pid: int
    resident_nbytes: int
    askers: list[Asker] = field(default_factory=list)
    readers: list[Client] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    garbage: list[int] = field(default_factory=list)  # errors that each portion was answered with
    numbers: int = 0  # events made

    async def replug(self, client: Client) -> None:
        """Numbered events, until it is over."""
        while not self.over.is_set():
            device = f"n{self.numbers}-{FILLING}"
            add = {"driver": "usb-mouse", "bus": "usb.0", "id": device}
            requests = [
                {"execute": "device_add", "arguments": add, "id": "add"},
                {"execute": "device_del", "arguments": {"id": device}, "id": "del"},
            ]
            assert await client.ask(requests) == [{"return": {}, "id": "add"}, {"return": {}, "id": "del"}]
            self.numbers += 1
            for reader in self.readers:
                await reader.has_heard(self.numbers - LEAD)

    async def stop_and_continue(self, client: Client) -> None:
        """The VM stops and goes on, until it is over."""
        while not self.over.is_set():
            for name in ("stop", "cont"):
                assert await client.ask([{"execute": name, "id": name}]) == [{"return": {}, "id": name}]

    async def pour(self, client: Client) -> None:
        """What is no JSON and no command, and between two portions of it a command."""
        while not self.over.is_set():
            self.garbage.append(await errors_for_garbage(client, f"portion {len(self.garbage)}"))

    async def end(self) -> None:
        """Set `over` when it is time."""
        until = time.monotonic() + SECONDS
        async with asyncio.timeout(SECONDS + 240):
            while time.monotonic() < until or (SOAK and CUT_OFF not in self.log.read_text()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        self.over.set()

    def grown_nbytes(self) -> int:
        """By how much the bridge was larger at its largest than before."""
        return status_nbytes(self.pid, "VmHWM") - self.resident_nbytes


async def errors_for_garbage(client: Client, own_id: str) -> int:
    """How many errors a portion of garbage is answered with, before the reply to the command behind it."""
    client.send(GARBAGE + b'{"execute": "query-name", "id": "%s"}' % own_id.encode())
    errors = 0
    while "error" in (reply := await client.reply()):
        assert reply["error"]["class"] == "GenericError"
        assert "id" not in reply
        errors += 1
    assert reply == {"return": {}, "id": own_id}
    return errors


def status_nbytes(pid: int, name: str) -> int:
    """A size from /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


@asynccontextmanager
async def clients(path: Path, *names: str) -> AsyncIterator[list[Client]]:
    """Connected and negotiated."""
    async with AsyncExitStack() as stack:
        found = [Client(name) for name in names]
        for client in found:
            stack.push_async_callback(client.close)
            await client.connect(path)
        yield found


@asynccontextmanager
async def silent(path: Path) -> AsyncIterator[asyncio.StreamReader]:
    """One that asks a lot and reads nothing (its reader's small buffer is soon full)."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1)
    writer.write(b'{"execute": "qmp_capabilities"}' + b'{"execute": "qom-list-types"}' * SILENT_ASKS)
    try:
        yield reader
    finally:
        writer.transport.abort()


async def run(crowd: Crowd) -> list[bytes]:
    """Everybody at once; the events that each reader has to have, in their order."""
    names = [f"asker{number}" for number in range(ASKERS)]
    async with clients(crowd.path, "replugger", "stopper", "pourer", *names) as readers, silent(crowd.path):
        replugger, stopper, pourer, *asking = crowd.readers = readers
        crowd.askers = [Asker(client, SEED) for client in asking]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.replug(replugger))
            tasks.create_task(crowd.stop_and_continue(stopper))
            tasks.create_task(crowd.pour(pourer))
            for asker in crowd.askers:
                tasks.create_task(asker.run(crowd.over))
            await crowd.end()
        for reader in readers:
            await reader.has_heard(crowd.numbers)
        return replugger.events


def up_to_the_last_number(events: list[bytes]) -> list[bytes]:
    """What everybody has: of what comes later, some may have heard less than others."""
    last = max(at for at, line in enumerate(events) if b'"DEVICE_DELETED"' in line)
    return events[: last + 1]


def numbers_in(events: list[bytes]) -> list[int]:
    """Of the devices that were deleted (an event each with the name, and one without when there is none)."""
    deleted = [message["data"]["device"] for message in map(json.loads, events) if message["event"] == "DEVICE_DELETED"]
    return [int(device.removeprefix("n").partition("-")[0]) for device in deleted]


@pytest.mark.soak(count=SECONDS, seed=SEED)
async def test_a_client_that_never_reads_and_one_that_sends_garbage_take_nothing_from_the_others(
    tmp_path: Path, record_property: Any
) -> None:
    upstream, direct = tmp_path / "qemu.sock", tmp_path / "direct.sock"
    with ExitStack() as stack:
        stack.enter_context(qemu(find_qemu(None, lambda line: None), [upstream, direct], MACHINE))
        path, pid = stack.enter_context(bridge(tmp_path, upstream))
        async with clients(direct, "direct") as (plain,):
            expected_errors = await errors_for_garbage(plain, "direct")
        crowd = Crowd(path, tmp_path / "bridge.log", pid, status_nbytes(pid, "VmRSS"))

        events = up_to_the_last_number(await run(crowd))

        grown = crowd.grown_nbytes()
    batches = [asker.batches for asker in crowd.askers]
    run_states = [name for name in (json.loads(line)["event"] for line in events) if name in ("STOP", "RESUME")]
    facts = {"batches": sum(batches), "events": len(events), "portions": len(crowd.garbage), "grown_kib": grown >> 10}
    for name, value in facts.items():
        record_property(name, value)
    assert min(batches) > 0
    assert numbers_in(events) == list(range(crowd.numbers))
    assert run_states == [("STOP", "RESUME")[number % 2] for number in range(len(run_states))]
    assert len(run_states) > 1
    for reader in crowd.readers:
        assert up_to_the_last_number(reader.events) == events
    assert set(crowd.garbage) == {expected_errors}
    assert crowd.log.read_text().count(CUT_OFF) == SOAK
    assert grown < ROOM_NBYTES
