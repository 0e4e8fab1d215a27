"""Accesses past translation whose bytes have not moved yet, and which of them a change of the tables affects. Pure.

What "done" means (docs/architecture.md, "What done means"):

    UNMAP, DETACH, ATTACH     change the tables at once; their answer waits for the flights they affect (`Wait`)
    everything that is a      cancels the flights it affects on the spot: QEMU waits for the access under its lock,
      register access           so it can wait for nobody

A flight has a landing time. Who must wait for anything else gives its flight back (`end`) and translates anew, so no
answer ever waits for something the guest must do.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from vdev.wire import viommu, viommu_pasid
from vdev.wire.record import Record
from vdev.wire.viommu import Attach, Detach, Unmap
from vdev.wire.viommu_pasid import AttachPasid, DetachPasid, PasidFree

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
    pasid: int = 0  # it carries; a mirroring pair's was translated in the RID's domain
    # Of injected faults: it does not land yet, the bytes at its end that are refused, and what is to become of it.
    late: bool = False
    cut: int = 0
    fate: object = None


@dataclass(slots=True)
class Late:
    """An answer that somebody else is asked for first: None until it is known."""

    answer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A request that was granted, and the flights its answer must not overtake; or one whose answer is not known yet
    (`late`). `rule`: it is late because of that rule of a fault plan, and `late` is when it ends."""

    type_name: str
    request: Record
    flights: list[Flight]
    late: Late | None = None
    rule: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it may be answered."""
        if self.late is not None:
            return self.late.answer is not None
        return all(flight.over for flight in self.flights)

    def answer(self) -> bytes | None:
        """The answer, where it was not known when the request was handled."""
        return None if self.late is None else self.late.answer


def _nobody(*_: int) -> None:
    """No one waits."""


class InFlight:
    """The flights of one unit's endpoints. `ended` is called after one is over."""

    def __init__(self) -> None:
        self.by_endpoint: dict[int, list[Flight]] = {}  # no empty lists: false when nothing is in flight
        self.ended: Callable[[], None] = _nobody
        self.tag_ended: Callable[[int], None] = _nobody  # told of the PASID before that, where it has one

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
        if flight.pasid:
            self.tag_ended(flight.pasid)
        self.ended()

    def of(self, endpoint: int) -> list[Flight]:
        """All of one endpoint."""
        return list(self.by_endpoint.get(endpoint, ()))

    def pasids(self) -> set[int]:
        """Those that flights carry."""
        return {flight.pasid for flight in self._all() if flight.pasid} if self.by_endpoint else set()

    def with_pasids(self, pasids: Container[int]) -> list[Flight]:
        """All that carry one of `pasids`."""
        return [flight for flight in self._all() if flight.pasid and flight.pasid in pasids]

    def wait_of_move(self, request: Attach | Detach) -> Wait | None:
        """What ATTACH or DETACH waits for: all flights of its endpoint, wherever they were translated."""
        return _wait(request, self.of(request.endpoint))

    def wait_of_pair(self, request: AttachPasid | DetachPasid) -> Wait | None:
        """What a request that moves a pair waits for: all flights of that pair, wherever they were translated."""
        return _wait(request, [flight for flight in self.of(request.endpoint) if flight.pasid == request.pasid])

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

    def cancel_pair(self, endpoint: int, pasid: int) -> None:
        """Nothing of this pair lands any more."""
        self._cancel([flight for flight in self.of(endpoint) if flight.pasid == pasid])

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


def wait_of_free(request: PasidFree, flights: list[Flight]) -> Wait | None:
    """What PASID_FREE waits for: `flights`, of all units."""
    return _wait(request, flights)


def _wait(
    request: Attach | Detach | Unmap | AttachPasid | DetachPasid | PasidFree, flights: list[Flight]
) -> Wait | None:
    return Wait(NAMES[request.type], request, flights) if flights else None


NAMES = {**viommu.REQUEST_NAMES, **viommu_pasid.REQUEST_NAMES}
