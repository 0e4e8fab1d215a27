"""Which accesses in flight a request waits for, to the byte, and what ends them."""

from __future__ import annotations

import pytest

from tests.support.iommu_requests import ENDPOINTS, UNIT, engine
from vdev.errors import TranslationFault
from vdev.iommu.engine import Engine
from vdev.iommu.in_flight import MAX_FLIGHTS, Flight, InFlight
from vdev.wire import viommu as wire

A, B = 0x100, 0x200
START, STOP = 0x5000, 0x5004


def flight(endpoint: int = A, domain: int | None = 1, start: int = START, stop: int = STOP) -> Flight:
    return Flight(endpoint, domain, start, stop, 2, [(start, stop - start)])


def in_the_air(*flights: Flight) -> InFlight:
    out = InFlight()
    for one in flights:
        out.begin(one)
    return out


def unmap(first: int, last: int, domain: int = 1) -> wire.Unmap:
    return wire.Unmap(wire.T_UNMAP, bytes(3), domain, first, last, bytes(4))


def detach(endpoint: int) -> wire.Detach:
    return wire.Detach(wire.T_DETACH, bytes(3), 1, endpoint)


@pytest.mark.parametrize(
    ("first", "last", "waits"),
    [
        (START, STOP - 1, True),
        (START + 1, START + 1, True),
        (0, START, True),
        (0, START - 1, False),
        (STOP - 1, STOP + 100, True),
        (STOP, STOP + 100, False),
        (0, (1 << 64) - 1, True),
    ],
)
def test_an_unmap_waits_for_every_flight_that_has_a_byte_in_its_range(first: int, last: int, waits: bool) -> None:
    air = in_the_air(flight())

    assert (air.wait_of_unmap(unmap(first, last)) is not None) == waits


def test_a_flight_up_to_the_last_address_is_waited_for() -> None:
    air = in_the_air(flight(start=(1 << 64) - 1, stop=1 << 64))

    assert air.wait_of_unmap(unmap((1 << 64) - 1, (1 << 64) - 1)) is not None


def test_an_unmap_waits_for_flights_of_its_domain_only() -> None:
    mine, bypassing = flight(B), flight(domain=None)
    air = in_the_air(mine, flight(domain=2), bypassing)

    wait = air.wait_of_unmap(unmap(START, STOP - 1))

    assert wait is not None
    assert (wait.type_name, wait.flights) == ("UNMAP", [mine])


def test_a_move_waits_for_all_flights_of_its_endpoint_and_no_others() -> None:
    mine = [flight(domain=2), flight(domain=None, start=0x9000, stop=0x9001)]
    air = in_the_air(*mine, flight(B))

    wait = air.wait_of_move(detach(A))

    assert wait is not None
    assert (wait.type_name, wait.flights) == ("DETACH", mine)
    assert air.wait_of_move(detach(0x300)) is None


def test_a_wait_is_over_with_the_last_of_its_flights() -> None:
    flights = [flight(), flight()]
    air = in_the_air(*flights)
    wait = air.wait_of_move(detach(A))
    assert wait is not None

    over = [wait.is_over]
    for one in flights:
        air.end(one)
        over.append(wait.is_over)

    assert over == [False, False, True]


def test_what_has_ended_leaves_nothing_behind_and_is_told_once() -> None:
    told: list[bool] = []
    one = flight()
    air = in_the_air(one)
    air.ended = lambda: told.append(one.over)

    air.end(one)
    air.end(one)

    assert told == [True]
    assert air.by_endpoint == {}


def test_an_endpoint_has_a_few_flights_at_most() -> None:
    air = in_the_air(*[flight() for _ in range(MAX_FLIGHTS)])
    air.begin(flight(B))

    with pytest.raises(ValueError, match="has 8 accesses in flight"):
        air.begin(flight())


def test_cancelling_an_endpoint_leaves_the_others() -> None:
    mine, other = flight(), flight(B)
    air = in_the_air(mine, other)

    air.cancel(A)

    assert (mine.over, other.over) == (True, False)


def test_cancelling_what_bypasses_leaves_what_was_translated() -> None:
    translated, bypassing = flight(), flight(domain=None)
    air = in_the_air(translated, bypassing)

    air.cancel_bypassing()

    assert (translated.over, bypassing.over) == (False, True)


# --- the engine


def attached() -> tuple[Engine, Flight]:
    """An endpoint in domain 1 with a page, and an access to all of it in flight."""
    unit = engine()
    endpoint = ENDPOINTS[0].id
    unit.handle(wire.Attach(wire.T_ATTACH, bytes(3), 1, endpoint).pack(), 4)
    unit.handle(wire.Map(wire.T_MAP, bytes(3), 1, 0x5000, 0x5FFF, 0x9000, 3).pack(), 4)
    return unit, unit.begin(endpoint, 0x5000, 0x1000, 2)


def test_a_flight_knows_where_it_goes_and_by_whose_mappings() -> None:
    unit, one = attached()

    assert (one.endpoint, one.domain, one.start, one.stop, one.access) == (ENDPOINTS[0].id, 1, 0x5000, 0x6000, 2)
    assert one.pieces == [(0x9000, 0x1000)]
    assert unit.in_flight.by_endpoint == {ENDPOINTS[0].id: [one]}


def test_a_refused_access_is_not_in_flight() -> None:
    unit, _ = attached()

    with pytest.raises(TranslationFault):
        unit.begin(ENDPOINTS[0].id, 0x5000, 0x1001, 2)

    assert sum(map(len, unit.in_flight.by_endpoint.values())) == 1


def test_the_tables_change_at_once_and_the_wait_is_left_behind() -> None:
    unit, one = attached()

    answer = unit.handle(unmap(0x5000, 0x5FFF).pack(), 4)

    assert answer == wire.TAILS[wire.S_OK]
    assert unit.table.nmappings == 0
    assert unit.wait is not None
    assert unit.wait.flights == [one]


@pytest.mark.parametrize("request_of", ["refused", "elsewhere", "map", "probe"])
def test_what_affects_no_flight_leaves_no_wait(request_of: str) -> None:
    unit, _ = attached()
    requests = {
        "refused": unmap(0x5000, 0x5FFE),
        "elsewhere": unmap(0x6000, 0x6FFF),
        "map": wire.Map(wire.T_MAP, bytes(3), 1, 0x7000, 0x7FFF, 0x9000, 3),
        "probe": wire.Probe(wire.T_PROBE, bytes(3), ENDPOINTS[0].id),
    }

    unit.handle(requests[request_of].pack(), UNIT.probe_size + 4)

    assert unit.wait is None


def test_every_reset_cancels_everything() -> None:
    for reset in (Engine.device_reset, Engine.system_reset, Engine.host_reset):
        unit, one = attached()

        reset(unit)

        assert one.over


def test_a_removed_endpoint_has_nothing_in_flight() -> None:
    unit, one = attached()

    unit.remove_endpoint(ENDPOINTS[0].id)

    assert one.over


def test_a_restored_unit_has_nothing_in_flight() -> None:
    unit, one = attached()

    unit.restore(unit.snapshot())

    assert one.over


def test_bypass_that_is_switched_off_cancels_what_it_let_through() -> None:
    unit = engine()
    unit.set_bypass(True)
    one = unit.begin(ENDPOINTS[0].id, 0x5000, 8, 2)

    unit.write_bypass(1)
    still = one.over
    unit.write_bypass(0)

    assert (one.domain, still, one.over) == (None, False, True)
