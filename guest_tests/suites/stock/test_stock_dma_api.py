"""The DMA API under a stock driver: virtio_rng draws through a mapping for each buffer, or through none at all."""

from __future__ import annotations

from guest_tests.payload import checks_hwrng
from guest_tests.payload.stock import Machine, Unit, expect_random_bytes_of

NBUFFERS = checks_hwrng.NBYTES // checks_hwrng.BUFFER_NBYTES  # of one draw
FEW = 2  # addresses; one, if the kernel's own thread does not draw as well


def test_the_random_bytes_are_those_of_the_endpoints_seed(stock: Machine, unit: Unit) -> None:
    expect_random_bytes_of(unit, stock, "rng0")


def test_every_buffer_is_mapped_and_unmapped_or_none_is(stock: Machine, unit: Unit) -> None:
    before = unit.requests()
    checks_hwrng.draw()
    after = unit.requests()

    maps, unmaps = (after[kind] - before[kind] for kind in ("MAP", "UNMAP"))
    if stock.mode == "passthrough":
        assert (maps, unmaps) == (0, 0)
    else:
        assert maps >= NBUFFERS
        assert abs(maps - unmaps) <= 1  # one buffer is always with the device


def test_what_is_mapped_stays_the_same_however_much_is_drawn(stock: Machine, unit: Unit) -> None:
    checks_hwrng.draw()
    before = unit.domain_of(stock.bdf("rng0"))
    for _ in range(4):
        checks_hwrng.draw()
    after = unit.domain_of(stock.bdf("rng0"))

    assert before == after
    assert after is not None
    assert after.mappings == 0 if after.bypass else after.mappings >= 1


def test_strict_unmapping_gives_an_address_back_at_once_and_lazy_unmapping_later(stock: Machine, unit: Unit) -> None:
    checks_hwrng.draw()

    addresses = {record["fields"]["virt_start"] for record in unit.trace("MAP", "rng0", NBUFFERS)}

    # The allocator hands out what came back last. A flush queue gives back what has been unmapped 10 ms ago.
    possible = {"strict": range(1, FEW + 1), "lazy": range(FEW + 1, NBUFFERS + 1), "passthrough": range(1)}
    assert len(addresses) in possible[stock.mode]


def test_nothing_was_refused(unit: Unit) -> None:
    since = unit.next_event()
    checks_hwrng.draw()
    rng = unit.function("rng0")

    assert unit.events("FaultRaised", since) == []
    assert (rng["refused"], rng["ring-errors"], rng["needs-reset"]) == ({}, 0, False)
    assert unit.state()["counters"]["refused"] == {}
    assert rng["driver-ok"]
