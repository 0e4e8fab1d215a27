"""The driver's process of the lost-kick test: python -m tests.support.lost_kick_driver PLAN.

PLAN is JSON (see `Plan`). Each round it adds one to three chains to a ring in shared memory, publishes them, and
kicks the eventfd only if the ring's suppression state demands it. Random delays of the order of the device's polling
time put the publication anywhere around the device's rearming. On success it writes its counts to standard
output as JSON and exits 0.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import sys
import time
from dataclasses import asdict, dataclass

from tests.support.driver import DriverRing
from vdev.transports.fence import make_ordering

MEMORY_NBYTES = 1 << 16
RING_OFFSET = 4096  # the page before it holds the control words
RING_SIZE = 16
DECIDED_WORD = 0  # u64: chains published, and kicked or not
DONE_WORD = 1  # u64: 1 when every reply has been reaped
ANSWER_TIMEOUT_S = 60.0  # far above the device's own: it finds a lost kick first and names it

_NUMBER = struct.Struct("<Q")


@dataclass(slots=True)
class Plan:
    """What the driver's process shall do, over which inherited descriptors."""

    memory_fd: int
    kick_fd: int
    event_idx: bool
    indirect: bool
    rounds: int
    seed: int
    max_delay_spins: int = 150

    def dumps(self) -> str:
        """As the process's argument."""
        return json.dumps(asdict(self))


def make_ring(ram: memoryview, *, event_idx: bool) -> DriverRing:
    """The ring both processes speak of; the device side calls this before the driver starts."""
    return DriverRing(
        ram,
        RING_SIZE,
        offset=RING_OFFSET,
        event_idx=event_idx,
        ordering=make_ordering(),
    )


class LostKickDriver:
    """Rounds of publish, decide, kick, reap."""

    def __init__(self, plan: Plan, ram: memoryview) -> None:
        self.plan = plan
        self.ring = make_ring(ram, event_idx=plan.event_idx)
        self.control = ram[:RING_OFFSET].cast("Q")
        self.random = random.Random(plan.seed)
        self.kicks = 0
        self.chains = 0
        self.expected: dict[int, bytes] = {}

    def run(self) -> None:
        """All rounds; the ring is empty again afterwards."""
        draw = self.random.random
        for _ in range(self.plan.rounds):
            # Most rounds wait for everything, as Linux does under its spinlock; some leave chains with the device.
            self.wait_until(0 if draw() < 0.75 else 4)
            for _ in range(int(draw() * self.plan.max_delay_spins)):
                pass
            self.one_round(1 if draw() < 0.8 else 3)
            self.control[DECIDED_WORD] = self.chains
        self.wait_until(0)
        self.control[DONE_WORD] = 1

    def one_round(self, count: int) -> None:
        """Publish `count` chains at once and kick if the device wants it."""
        for _ in range(count):
            self.chains += 1
            question = _NUMBER.pack(self.chains)
            head = self.ring.add([question], [8], indirect=self.plan.indirect)
            self.expected[head] = question
        self.ring.publish()
        if self.ring.kick_needed():
            self.kicks += 1
            os.eventfd_write(self.plan.kick_fd, 1)

    def wait_until(self, outstanding: int) -> None:
        """Reap until no more than `outstanding` chains are with the device; TimeoutError, ValueError."""
        spins = 0
        deadline = 0.0
        while True:
            for completion in self.ring.reap() if self.ring.has_used() else ():
                if completion.data != self.expected.pop(completion.head) or completion.used_nbytes != 8:
                    raise ValueError(f"wrong reply: {completion}")
            if len(self.expected) <= outstanding:
                return
            spins += 1
            if spins % 256 == 0:
                deadline = deadline or time.monotonic() + ANSWER_TIMEOUT_S
                if time.monotonic() > deadline:
                    raise TimeoutError("the device does not answer")
                os.sched_yield()  # on a busy machine the device may need this CPU


def main() -> None:
    """Map the shared memory, run, report."""
    plan = Plan(**json.loads(sys.argv[1]))
    driver = LostKickDriver(plan, memoryview(mmap.mmap(plan.memory_fd, MEMORY_NBYTES)))
    driver.run()
    sys.stdout.write(json.dumps({"rounds": plan.rounds, "chains": driver.chains, "kicks": driver.kicks}) + "\n")


if __name__ == "__main__":
    main()
