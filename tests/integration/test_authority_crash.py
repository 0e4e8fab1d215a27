"""The authority is killed at every point of every kind of commit; its VM has afterwards what both sides say it has.

VDEV_TIER=soak takes every point of each; otherwise a third of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support import authority
from tests.support.authority import Vm, check_ledger, give_back, granted, held_lease, rows, until
from vdev.errors import VdevError

SOAK = os.environ.get("VDEV_TIER") == "soak"
POINTS = ("before", "written", "committed")
# In the order in which the test below commits them.
COMMITS = ["open", "grant", "grant", "grant", "attached", "free-pending", "release", "quota", "reclaim", "drained"]
CASES = [(point, number) for number in range(1, len(COMMITS) + 1) for point in POINTS]


directory = authority.directory


@pytest.mark.parametrize(
    ("point", "number"),
    [pytest.param(*case, id=f"{COMMITS[case[1] - 1]}-{case[1]}-{case[0]}") for case in CASES[:: 1 if SOAK else 4]],
)
async def test_an_authority_killed_within_a_commit_leaves_a_state_that_both_sides_agree_on(
    directory: Path, point: str, number: int
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.authority_failing", str(directory), point, str(number),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 60)

    with Vm() as vm:
        lease, served = await held_lease(directory, vm)
        kept, freed, taken = [await granted(lease) for _ in range(3)]
        lease.attached(freed, True)
        await asyncio.sleep(0)
        lease.free_pending([freed])
        give_back(lease, [freed])
        await order(lease.admin, "pasid-quota", {"quota": 77})
        await order(lease.admin, "pasid-reclaim", {"pasid": taken})
        await until(lambda: taken not in served.held)
        last = await granted(lease)
        status = await asyncio.wait_for(process.wait(), 60)

        assert status == -signal.SIGKILL
        assert kept in served.held
        assert last in served.held
        assert {guest for (guest,) in rows(directory, "SELECT guest FROM pasids")} == served.held
        assert rows(directory, "SELECT quota FROM sets") == [(77,)]
        await lease.close()
    check_ledger(directory, "per-vm")


async def order(admin: Callable[..., Awaitable[object]], command: str, arguments: dict[str, object]) -> None:
    """An administrator whose authority went away in the middle asks again."""
    async with asyncio.timeout(60):
        while True:
            try:
                await admin(command, arguments)
            except VdevError as error:
                if "has no PASID 0x" in str(error):  # the first order had been written down, and was carried out
                    return
                await asyncio.sleep(0.1)
            else:
                return
