"""Many backends at once, each a process of its own and its own VM: started by a test, told when to end.

    python -m tests.support.authority_crowd DIRECTORY COUNT STEPS SEED

Forks COUNT backends. Each does STEPS random steps and then prints, in one line, what it was granted and what it still
has; all wait for the end of standard input, holding that.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

from tests.support.authority import WAIT_S, Served, allocate, give_back
from vdev.authority.lease import Lease, join
from vdev.iommu.pasid_set import Refusal
from vdev.transports.identity import VmIdentity

JOIN_S = 120.0  # on a busy machine, with as many others


class Guest:
    """One backend with its set, and what it does to it."""

    def __init__(self, lease: Lease, served: Served, seed: int) -> None:
        self.lease = lease
        self.served = served
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.nawaited = 0

    async def step(self) -> None:
        """Mostly allocations, so that quotas and the host's supply are reached."""
        pick = self.random.random()
        if pick < 0.55 or not self.served.held:
            await self.allocate()
        elif pick < 0.7:
            self.lease.attached(self.random.choice(sorted(self.served.held)), self.random.random() < 0.6)
        elif pick < 0.8:
            freed = self.some()
            self.lease.free_pending(freed)
            give_back(self.lease, freed)
        else:
            give_back(self.lease, self.some())
        self.counts["steps"] += 1

    async def allocate(self) -> None:
        found = await allocate(self.lease)
        if isinstance(found, Refusal):
            self.counts[found.value] += 1
        else:
            self.counts["granted"] += 1

    def some(self) -> list[int]:
        held = sorted(self.served.held)
        return self.random.sample(held, min(len(held), self.random.randint(1, 4)))

    async def settle(self) -> None:
        """Everything said so far is in the ledger once an allocation was answered."""
        async with asyncio.timeout(WAIT_S * 3):
            found: int | Refusal = Refusal.UNREACHABLE
            while found is Refusal.UNREACHABLE:
                found = await allocate(self.lease)


async def backend(directory: Path, number: int, steps: int, seed: int) -> None:
    """The life of one."""
    async with asyncio.timeout(JOIN_S):
        lease = await join(directory, f"vm{number}")
    served = Served()
    served.lease = lease
    lease.holder = served
    lease.bind(VmIdentity(checked=False))
    guest = Guest(lease, served, seed + number)
    await guest.settle()
    while guest.counts["steps"] < steps:
        await guest.step()
    await guest.settle()
    line = json.dumps({"vm": f"vm{number}", "held": sorted(served.held), "counts": guest.counts})
    os.write(1, line.encode() + b"\n")  # one write, so that lines of others are not in it
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await guest.settle()  # an authority is there: one that was killed just now would see nobody's end
    await lease.close()


def main(directory: str, count: int, steps: int, seed: int) -> None:
    """Fork them, and wait for them."""
    children = []
    for number in range(count):
        pid = os.fork()
        if not pid:
            signal.alarm(600)  # whatever happens
            asyncio.run(backend(Path(directory), number, steps, seed))
            os._exit(0)
        children.append(pid)
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
