"""Accesses past translation whose bytes have not moved yet, and which of them a change of the tables affects. Pure.

What "done" means (docs/architecture.md, "What done means"):

    UNMAP, DETACH, ATTACH     change the tables at once; their answer waits for the flights they affect (`Wait`)
    everything that is a      cancels the flights it affects on the spot: QEMU waits for the access under its lock,
      register access           so it can wait for nobody

A flight has a landing time. Who must wait for anything else gives its flight back (`end`) and translates anew, so no
answer ever waits for something the guest must do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdev.wire.record import Record
from vdev.wire.viommu import REQUEST_NAMES, Attach, Detach, Unmap

Piece = tuple[int, int]  # gpa, nbytes

# Of one endpoint at a time: an operation has two operands, and no more than a few are ever under way. With it, what an
# answer waits for is bounded by the number of endpoints.
MAX_FLIGHTS = 8


@dataclass(slots=True, eq=False)
class Flight:
    """One access to [start, stop) of IOVA, translated to `pieces`. Once it is `over` no byte of it may move."""

    endpoint: int
    domain: int | None  # by whose mappings; None: unattached, by the `bypass` byte
    start: int
    stop: int
    access: int  # READ=1, WRITE=2
    pieces: list[Piece]
    over: bool = False  # it has landed, was given back, or was cancelled


@dataclass(frozen=True, slots=True)
class Wait:
    """A request that was granted, and the flights its answer must not overtake."""

    type_name: str
    request: Record
    flights: list[Flight]

    @property
    def is_over(self) -> bool:
        """Whether it may be answered."""
        return all(flight.over for flight in self.flights)


def _nobody() -> None:
    """No one waits."""


class InFlight:
    """The flights of one unit's endpoints. `ended` is called after one is over."""

    def __init__(self) -> None:
        self.by_endpoint: dict[int, list[Flight]] = {}  # no empty lists: false when nothing is in flight
        self.ended: Callable[[], None] = _nobody

    def begin(self, flight: Flight) -> None:
        """It is in the air from now on. ValueError, a bug of the endpoint's, for more than MAX_FLIGHTS at once."""
        flights = self.by_endpoint.setdefault(flight.endpoint, [])
        if len(flights) >= MAX_FLIGHTS:
            raise ValueError(f"endpoint {flight.endpoint:#x} has {MAX_FLIGHTS} accesses in flight")
        flights.append(flight)

    def end(self, flight: Flight) -> None:
        """It landed, or was given back. Again is no change."""
        if flight.over:
            return
        flight.over = True
        flights = self.by_endpoint[flight.endpoint]
        flights.remove(flight)
        if not flights:
            del self.by_endpoint[flight.endpoint]
        self.ended()

    def of(self, endpoint: int) -> list[Flight]:
        """All of one endpoint."""
        return list(self.by_endpoint.get(endpoint, ()))

    def wait_of_move(self, request: Attach | Detach) -> Wait | None:
        """What ATTACH or DETACH waits for: all flights of its endpoint, wherever they were translated."""
        return _wait(request, self.of(request.endpoint))

    def wait_of_unmap(self, request: Unmap) -> Wait | None:
        """What UNMAP waits for: flights over any byte of its range that were translated in its domain.

        They count whether or not a mapping was removed now, and wherever their endpoint is by now: answers come out of
        order, and a driver may take each by itself.
        """
        touching = [
            flight
            for flight in self._all()
            if flight.domain == request.domain and flight.start <= request.virt_end and request.virt_start < flight.stop
        ]
        return _wait(request, touching)

    def cancel(self, endpoint: int) -> None:
        """Nothing of this endpoint lands any more."""
        self._cancel(self.of(endpoint))

    def cancel_bypassing(self) -> None:
        """Nothing lands any more that the `bypass` byte let through."""
        self._cancel([flight for flight in self._all() if flight.domain is None])

    def cancel_all(self) -> None:
        """Nothing lands any more."""
        self._cancel(self._all())

    def _all(self) -> list[Flight]:
        return [flight for flights in self.by_endpoint.values() for flight in flights]

    def _cancel(self, flights: list[Flight]) -> None:
        for flight in flights:
            self.end(flight)


def _wait(request: Attach | Detach | Unmap, flights: list[Flight]) -> Wait | None:
    return Wait(REQUEST_NAMES[request.type], request, flights) if flights else None
