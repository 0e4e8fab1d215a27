"""DMA under way against everything that takes its memory away, in real time: docs/races.md.

VDEV_TIER=soak plays 10,000 UNMAPs, and 2,500 of each of DETACH, ATTACH elsewhere and the resets. The operations of a
seed are always the same, what of them comes first is not.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import Accel, DmaArena, Unmap, Viommu, wait
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host
from guest_tests.payload.race import RACES, Field, Scale, Tally, WallClock, play

SOAK = os.environ.get("VDEV_TIER") == "soak"  # of the host, which keeps the time
SEED = 7
MORE_ROUNDS = 500  # at most, where all of the others came too late to be a race: on a busy machine a handful may
GRANULE, LATENCY_NS = 16, 2_000_000  # of machine.yaml
SLACK_NS = 500_000
SLICE_NBYTES = 256 * GRANULE
COUNTS: dict[str, dict[str, int]] = {
    "normal": {"unmap": 60},
    "soak": {
        "unmap": 10_000,
        **dict.fromkeys(("detach", "reattach", "function-reset", "bus-master-off", "unit-reset"), 2_500),
    },
}
OTHERS = {"normal": 6, "soak": 500}
PLAYED = [name for name, race in RACES.items() if not race.needs_freeze]
TARGET, ELSEWHERE, PAGE = 0x1000_0000, 0x2000_0000, 4096
NTRIES = 5


def count_of(name: str, tier: str) -> int:
    """How many rounds of a race."""
    return COUNTS[tier].get(name, OTHERS[tier])


@pytest.fixture
def racing(open_viommu: OpenViommu) -> Viommu:
    """The unit whose accelerators are raced."""
    return open_viommu(2)


@pytest.fixture
def field(racing: Viommu, open_accel: OpenAccel, dma: DmaArena) -> Field:
    """Everything running; the slow accelerator does nothing."""
    accels = open_accel(3), open_accel(4), open_accel(5)
    scales = (Scale(GRANULE, 400), Scale(GRANULE, 5))
    return Field(racing, accels, WallClock(), dma, LATENCY_NS, SLACK_NS, scales, SLICE_NBYTES)


@pytest.mark.timeout(7200 if SOAK else 120)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.soak(count=count_of(name, "soak"), seed=SEED)) for name in PLAYED],
)
def test_no_byte_moves_after_the_answer(name: str, field: Field, machine: dict[str, Any]) -> None:
    tally = Tally()

    for number in range(rounds := count_of(name, machine["tier"])):
        play(field, SEED, name, number, tally)
    while RACES[name].cuts and tally.whole == tally.rounds < rounds + MORE_ROUNDS:
        play(field, SEED, name, tally.rounds, tally)

    assert tally.rounds == tally.whole + tally.cut + tally.nothing
    assert tally.whole < tally.rounds or not RACES[name].cuts


@pytest.fixture
def slow(racing: Viommu, open_accel: OpenAccel) -> Accel:
    """An accelerator whose bytes move 0.4 s after their translation, in domain 1, and nobody bypasses."""
    racing.bypass = False
    return open_accel(5).start_in(racing, domain=1)


def test_a_request_that_waits_for_bytes_in_flight_is_answered_after_a_pause_of_the_machine_and_nothing_lands(
    racing: Viommu, slow: Accel, dma: DmaArena, host: Host
) -> None:
    # What waits for longer than its latency is translated anew, so nothing that was unmapped is reached.
    target = dma.alloc()
    racing.map_buffer(1, TARGET, target)
    index = slow.engine.submit(Operation(engine.FILL, dst=TARGET, nbytes=PAGE, arg=0x11))
    chain = racing.chain(Unmap(domain=1, virt_start=TARGET, virt_end=TARGET + PAGE - 1))
    racing.requests.ring.post(chain)
    racing.requests.publish()

    host.pause(1.0)
    assert wait.until(lambda: racing.requests.ring.has_used, 5.0)
    canary = random.Random(SEED).randbytes(PAGE)
    target.write(canary)

    assert wait.until(lambda: slow.engine.status_of(index) != engine.PENDING, 5.0)
    host.control("query-status")
    assert target.read() == canary


def test_a_request_for_other_memory_overtakes_the_bytes_in_flight(racing: Viommu, slow: Accel, dma: DmaArena) -> None:
    target = dma.alloc()
    racing.map_buffer(1, TARGET, target)

    assert any(overtakes(racing, slow, dma) for _ in range(NTRIES))  # unless the guest stood still for so long


def overtakes(racing: Viommu, slow: Accel, dma: DmaArena) -> bool:
    """Whether MAP and UNMAP elsewhere were answered before a FILL of TARGET had ended, and it did end well."""
    index = slow.engine.submit(Operation(engine.FILL, dst=TARGET, nbytes=PAGE, arg=0x22))
    racing.map(domain=1, iova=ELSEWHERE, gpa=0, nbytes=PAGE)
    racing.unmap(domain=1, iova=ELSEWHERE, nbytes=PAGE)
    was_pending = slow.engine.status_of(index) == engine.PENDING
    assert wait.until(lambda: slow.engine.status_of(index) != engine.PENDING, 5.0)
    assert slow.engine.status_of(index) == engine.OK
    return was_pending
