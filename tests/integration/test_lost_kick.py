"""A kick lost between the driver's last look and ours hangs a stock guest for good: provoke the race, in two processes.

The driver's process (tests/support/lost_kick_driver.py) kicks only if the ring says so. This side does what the
backend does: suppress, process, poll for a bounded time, rearm, block. Blocking past a time-out with work in
the ring is the lost kick. VDEV_TIER=soak runs 1,000,000 rounds of each suppression style.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.driver import DriverRing
from tests.support.lost_kick_driver import DECIDED_WORD, DONE_WORD, MEMORY_NBYTES, RING_OFFSET, Plan, make_ring
from vdev.memory import Region, RegionTable
from vdev.transports.fence import make_ordering
from vdev.virtio.queue import Queue

SOAK = os.environ.get("VDEV_TIER") == "soak"
SEED = int(os.environ.get("VDEV_SEED", "2"))
ROUNDS = 500_000 if SOAK else 30_000  # of each of the two chain kinds, per style
HOOKED_ROUNDS = 300
ROOT = Path(__file__).parents[2]
MAX_POLLS = 2_000
OVERALL_S = 3000.0 if SOAK else 60.0


class LostKickError(Exception):
    """The device blocked although there was work, and nobody woke it."""


class ForgetfulQueue(Queue):
    """A build with the recheck after rearming removed."""

    def _recheck(self) -> bool:
        return False


@dataclass
class Device:
    """The backend's loop around one queue. `before_arm` runs between the last fruitless poll and `rearm`."""

    queue: Queue
    kick_fd: int
    exit_fd: int  # readable when the driver's process has ended; -1 without one
    timeout_s: float
    before_arm: Callable[[], None] = lambda: None
    counts: dict[str, int] = field(default_factory=lambda: {"chains": 0, "saved": 0, "blocked": 0})
    polls: float = 20.0

    def run(self) -> None:
        """Serve until the driver's process has ended; LostKickError, TimeoutError."""
        draw = random.Random(SEED).random
        deadline = time.monotonic() + OVERALL_S
        while time.monotonic() < deadline:
            self.queue.suppress()
            while self.poll(int(self.polls * (0.5 + draw()))):
                pass
            self.before_arm()
            if self.queue.rearm():
                self.counts["saved"] += 1
            elif not self.block():
                return
        raise TimeoutError("the driver did not finish")

    def poll(self, looks: int) -> bool:
        """Look up to `looks` times; whether there was work.

        The number follows the driver: fewer looks after success, more after failure, so that on any machine
        polling ends about when the driver publishes. That is where the race is.
        """
        for _ in range(looks):
            if self.process():
                self.polls = max(1.0, self.polls * 0.93)
                return True
        self.polls = min(MAX_POLLS, self.polls * 1.07 + 0.1)
        return False

    def process(self) -> bool:
        """Answer every chain there is with its own question."""
        pushed = False
        while (chain := self.queue.pop()) is not None:
            self.queue.push(chain, chain.write(chain.read(8)))
            self.counts["chains"] += 1
            pushed = True
        if pushed:
            self.queue.publish()
        return pushed

    def block(self) -> bool:
        """Sleep until kicked (True) or until the driver's process ended (False)."""
        self.counts["blocked"] += 1
        poller = select.poll()
        for fd in (self.kick_fd, self.exit_fd):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        suspicious = False
        while True:
            ready = {fd for fd, _ in poller.poll(self.timeout_s * 1000)}
            if self.kick_fd in ready:
                os.eventfd_read(self.kick_fd)
                return True
            if self.exit_fd in ready:
                return False
            # The driver may have published a moment ago and be about to kick: only a second time-out proves the loss.
            work = Queue._recheck(self.queue)
            if work and suspicious:
                raise LostKickError(f"work in the ring, no kick in {self.timeout_s} s, after {self.counts}")
            suspicious = work


def queue_over(ram: memoryview, ring: DriverRing, queue_class: type[Queue]) -> Queue:
    """The device's side of `ring`."""
    memory = RegionTable()
    memory.add(Region(0, len(ram), ram))
    return queue_class(
        memory,
        ring.size,
        ring.desc_gpa,
        ring.avail_gpa,
        ring.used_gpa,
        event_idx=ring.event_idx,
        indirect=True,
        ordering=make_ordering(),
    )


@dataclass
class Race:
    """A running driver's process and the device to serve it."""

    device: Device
    control: memoryview
    driver: subprocess.Popen[bytes]

    def report(self) -> dict[str, int]:
        """The driver's counts, once it has ended well."""
        output, _ = self.driver.communicate(timeout=30)
        assert self.driver.returncode == 0
        counts: dict[str, int] = json.loads(output)
        return counts

    def wait_for_an_unkicked_round(self) -> None:
        """Until the driver has published and decided, all while suppressed: the worst moment to arm, every time."""
        deadline = time.monotonic() + 10
        while not self.control[DONE_WORD] and self.driver.poll() is None and time.monotonic() < deadline:
            if self.control[DECIDED_WORD] > self.device.counts["chains"]:
                return
            os.sched_yield()


@contextmanager
def race(
    *, event_idx: bool, indirect: bool, rounds: int, queue_class: type[Queue] = Queue, timeout_s: float = 2.0
) -> Iterator[Race]:
    """Shared memory, an eventfd and the driver's process; all of it gone afterwards."""
    memory_fd, kick_fd, exit_fd = os.memfd_create("ring"), os.eventfd(0, os.EFD_NONBLOCK), -1
    driver: subprocess.Popen[bytes] | None = None
    try:
        os.ftruncate(memory_fd, MEMORY_NBYTES)
        ram = memoryview(mmap.mmap(memory_fd, MEMORY_NBYTES))
        queue = queue_over(ram, make_ring(ram, event_idx=event_idx), queue_class)
        queue.suppress()
        plan = Plan(memory_fd, kick_fd, event_idx, indirect, rounds, SEED)
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.support.lost_kick_driver", plan.dumps()],
            cwd=ROOT,
            pass_fds=(memory_fd, kick_fd),
            stdout=subprocess.PIPE,
        )
        exit_fd = os.pidfd_open(driver.pid)
        yield Race(Device(queue, kick_fd, exit_fd, timeout_s), ram[:RING_OFFSET].cast("Q"), driver)
    finally:
        if driver is not None:
            driver.kill()
            driver.communicate()
        for fd in (memory_fd, kick_fd, exit_fd):
            if fd >= 0:
                os.close(fd)


@pytest.mark.soak(count=ROUNDS, seed=SEED)
@pytest.mark.timeout(OVERALL_S + 60)
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_no_kick_is_lost(
    event_idx: bool,
    indirect: bool,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = time.monotonic()

    with race(event_idx=event_idx, indirect=indirect, rounds=ROUNDS) as running:
        running.device.run()
        asked = running.report()
    counts = asked | running.device.counts

    rate = ROUNDS / (time.monotonic() - started)
    for name, value in (counts | {"rounds_per_s": int(rate)}).items():
        record_property(name, value)
    if SOAK:
        with capsys.disabled():
            sys.stdout.write(f"\nlost kick, {event_idx=} {indirect=}: {rate:.0f} rounds/s, {counts}\n")
    assert asked["chains"] == running.device.counts["chains"]
    if SOAK:
        # A run in which the race never came up would prove nothing. The short run may be scheduled so that it does not;
        # there the tests below, which force the race, are the proof.
        assert counts["saved"] > 0
        assert counts["kicks"] < ROUNDS
    assert counts["blocked"] > 0


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_rounds_published_just_before_arming_are_found_by_the_recheck(event_idx: bool) -> None:
    with race(event_idx=event_idx, indirect=False, rounds=HOOKED_ROUNDS) as running:
        running.device.before_arm = running.wait_for_an_unkicked_round
        running.device.run()
        asked = running.report()

    assert asked["chains"] == running.device.counts["chains"]
    assert running.device.counts["saved"] > HOOKED_ROUNDS // 4


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_without_the_recheck_the_lost_kick_is_caught(event_idx: bool) -> None:
    rounds, timeout_s = HOOKED_ROUNDS, 0.2
    with race(
        event_idx=event_idx, indirect=False, rounds=rounds, queue_class=ForgetfulQueue, timeout_s=timeout_s
    ) as running:
        running.device.before_arm = running.wait_for_an_unkicked_round

        with pytest.raises(LostKickError, match="work in the ring, no kick"):
            running.device.run()


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_without_the_recheck_one_publication_before_arming_is_lost_even_on_one_thread(event_idx: bool) -> None:
    ram = memoryview(bytearray(MEMORY_NBYTES))
    ring = make_ring(ram, event_idx=event_idx)
    kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
    kicks: list[bool] = []
    device = Device(queue_over(ram, ring, ForgetfulQueue), kick_fd, exit_fd=-1, timeout_s=0.02)
    device.before_arm = lambda: kicks.append(ring.submit([b"question"], [8]))
    try:
        with pytest.raises(LostKickError):
            device.run()
    finally:
        os.close(kick_fd)

    assert kicks == [False]
