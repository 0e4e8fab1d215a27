"""A unit is reset while endpoints of two are at work in one container: the other unit's go on."""

from __future__ import annotations

import contextlib
import time
import zlib

import pytest
from spaces import MakeContainer, Yard

from guest_tests.payload import accel, vfio
from guest_tests.payload.lab import running_engine

RINGS = (0x0100_0000, 0x0200_0000)
SOURCE, TARGET = 1 << 32, 2 << 32
NBYTES = 256 << 10
NCOPIES = accel.RING_NENTRIES - 1


@pytest.mark.parametrize(("reset", "works"), [("narrow0", "middle0"), ("middle0", "wide0")])
def test_a_reset_of_one_unit_stops_its_endpoints_and_the_others_copy_on(
    yard: Yard, container: MakeContainer, reset: str, works: str
) -> None:
    shared, buffer = container(reset, works), vfio.Buffer(2 * NBYTES)
    buffer.memory[:NBYTES] = bytes(range(256)) * (NBYTES // 256)
    with contextlib.ExitStack() as stack:
        stops, goes_on = [
            stack.enter_context(running_engine(shared, yard.stock.bdf(name), ring))
            for name, ring in zip((reset, works), RINGS, strict=True)
        ]
        shared.map(SOURCE, buffer, vfio.READ, nbytes=NBYTES)
        shared.map(TARGET, buffer, vfio.WRITE, offset=NBYTES, nbytes=NBYTES)
        before = yard.domain(works)
        last = goes_on.submit(*[accel.Operation(accel.COPY, src=SOURCE, dst=TARGET, nbytes=NBYTES)] * NCOPIES)

        yard.host.control("reset-unit", unit=yard.stock.unit_of(reset))

        stopped = stops.registers.read32(accel.STATUS), stops.registers.read32(accel.ERROR)
        domains = {name: yard.unit(name).state()["domains"] for name in (reset, works)}
        goes_on.wait(last, time.monotonic_ns())
        completions = [goes_on.status_of(index) for index in range(NCOPIES)]
        after = yard.domain(works)

    assert stopped == (accel.HALTED, accel.ERROR_STOPPED)
    assert domains[reset] == []
    assert before.id in [domain["id"] for domain in domains[works]]
    assert completions == [accel.OK] * NCOPIES
    assert after == before
    assert zlib.crc32(buffer.memory[NBYTES:]) == zlib.crc32(buffer.memory[:NBYTES])
