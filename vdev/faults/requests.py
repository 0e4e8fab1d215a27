"""The point request: a unit takes a request, and the answer is another, comes later, twice, or not at all.

What is to be done is decided when the request is taken (`_Unit.handle`), and done when its answer may go
(`_Unit.answer`): at once, or when the accesses in flight that it waits for are over. An answer that is held is kept by
the device itself, as one that waits for such accesses: it is given in a slice, when its ring is in reach, and forgotten
with its ring. A request that is not served (too short, of an unknown type) is none of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial

from vdev.faults.keeping import HoldsByUnit, Keeper
from vdev.faults.plan import Firing
from vdev.faults.point import NO_ROOM, Due, Serve, Services, UnitParts
from vdev.faults.request_words import REQUEST, occurrence, parse
from vdev.functions.viommu import Reply
from vdev.functions.virtio_device import Push
from vdev.iommu.events import Event, RequestHandled
from vdev.iommu.in_flight import Late, Wait
from vdev.iommu.kinds import Kind
from vdev.virtio.queue import Queue
from vdev.wire import viommu as wire
from vdev.wire.record import Record

REORDER_SECONDS = 1.0  # after so long a reply goes, whether later ones came or not: its driver may send none without it
STATUS_BY_NAME = {name: status for status, name in wire.STATUS_NAMES.items()}


@dataclass(frozen=True, slots=True)
class _Doomed:
    """A request that was taken, and what is to be done to its answer."""

    firing: Firing
    kind: Kind
    request: Record


@dataclass(slots=True, eq=False)
class _Kept:
    """An answer that is held. `behind`: after so many others; `dropped`: for good, unless all is undone."""

    rule: str
    wait: Wait
    answer: bytes
    behind: int = 0
    dropped: bool = False
    due: Due | None = None


class _Unit(Keeper[_Kept]):
    """One unit's requests. `handle` and `answer` are called in its device's slices only."""

    def __init__(self, services: Services, parts: UnitParts) -> None:
        super().__init__()
        self._services = services
        self._parts = parts
        self._taken: _Doomed | None = None  # its answer is asked about next
        self._waiting: dict[int, tuple[Wait, _Doomed]] = {}  # by id of the wait they had already

    # when a request is taken

    def handle(self, inner: Serve, readable: bytes | memoryview, writable_nbytes: int) -> bytes:
        """As `Engine.handle`; `inner` is that, or what else stands before it."""
        self._taken = None
        engine = self._parts.engine
        found = parse(engine, readable, writable_nbytes)
        if found is None:
            return inner(readable, writable_nbytes)
        kind, request = found
        firing = self._services.meet(occurrence("request", engine, kind, request), self._words)
        if firing is None:
            return inner(readable, writable_nbytes)
        doomed = _Doomed(firing, kind, request)
        if firing.rule.do == "status":
            answer = self._answer_status(doomed, partial(inner, readable, writable_nbytes))
        else:
            answer = inner(readable, writable_nbytes)
        self._mark(doomed)
        edit = _PROBE_EDITS.get(firing.rule.do)
        return answer if edit is None else edit(answer, firing)

    def _words(self, firing: Firing) -> str:
        ends = firing.rule.do == "reorder" or firing.rule.seconds() is not None
        return NO_ROOM if ends and not self._services.has_room else ""

    def _answer_status(self, doomed: _Doomed, carry_out: Callable[[], bytes]) -> bytes:
        """The status a rule wants. Of what is carried out first, it is put into the answer when that is known."""
        engine, rule = self._parts.engine, doomed.firing.rule
        status, why = STATUS_BY_NAME[str(rule.parameters["status"])], f"injected by rule {rule.id}"
        if not rule.parameters["perform"]:
            doomed.kind.handled += 1
            engine.tell(RequestHandled, doomed.kind.name, status, doomed.request, why)
            return bytes(doomed.kind.properties_nbytes) + wire.TAILS[status]
        emit = engine.emit
        if emit is None:
            return carry_out()
        engine.emit = partial(_tell_as, emit, status, why)
        try:
            return carry_out()
        finally:
            engine.emit = emit

    def _mark(self, doomed: _Doomed) -> None:
        """So that `answer` knows the answer again."""
        wait = self._parts.engine.wait
        if wait is None:
            self._taken = doomed
            return
        device = self._parts.device
        self._waiting = {key: one for key, one in self._waiting.items() if device.keeps(one[0])}
        self._waiting[id(wait)] = (wait, doomed)

    # when its answer may go

    def answer(self, reply: Reply) -> bool:
        """As `functions.viommu.Hold`."""
        doomed = self._doomed(reply)
        came = Came.PASSED if doomed is None else _WAYS[doomed.firing.rule.do](self, reply, doomed)
        # Whatever waited may have come before those that wait for later ones, so only what did not wait counts.
        if came is Came.KEPT or reply.wait is not None or not any(one.behind for one in self.holds):
            return came is not Came.PASSED
        if came is Came.PASSED:
            self._parts.device.complete(reply)
        self._count_answer()
        return True

    def _doomed(self, reply: Reply) -> _Doomed | None:
        if reply.wait is None:
            doomed, self._taken = self._taken, None
            return doomed
        found = self._waiting.get(id(reply.wait))  # it stays: where the ring is out of reach we are asked again
        return found[1] if found is not None and found[0] is reply.wait else None

    def _count_answer(self) -> None:
        """One more was answered; those that have seen enough go right behind it."""
        for one in [one for one in self.holds if one.behind]:
            one.behind -= 1
            if not one.behind:
                self.let_go(one)
        self._parts.device.settle()

    def _answer_as(self, reply: Reply, doomed: _Doomed) -> Came:
        status = STATUS_BY_NAME[str(doomed.firing.rule.parameters["status"])]
        answer = reply.answer[: -wire.TAIL_NBYTES] + wire.TAILS[status]
        if answer == reply.answer:
            return Came.PASSED
        return self._answer(replace(reply, answer=answer))

    def _answer_twice(self, reply: Reply, doomed: _Doomed) -> Came:
        return self._answer(reply, lambda ring, chain, nbytes: ring.push_wrong(chain, nbytes, 2))

    def _answer_wrong_length(self, reply: Reply, doomed: _Doomed) -> Came:
        wanted = doomed.firing.rule.number("nbytes")
        return self._answer(reply, lambda ring, chain, nbytes: ring.push_wrong(chain, wanted))

    def _answer(self, reply: Reply, push: Push = Queue.push) -> Came:
        """A ring that is out of reach is for the device to try again: then it asks us again."""
        return Came.ANSWERED if self._parts.device.complete(reply, push) else Came.PASSED

    def _pass(self, reply: Reply, doomed: _Doomed) -> Came:
        return Came.PASSED

    def _hold(self, reply: Reply, doomed: _Doomed) -> Came:
        return self._keep(reply, doomed, doomed.firing.rule.seconds())

    def _drop(self, reply: Reply, doomed: _Doomed) -> Came:
        return self._keep(reply, doomed, None, dropped=True)

    def _reorder(self, reply: Reply, doomed: _Doomed) -> Came:
        return self._keep(reply, doomed, REORDER_SECONDS, behind=doomed.firing.rule.number("behind"))

    def _keep(
        self, reply: Reply, doomed: _Doomed, seconds: float | None, *, behind: int = 0, dropped: bool = False
    ) -> Came:
        """No more are kept than the ring has descriptors. Where too much waits for its time already it just goes."""
        rule = doomed.firing.rule.id
        one = _Kept(rule, Wait(doomed.kind.name, doomed.request, [], Late(), rule), reply.answer, behind, dropped)
        if seconds is not None:
            one.due = self._services.later(seconds, partial(self.let_go, one))
            if one.due is None:
                return Came.PASSED
        self.hold(one)
        self._parts.device.keep(reply, one.wait)
        return Came.KEPT

    # what is held

    def is_void(self, one: _Kept) -> bool:
        """Its ring was reset."""
        return not self._parts.device.keeps(one.wait)

    def gone(self, one: _Kept) -> None:
        """It is answered in the device's next slice, if its ring is there."""
        assert one.wait.late is not None
        one.wait.late.answer = one.answer
        self._parts.device.look_at_held()


class Came(Enum):
    """What came of an answer that may go."""

    PASSED = auto()  # the device gives it
    ANSWERED = auto()  # we did
    KEPT = auto()  # it is held


_WAYS: Mapping[str, Callable[[_Unit, Reply, _Doomed], Came]] = {
    "status": _Unit._answer_as,
    "hold": _Unit._hold,
    "drop": _Unit._drop,
    "twice": _Unit._answer_twice,
    "used-length": _Unit._answer_wrong_length,
    "reorder": _Unit._reorder,
    "probe-truncate": _Unit._pass,
    "probe-corrupt": _Unit._pass,
}


class RequestPoint(HoldsByUnit[_Unit]):
    """In front of `Engine.handle`, and of the answers on their way back, of every unit."""

    def __init__(self, services: Services) -> None:
        super().__init__({name: _Unit(services, parts) for name, parts in services.units.items()})
        self._services = services

    def arm(self) -> None:
        """As `point.Hooks`."""
        for name, unit in self._units.items():
            self._services.answer_with(name, REQUEST, partial(partial, unit.handle))
            self._services.units[name].device.hold = unit.answer

    def disarm(self) -> None:
        """As `point.Hooks`."""
        for name in self._units:
            self._services.answer_with(name, REQUEST, None)
            self._services.units[name].device.hold = None

    def can_release(self, one: _Kept) -> bool:
        """What was dropped takes room in the ring, and is given by `clear` alone."""
        return not one.dropped

    def undone(self, unit: str, kept: Sequence[_Kept]) -> str:
        """As `HoldsByUnit`."""
        return f"requests of {unit} are answered: {len(kept)}"


def _tell_as(emit: Callable[[Event], None], status: int, why: str, event: Event) -> None:
    """`event`, where it is of a request with another answer."""
    if isinstance(event, RequestHandled):
        event.status, event.problem = status, why
    emit(event)


def _truncate(answer: bytes, firing: Firing) -> bytes:
    room = len(answer) - wire.TAIL_NBYTES
    return answer[: min(firing.rule.number("nbytes"), room)].ljust(room, b"\0") + answer[room:]


def _corrupt(answer: bytes, firing: Firing) -> bytes:
    """Wrong bytes as far as there are properties: the tail is not one."""
    room = len(answer) - wire.TAIL_NBYTES
    start = min(firing.rule.number("offset"), room)
    stop = min(start + firing.rule.number("nbytes"), room)
    return answer[:start] + bytes([firing.rule.number("value")]) * (stop - start) + answer[stop:]


_PROBE_EDITS: Mapping[str, Callable[[bytes, Firing], bytes]] = {
    "probe-truncate": _truncate,
    "probe-corrupt": _corrupt,
}
