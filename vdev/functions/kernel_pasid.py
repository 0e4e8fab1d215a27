"""The PASIDs a host attaches by itself, for drivers that know nothing of them (docs/virtio-iommu-pasid.md, section 9).

Each is asked of the host's allocator once the VM's set is there, attached so that it follows the endpoint's RID, and
shown by the endpoint. One that cannot be had is asked for again when the terms change, or with the next QEMU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from vdev.iommu.engine import Engine
from vdev.iommu.in_flight import InFlight
from vdev.iommu.pasid_held import Held
from vdev.iommu.pasid_set import PasidSet, Refusal
from vdev.iommu.settings import PasidSettings

NOT_YET = "the host has not answered yet"


@dataclass(slots=True, eq=False)
class _Wish:
    """One endpoint's. `pasid` 0: it has none now, `problem` says why."""

    engine: Engine
    number: int  # of the endpoint
    name: str
    settings: PasidSettings
    show: Callable[[int], None]
    pasid: int = 0
    last: int = 0  # the PASID it had, or has
    problem: str = NOT_YET
    is_asked: bool = False
    is_taken: bool = False  # by an administrator's order: not asked for again

    def become(self, pasid: int, problem: str = "") -> None:
        if pasid != self.pasid:
            self.pasid, self.last = pasid, pasid or self.last
            self.show(pasid)
        self.problem = problem


class KernelPasids:
    """Those of one VM. A member of its set: the host's own."""

    name = ""

    def __init__(self, pasids: PasidSet) -> None:
        self.in_flight = InFlight()  # the units have all
        self._set = pasids
        self._wishes: dict[int, _Wish] = {}  # by endpoint
        self._is_open = False
        pasids.join(self)

    def add(self, engine: Engine, number: int, settings: PasidSettings, show: Callable[[int], None]) -> None:
        """Endpoint `number` of `engine` is to have one; `show` is told which, and 0 when it has none any more."""
        name = engine.table.endpoints[number].name
        self._wishes[number] = _Wish(engine, number, name, settings, show)
        self._ask_all()

    def remove(self, number: int) -> None:
        """The endpoint is gone, and its PASID with it."""
        self._wishes.pop(number, None)

    def open(self) -> None:
        """The host has a set for the VM: ask for what is missing."""
        self._is_open = True
        self._ask_all()

    def new_vm(self) -> None:
        """Another QEMU is the VM now: what an administrator took from the last one is no matter."""
        for wish in self._wishes.values():
            wish.is_taken = False

    def taken(self, pasids: frozenset[int]) -> None:
        """An administrator took these, which are gone: nobody asks for others instead."""
        for wish in self._wishes.values():
            if not wish.pasid and wish.last in pasids:
                wish.is_taken = True
                wish.problem = "an administrator took it"

    def describe(self) -> list[dict[str, Any]]:
        """Plain data for queries: `pasid`, or why there is none."""
        return [
            {"endpoint": wish.name, **({"pasid": wish.pasid} if wish.pasid else {"problem": wish.problem})}
            for _, wish in sorted(self._wishes.items())
        ]

    def of(self, number: int) -> int:
        """The endpoint's, 0 for none."""
        wish = self._wishes.get(number)
        return 0 if wish is None else wish.pasid

    # Member

    def quota_changed(self) -> None:
        """There may be room now."""
        self._ask_all()

    def used_changed(self) -> None:
        """Nothing here shows how many there are."""

    def revoke(self, pasids: frozenset[int]) -> None:
        """The host has taken these away."""
        for wish in self._wishes.values():
            if wish.pasid in pasids:
                wish.become(0, NOT_YET)

    # asking

    def _ask_all(self) -> None:
        for wish in self._wishes.values():
            if self._is_open and not (wish.pasid or wish.is_asked or wish.is_taken):
                wish.is_asked = True
                self._ask(wish, _spans(wish.settings, self._set))

    def _ask(self, wish: _Wish, spans: Iterator[tuple[int, int]]) -> None:
        """Try the ranges the endpoint can have one of, one after the other."""
        span = next(spans, None)
        if span is None:
            wish.is_asked = False
            wish.problem = "none that the endpoint can have is free"
            return
        why = self._set.refusal(self.name, *span)
        if why is not None:
            self._answered(wish, spans, why)
        else:
            self._set.ask(self.name, *span, partial(self._answered, wish, spans))

    def _answered(self, wish: _Wish, spans: Iterator[tuple[int, int]], outcome: Held | Refusal) -> None:
        if outcome is Refusal.RANGE:
            self._ask(wish, spans)
            return
        wish.is_asked = False
        if isinstance(outcome, Refusal):
            wish.problem = _PROBLEMS[outcome]
        elif self._wishes.get(wish.number) is not wish:
            self._set.free_host(outcome)  # the endpoint has left meanwhile
        else:
            wish.engine.host_attach_mirror(wish.number, outcome.pasid)
            wish.become(outcome.pasid)


_PROBLEMS = {
    Refusal.QUOTA: "the VM's quota is used up",
    Refusal.SUPPLY: "the host has none to give",
    Refusal.UNREACHABLE: "the host's allocator did not answer",
}


def _spans(given: PasidSettings, pasids: PasidSet) -> Iterator[tuple[int, int]]:
    """The ranges an endpoint's PASIDs can be from, half-open: within its width and the terms, without its own."""
    start, stop = pasids.terms.first, min(pasids.terms.stop, 1 << given.bits)
    for first, end in sorted(given.reserved):
        if start < min(first, stop):
            yield start, min(first, stop)
        start = max(start, end)
    if start < stop:
        yield start, stop
