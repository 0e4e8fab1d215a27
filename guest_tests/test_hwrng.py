"""/dev/hwrng of a stock guest, drawn through live mappings: on both attachments, strict and lazy unmapping, and whose
bytes they are.

Four boots, of two checks each.
"""

from __future__ import annotations

import asyncio
import itertools
from hashlib import sha256

import msgspec
import pytest

from guest_tests import report
from guest_tests.boot import boot
from guest_tests.conftest import CONFIG, GuestRun
from guest_tests.iommu_counts import Counts
from qmp_bridge.plan import Options
from vdev.config import Config, load_config
from vdev.config.schema import ATTACHMENTS, Attach

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

SEED = 20261121
BUFFER_NBYTES = 64  # what the driver asks for at a time
GROUP_TYPES = {"1": "DMA", "0": "DMA-FQ"}  # by iommu.strict: unmapped at once, or by a flush queue


def _seeded(config: Config) -> Config:
    """The demo's machine, with an rng of which every byte is known."""
    endpoints = [
        msgspec.structs.replace(endpoint, options={"source": f"seed:{SEED}"}) if endpoint.model == "rng" else endpoint
        for endpoint in config.endpoints
    ]
    return msgspec.structs.replace(config, endpoints=tuple(endpoints))


def _stream(nbytes: int) -> bytes:
    """What vdev/backends/entropy.py promises of a seed: block i is SHA-256 of "SEED:i"."""
    return b"".join(sha256(f"{SEED}:{number}".encode()).digest() for number in range(-(-nbytes // 32)))


def _machine_id(machine: tuple[Attach, str]) -> str:
    attach, strict = machine
    return f"{attach}, iommu.strict={strict}"


@pytest.fixture(scope="module", params=itertools.product(ATTACHMENTS, GROUP_TYPES), ids=_machine_id)
def seeded(request: pytest.FixtureRequest) -> tuple[str, GuestRun]:
    """The value of iommu.strict, and the guest that booted with it."""
    attach, strict = request.param
    config = _seeded(load_config(CONFIG))
    options = Options(append=f"iommu.strict={strict}", attach=attach, payload="driver-bound,hwrng")
    run = asyncio.run(boot(config, options, lambda message, faults: None))
    if not run.ok:
        pytest.fail("\n".join(report.failure(run)), pytrace=False)
    return strict, GuestRun(config, run)


def _counts(booted: GuestRun) -> Counts:
    return booted.run.counts["hwrng"]


def test_the_group_is_of_the_type_the_command_line_asks_for(seeded: tuple[str, GuestRun]) -> None:
    strict, booted = seeded

    assert booted.data("hwrng")["type"] == GROUP_TYPES[strict]


def test_every_buffer_is_mapped_and_unmapped_and_the_ring_stays(seeded: tuple[str, GuestRun]) -> None:
    _, booted = seeded
    (rng,) = booted.endpoints("rng")
    nbuffers = len(bytes.fromhex(booted.data("hwrng")["drawn"])) // BUFFER_NBYTES
    # From the trace: the counters are first read when the check has begun already.
    trace = booted.run.trace
    types = [record["type"] for record in trace if record.get("endpoints") == [rng.bdf]]

    assert trace[0]["seq"] == 0
    assert types.count("MAP") >= nbuffers
    # One buffer may still be under way; with a flush queue the requests go out as early, only the flush is late.
    assert types.count("UNMAP") >= nbuffers - 1


def test_the_mappings_are_counted_for_people(seeded: tuple[str, GuestRun]) -> None:
    _, booted = seeded
    counts = _counts(booted)

    assert counts.domain is not None
    assert counts.live >= 1
    assert (counts.maps > 0, counts.unmaps > 0) == (True, True)
    assert f"rng0 has {counts.live} live mappings" in booted.run.record("hwrng")["counted"]


def test_the_bytes_are_those_of_the_seed_in_their_order(seeded: tuple[str, GuestRun]) -> None:
    _, booted = seeded
    drawn = bytes.fromhex(booted.data("hwrng")["drawn"])
    (unit,) = booted.run.iommu
    stream = _stream(unit["functions"]["rng0"]["bytes"])

    # The kernel's own thread draws, too, so there are gaps between the buffers a reader gets.
    places = [stream.find(drawn[at : at + BUFFER_NBYTES]) for at in range(0, len(drawn), BUFFER_NBYTES)]
    assert -1 not in places
    assert places == sorted(set(places))


def test_the_unit_is_attached_as_asked(seeded: tuple[str, GuestRun], request: pytest.FixtureRequest) -> None:
    _, booted = seeded
    (unit,) = booted.run.iommu

    assert unit["attach"] == request.node.callspec.params["seeded"][0]


def test_nothing_was_refused(seeded: tuple[str, GuestRun]) -> None:
    _, booted = seeded
    (unit,) = booted.run.iommu
    rng = unit["functions"]["rng0"]

    assert booted.run.faults["hwrng"] == []
    assert (rng["refused"], rng["ring-errors"], rng["needs-reset"]) == ({}, 0, False)
    assert rng["driver-ok"]
