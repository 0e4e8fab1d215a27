"""The PASIDs a VM has: one set for all its units, filled by the host's allocator. Pure.

    asked          the allocator has been asked for one, and has not answered
    allocated      `Held`, without a pair
    attached       with pairs, of whichever unit
    free-pending   freed, with pairs or accesses in flight left: of no use to anybody, and counted as used (P37)

A PASID leaves the set when it was freed and nothing uses it any more; only then is the allocator given it back (P39).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import nsmallest
from typing import Any, Literal, Protocol

from vdev.iommu.events import (
    Event,
    PasidAllocated,
    PasidEnded,
    PasidFreed,
    PasidQuotaChanged,
    PasidQuotaExceeded,
    PasidRefused,
)
from vdev.iommu.in_flight import InFlight
from vdev.iommu.pasid_held import Held


class Refusal(Enum):
    """Why the host gives no PASID. The guest sees NOMEM for all but the last, which is DEVERR (P33, P35)."""

    QUOTA = "quota"
    SUPPLY = "supply"
    RANGE = "range"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the host says of this VM's PASIDs; replaced as a whole when it changes."""

    space: Literal["system", "per-vm"]
    quota: int
    first: int  # the smallest PASID the guest may have, at least 1
    stop: int  # one more than the largest


class Allocator(Protocol):
    """The host's side, as the set sees it. Nothing here blocks; callbacks come later, from the event loop."""

    terms: Terms
    terms_changed: Callable[[], None]  # set by PasidSet

    def allocate(self, first: int, stop: int, answer: Callable[[int | Refusal], None]) -> None:
        """One PASID of [first, stop). Exactly one `answer`, within a second."""

    def free_pending(self, pasids: Sequence[int]) -> None:
        """These were freed while in use; told at once, so before their `release`."""

    def release(self, pasids: Sequence[int]) -> None:
        """These have ended and may be granted again. Kept, and repeated until the authority has them."""

    def attached(self, pasid: int, is_attached: bool) -> None:
        """It has its first pair, or lost its last one. Best effort."""


class Member(Protocol):
    """A unit of the VM, as the set sees it."""

    name: str

    @property
    def in_flight(self) -> InFlight:
        """Accesses of its endpoints under way."""

    def quota_changed(self) -> None:
        """The configuration shows another quota."""

    def used_changed(self) -> None:
        """The configuration shows another number of them."""

    def revoke(self, pasids: frozenset[int]) -> None:
        """The host has taken these away: no pair has them any more, no access with them lands."""


Answer = Callable[[Held | Refusal], None]


@dataclass(slots=True, eq=False)
class _Question:
    """What the allocator was asked and has not answered. Who asked may be gone (`is_cancelled`): a grant goes back."""

    first: int
    stop: int
    unit: str
    by_attach: bool
    answers: list[Answer] = field(default_factory=list)
    is_cancelled: bool = False


def _nobody(_: Event) -> None:
    """No one listens."""


class PasidSet:
    """The set of one VM, shared by its units."""

    def __init__(self, allocator: Allocator, emit: Callable[[Event], None] | None = None) -> None:
        self._allocator = allocator
        self._emit = emit or _nobody
        self.members: list[Member] = []  # by order of joining
        self._held: dict[int, Held] = {}
        self._questions: list[_Question] = []
        self._quota = allocator.terms.quota
        self._is_told_exceeded = False
        self.filter: Callable[[str, int, int], Refusal | None] | None = None  # unit, first, used: an injected refusal
        self.is_untouched = True  # nothing was asked of the allocator yet, nor reconciled with it
        allocator.terms_changed = self._terms_changed

    def join(self, unit: Member) -> None:
        """`unit` is one of this VM's; once."""
        self.members.append(unit)

    # what there is

    @property
    def terms(self) -> Terms:
        """As the host gives them now."""
        return self._allocator.terms

    @property
    def quota(self) -> int:
        """How many PASIDs the VM may have."""
        return self.terms.quota

    @property
    def used(self) -> int:
        """How many it has, free-pending ones included; above the quota if that was lowered."""
        return len(self._held)

    @property
    def remaining(self) -> int:
        """How many more the quota allows."""
        return max(0, self.quota - self.used)

    def of_guest(self, pasid: int) -> Held | None:
        """A PASID of the driver's, free-pending ones included."""
        held = self._held.get(pasid)
        return None if held is None or held.is_host else held

    def of_host(self, pasid: int) -> Held | None:
        """A PASID the host keeps for itself."""
        held = self._held.get(pasid)
        return held if held is not None and held.is_host else None

    def allocated_through(self, unit: str) -> list[Held]:
        """Those of one unit, by number."""
        return sorted((held for held in self._held.values() if held.unit == unit), key=lambda held: held.pasid)

    def describe(self) -> dict[str, Any]:
        """Plain data for queries, of bounded size."""
        states = [held.state for held in self._held.values()]
        return {
            "space": self.terms.space,
            "quota": self.quota,
            "used": self.used,
            "first": self.terms.first,
            "stop": self.terms.stop,
            "states": {state: states.count(state) for state in ("allocated", "attached", "free-pending")},
            "asked": len(self._questions),
        }

    def list_pasids(self, first: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """PASIDs by number from `first` on, for queries; at most `limit`, or no more than the quota ever was."""
        wanted = (pasid for pasid in self._held if pasid >= first)
        numbers = sorted(wanted) if limit is None else nsmallest(limit, wanted)
        return [
            {
                "pasid": held.pasid,
                "state": held.state,
                "unit": held.unit,
                "pairs": held.npairs,
                "owner": "host" if held.is_host else "guest",
            }
            for held in map(self._held.__getitem__, numbers)
        ]

    # allocation

    def refusal(self, unit: str, first: int, stop: int) -> Refusal | None:
        """Why [first, stop) need not be asked for; told as a refusal of `unit`'s. What is asked for counts already."""
        terms = self.terms
        counted = self.used + len(self._questions)
        injected = None if self.filter is None else self.filter(unit, first, counted)
        if injected is not None:
            why = injected
        elif counted >= terms.quota:
            why = Refusal.QUOTA
        elif max(first, terms.first) >= min(stop, terms.stop):
            why = Refusal.RANGE
        else:
            return None
        self._tell_refusal(unit, why)
        return why

    def ask(self, unit: str, first: int, stop: int, answer: Answer, *, by_attach: bool = False) -> None:
        """Ask the allocator for one of [first, stop), which `refusal` let pass; `answer` is called once, later."""
        self.is_untouched = False
        asked = self._asked(first) if by_attach else None
        if asked is not None:
            asked.answers.append(answer)
            return
        terms = self.terms
        question = _Question(max(first, terms.first), min(stop, terms.stop), unit, by_attach, [answer])
        self._questions.append(question)
        self._allocator.allocate(question.first, question.stop, lambda found: self._answered(question, found))

    def ask_for_host(self, answer: Answer) -> None:
        """A PASID of the host's own, charged as any (section 9). As `ask`, a refusal included."""
        terms = self.terms
        why = self.refusal("", terms.first, terms.stop)
        if why is not None:
            answer(why)
            return
        self.ask("", terms.first, terms.stop, answer)

    def cancel(self, unit: str) -> None:
        """Nobody of `unit` waits for what was asked: what is granted goes back at once (P35, P51)."""
        for question in self._questions:
            if question.unit == unit:
                question.is_cancelled = True

    def is_asked(self, pasid: int) -> bool:
        """Whether an attach of this very PASID waits for the allocator."""
        return self._asked(pasid) is not None

    def _asked(self, pasid: int) -> _Question | None:
        return next((q for q in self._questions if q.by_attach and q.first == pasid and not q.is_cancelled), None)

    def _answered(self, question: _Question, found: int | Refusal) -> None:
        self._questions.remove(question)
        outcome = self._outcome(question, found)
        for answer in question.answers:
            answer(outcome)
        if isinstance(outcome, Held) and outcome.by_attach and not outcome.npairs:
            self._free([outcome])  # refused for its domain meanwhile (P10)
        self._wake()

    def _outcome(self, question: _Question, found: int | Refusal) -> Held | Refusal:
        """What becomes of the allocator's answer. A grant that breaks P32 is none: nothing of ours is at stake."""
        if isinstance(found, Refusal):
            self._tell_refusal(question.unit, found)
            return found
        if found in self._held or not question.first <= found < question.stop:
            return Refusal.UNREACHABLE
        if question.is_cancelled:
            self._allocator.release([found])
            return Refusal.UNREACHABLE
        held = self._held[found] = Held(found, question.unit, question.by_attach)
        self._used_changed()
        self._is_told_exceeded = False
        self._emit(PasidAllocated(question.unit, found))
        return held

    def _tell_refusal(self, unit: str, why: Refusal) -> None:
        self._emit(PasidRefused(unit, why.value))
        if why is Refusal.QUOTA and not self._is_told_exceeded:
            self._is_told_exceeded = True
            self._emit(PasidQuotaExceeded(self.quota, self.used))

    # use, and its end

    def pair_attached(self, held: Held) -> None:
        """It has one more pair."""
        held.npairs += 1
        if held.npairs == 1:
            self._allocator.attached(held.pasid, True)

    def pairs_gone(self, gone: Iterable[Held]) -> None:
        """Each of `gone` has one pair less; ends what thereby ends (P30)."""
        unused = []
        for held in gone:
            held.npairs -= 1
            if not held.npairs and self._held.get(held.pasid) is held:  # else the host has taken it
                self._allocator.attached(held.pasid, False)
                unused.append(held)
        ending = [held for held in unused if held.freed]
        self._free([held for held in unused if held.by_attach and not held.freed])
        self._end_unused(ending)

    def flight_ended(self, pasid: int) -> None:
        """An access with `pasid` is over: that may have been the last of a freed one's, or one that an answer of
        another unit waits for."""
        held = self._held.get(pasid)
        if held is not None and held.freed:
            self._end_unused([held])
            self._wake()

    def free(self, first: int, stop: int) -> int:
        """Free the guest's PASIDs of [first, stop); how many were not free-pending. Costs the set's size at most."""
        if stop - first < len(self._held):
            found = (self._held.get(pasid) for pasid in range(first, stop))
            inside = [held for held in found if held is not None]
        else:
            inside = [held for held in self._held.values() if first <= held.pasid < stop]
        freed = [held for held in inside if not held.freed and not held.is_host]
        self._free(freed)
        return len(freed)

    def free_host(self, held: Held) -> None:
        """The host needs its own PASID no longer."""
        self._free([held])

    def free_all_of(self, unit: str) -> None:
        """Free what was allocated through `unit`, which is reset (P51)."""
        self._free([held for held in self._held.values() if held.unit == unit and not held.freed])

    def _free(self, freed: list[Held]) -> None:
        """Free-pending first, then what ends at once: the order the allocator is told in."""
        if not freed:
            return
        for held in freed:
            held.freed = True
        in_flight = self._in_flight()
        pending = {held.pasid for held in freed if held.npairs or held.pasid in in_flight}
        if pending:
            self._allocator.free_pending(sorted(pending))
        for unit in sorted({held.unit for held in freed}):
            pasids = tuple(held.pasid for held in freed if held.unit == unit)
            self._emit(PasidFreed(unit, pasids, tuple(pasid for pasid in pasids if pasid in pending)))
        self._end_unused(freed)

    def _end_unused(self, freed: Iterable[Held]) -> None:
        in_flight = self._in_flight()
        ended = [held.pasid for held in freed if not held.npairs and held.pasid not in in_flight]
        if ended:
            for pasid in ended:
                del self._held[pasid]
            self._used_changed()
            self._allocator.release(ended)
            self._emit(PasidEnded(tuple(ended)))

    def _in_flight(self) -> set[int]:
        return {pasid for unit in self.members for pasid in unit.in_flight.pasids()}

    def _wake(self) -> None:
        """Whoever holds an answer looks again: what it waits for may be of another unit."""
        for unit in self.members:
            unit.in_flight.ended()

    # the host's will

    def reconcile(self, held: Iterable[int]) -> None:
        """The authority, reachable again, says what it holds for this VM, grants it has yet to answer left out: what
        the set does not know goes back (a grant that came too late), what the authority does not hold is gone."""
        self.is_untouched = False
        theirs = set(held)
        unknown = sorted(theirs - self._held.keys())
        if unknown:
            self._allocator.release(unknown)
        self.revoke(self._held.keys() - theirs)

    def revoke(self, pasids: Iterable[int]) -> None:
        """The host has taken these away, by force: they leave the set, and the allocator is not told."""
        gone = frozenset(pasids) & self._held.keys()
        if not gone:
            return
        for pasid in gone:
            self._held.pop(pasid).freed = True
        for unit in self.members:
            unit.revoke(gone)
        self._used_changed()
        self._emit(PasidEnded(tuple(sorted(gone))))
        self._wake()

    def adopt(self, adopted: Iterable[Held]) -> None:
        """PASIDs of a unit's saved state, into a set that `is_untouched`; `reconcile` finds those that are not so."""
        self._held.update((held.pasid, held) for held in adopted)

    def settle(self, unwanted: Iterable[Held]) -> None:
        """A unit was restored: free `unwanted`, and end what waits for nothing."""
        self._free([held for held in unwanted if not held.freed])
        self._end_unused([held for held in self._held.values() if held.freed])

    def _used_changed(self) -> None:
        for unit in self.members:
            unit.used_changed()

    def _terms_changed(self) -> None:
        before, self._quota = self._quota, self.quota
        if before == self._quota:
            return
        self._is_told_exceeded = False
        self._emit(PasidQuotaChanged(before, self._quota))
        for unit in self.members:
            unit.quota_changed()
