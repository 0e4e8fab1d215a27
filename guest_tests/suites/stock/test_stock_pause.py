"""The machine is stopped and goes on while stock drivers work: nothing is lost, nothing is refused."""

from __future__ import annotations

import pytest

from guest_tests.payload import checks_hwrng
from guest_tests.payload.host import Host
from guest_tests.payload.lab import Lab
from guest_tests.payload.load import NCOPIES, Counts, run_round
from guest_tests.payload.stock import Machine, Unit, expect_of_seed
from guest_tests.payload.worker import Worker

pytestmark = pytest.mark.machines("lazy-*", "passthrough-*-cloud-backports")

NPAUSES = 2
PAUSE_S = 0.2


def test_maps_and_copies_go_on_after_every_pause(lab: Lab, unit: Unit, host: Host) -> None:
    since, counts, before = unit.next_event(), Counts(), unit.domain_of(lab.bdf)
    worker = Worker(lambda: run_round(lab, counts))

    with worker.working():
        for _ in range(NPAUSES):
            assert worker.goes_on()
            host.pause(PAUSE_S)
        assert worker.goes_on()

    assert counts.submitted == counts.completed == NCOPIES * counts.rounds
    assert (counts.refused, unit.events("FaultRaised", since)) == (0, [])
    assert unit.domain_of(lab.bdf) == before


def test_the_rng_goes_on_after_every_pause(stock: Machine, unit: Unit, host: Host) -> None:
    since = unit.next_event()
    drawn: list[bytes] = []
    worker = Worker(lambda: drawn.append(checks_hwrng.draw()))

    with worker.working():
        for _ in range(NPAUSES):
            assert worker.goes_on()
            host.pause(PAUSE_S)
        assert worker.goes_on()

    expect_of_seed(b"".join(drawn), unit, stock, "rng0")
    assert unit.events("FaultRaised", since) == []
