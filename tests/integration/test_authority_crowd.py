"""64 backends in processes of their own on one authority, which is killed again and again: no PASID is lost or doubled.

VDEV_TIER=soak does more steps, and kills fifty times.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.authority import check_ledger, kill_authority, peak, rows, until

SOAK = os.environ.get("VDEV_TIER") == "soak"
BACKENDS = 64
STEPS = 600 if SOAK else 40  # of each
KILLS = 50 if SOAK else 4
END_S = 600.0 if SOAK else 100.0
SEED = 64


class Crowd:
    """The processes, and what each said at its end."""

    def __init__(self, directory: Path, steps: int) -> None:
        self.said: dict[str, Any] = {}
        self._words = [sys.executable, "-m", "tests.support.authority_crowd", str(directory)]
        self._words += [str(BACKENDS), str(steps), str(SEED)]

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24
        )

    async def listen(self) -> None:
        """Until all have said what they have; they go on having it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(END_S):
            while len(self.said) < BACKENDS:
                line = await self._process.stdout.readline()
                assert line, f"only {sorted(self.said)} came to an end"
                one = json.loads(line)
                self.said[one["vm"]] = one

    async def end(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await asyncio.wait_for(self._process.wait(), END_S)

    @property
    def counts(self) -> Counter[str]:
        return sum((Counter(one["counts"]) for one in self.said.values()), Counter())


async def play(directory: Path, config: str, steps: int, kills: int) -> Crowd:
    (directory / "host.yaml").write_text(config)
    authority = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vdev.authority",
        "--runtime-dir",
        str(directory),
        "--config",
        str(directory / "host.yaml"),
    )
    await authority.wait()
    await until((directory / "lease.sock").exists)
    crowd = Crowd(directory, steps)
    await crowd.start()
    listening = asyncio.ensure_future(crowd.listen())
    rng = random.Random(SEED)
    nkilled = 0
    while nkilled < kills:
        await asyncio.sleep(rng.uniform(0.05, 0.8))
        nkilled += kill_authority(directory)
    await listening
    return crowd


def held_in_ledger(directory: Path) -> dict[str, list[int]]:
    held: dict[str, list[int]] = {name: [] for (name,) in rows(directory, "SELECT name FROM sets")}
    for name, guest in rows(directory, "SELECT name, guest FROM pasids JOIN sets ON set_id = id ORDER BY guest"):
        held[name].append(guest)
    return held


@pytest.mark.soak(count=BACKENDS * STEPS, seed=SEED)
@pytest.mark.parametrize("space", ["system", "per-vm"])
async def test_64_backends_have_exactly_what_the_ledger_says_whenever_the_authority_is_killed(
    tmp_path: Path, space: str, record_property: Callable[[str, object], None]
) -> None:
    tmp_path.chmod(0o700)  # noqa: ASYNC240
    try:
        crowd = await play(tmp_path, f"space: {space}\nquota: 30\ncapacity: 1500\n", STEPS, KILLS)
        held = held_in_ledger(tmp_path)
        ngrants = check_ledger(tmp_path, space)
        failed = await crowd.end()
        await until(lambda: rows(tmp_path, "SELECT count(*) FROM sets") == [(0,)])
        left = rows(tmp_path, "SELECT count(*) FROM pasids")
        check_ledger(tmp_path, space)
    finally:
        kill_authority(tmp_path)

    record_property("grants", ngrants)
    record_property("kills", KILLS)
    assert failed == 0
    assert held == {vm: one["held"] for vm, one in crowd.said.items()}
    assert ngrants >= crowd.counts["granted"] > 0
    assert left == [(0,)]
    if space == "system":
        everything = [pasid for one in crowd.said.values() for pasid in one["held"]]
        assert len(everything) == len(set(everything))


async def test_64_backends_exhaust_the_host_to_the_last_pasid_and_no_further(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # noqa: ASYNC240
    config = 'space: system\nreserved: ["1..0xff", "0x200..0xfffff"]\n'  # 256 are left
    try:
        crowd = await play(tmp_path, config, 30, 0)
        ngranted = sum(map(len, held_in_ledger(tmp_path).values()))
        most, full = peak(tmp_path), crowd.counts["supply"]
        check_ledger(tmp_path, "system")
        failed = await crowd.end()
    finally:
        kill_authority(tmp_path)

    assert failed == 0
    assert full > 0
    assert most == 256
    assert ngranted <= 256
    assert max(pasid for one in crowd.said.values() for pasid in one["held"]) <= 0x1FF
