"""Acceptance 2 of issue 5 but for its times, which `make bench` measures: nothing is lost and order is kept while one
client never reads and one sends what is no JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.monitor.crowd import Tally, deaf, ordinary
from tests.support.monitor_lab import WAIT_S, client, lab

CLIENTS = 18
SECONDS = 60 if os.environ.get("VDEV_TIER") == "soak" else 4
PAUSE_S = 0.02


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.soak(count=SECONDS, seed=1)
async def test_among_bad_clients_nothing_is_lost_and_order_is_kept(tmp_path: Path) -> None:
    tally = Tally()
    async with lab(tmp_path) as monitors, client(monitors.bridged) as person:
        bad = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.monitor", monitors.bridged, str(SECONDS + WAIT_S)
        )
        try:
            with closing(deaf(monitors.bridged)):
                end = time.monotonic() + SECONDS
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(CLIENTS):
                        tasks.create_task(ordinary(monitors.bridged, lambda: time.monotonic() < end, PAUSE_S, tally))
                    changes = 0
                    while time.monotonic() < end:
                        assert await person.ask("cont" if changes % 2 == 0 else "stop") == {"return": {}}
                        changes += 1
                        await asyncio.sleep(PAUSE_S)
            still_bad = bad.returncode is None
        finally:
            if bad.returncode is None:
                bad.kill()
            await bad.wait()

    assert still_bad, "the one that sends no JSON has ended"
    assert len(person.events) == changes
    assert [event["event"] for event in person.events] == (["RESUME", "STOP"] * changes)[:changes]
    assert tally.commands > CLIENTS * 10
    assert tally.events > 0
