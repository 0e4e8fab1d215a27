"""The bounded history of typed events: what the log, the control socket and failed tests show."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from vdev.control.pasid_events import ranges_text
from vdev.faults.events import FaultInjected, FaultQemuDone, FaultsCleared, FaultWantsQemu
from vdev.iommu.events import ReplyHeld, RequestHandled
from vdev.wire.viommu import S_OK, STATUS_NAMES

log = logging.getLogger("vdev.event")

ADDRESSES = ("iova", "register", "gpa", "virt_start", "virt_end", "phys_start", "flags", "pasid")

QUIET = frozenset(  # not for the log: what a driver does all the time
    {
        "RequestHandled", "ReplyHeld", "PasidAllocated", "PasidFreed", "PasidEnded", "PasidAttached", "PasidDetached",
    }
)  # fmt: skip
HISTORY_NEVENTS = 4096  # bounds the memory a busy guest can make us keep
LOGGED_PER_SECOND = 50  # bounds what a guest that provokes faults can write to the log's disk


class EventLog:
    """Keeps the newest events with a sequence number and a time in seconds; `emit` is what cores are given.

    Events are kept as they came and turned into plain data only when somebody asks: the request path pays
    one append.
    """

    def __init__(self, clock: Callable[[], float], quiet: frozenset[str] = QUIET) -> None:
        self._clock = clock
        self._quiet = quiet
        self._history: deque[tuple[int, float, object]] = deque(maxlen=HISTORY_NEVENTS)
        self._next = 0
        self._second = 0.0  # when the present second of logging began
        self._logged = 0  # events of this second, the unlogged ones included
        self.trace: Callable[[object], None] | None = None
        self.follower: Callable[[object], None] | None = None  # told of all but requests that were granted

    def emit(self, event: object) -> None:
        """Keep `event`; log it unless its kind is quiet or too many came this second."""
        now = self._clock()
        self._history.append((self._next, now, event))
        self._next += 1
        if self.trace is not None:
            self.trace(event)
        if type(event) is RequestHandled and event.status == S_OK:
            return  # nearly all there is, and nobody else wants it
        if self.follower is not None:
            self.follower(event)
        if type(event).__name__ not in self._quiet:
            self._log(now, event)

    def _log(self, now: float, event: object) -> None:
        if now - self._second >= 1.0:
            if self._logged > LOGGED_PER_SECOND:
                log.info("%d more events were not logged", self._logged - LOGGED_PER_SECOND)
            self._second, self._logged = now, 0
        self._logged += 1
        if self._logged <= LOGGED_PER_SECOND:
            log.info("%s", describe(event))

    def since(self, first: int, limit: int, kinds: frozenset[str]) -> list[dict[str, Any]]:
        """Kept events numbered `first` or later, the newest `limit` of them, oldest first; "text" is for people."""
        found = [kept for kept in self._history if kept[0] >= first and (not kinds or type(kept[2]).__name__ in kinds)]
        newest = found[-limit:] if limit > 0 else []
        return [{"seq": seq, "time": time, "text": describe(event), **as_plain(event)} for seq, time, event in newest]

    def query(self, since: int = 0, limit: int = 1000, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The command query-events: as `since`, of no kinds all."""
        return self.since(since, limit, frozenset(kinds))


def as_plain(event: object) -> dict[str, Any]:
    """An event dataclass as JSON-able data, its class name under "event"."""
    if isinstance(event, RequestHandled):
        names = ("unit", "type_name", "endpoint", "domain", "status", "fields", "problem")
        return {"event": type(event).__name__, **{name: getattr(event, name) for name in names}}
    assert is_dataclass(event)
    return {"event": type(event).__name__, **{f.name: getattr(event, f.name) for f in fields(event)}}


def describe(event: object) -> str:
    """An event in one line for people: addresses in hex, endpoints as BDFs, a request with its answer."""
    if isinstance(event, RequestHandled):
        answer = "unwritten" if event.status is None else STATUS_NAMES[event.status]
        why = f" ({event.problem})" if event.problem else ""
        return " ".join([event.unit, event.type_name, *_words(event.fields), "->", answer + why])
    if isinstance(event, ReplyHeld):
        whom = f"{event.naccesses} accesses in flight" if event.naccesses else "the PASID authority"
        whom = f"rule {event.rule}" if event.rule else whom
        late = f"answered after {event.held_ns / 1e6:.3f} ms, for {whom}"
        return " ".join([event.unit, event.type_name, *_words(event.fields), late])
    if type(event) in _OF_FAULTS:
        return _OF_FAULTS[type(event)](event)
    plain = as_plain(event)
    return " ".join([str(plain.pop("event")), *_words(plain)])


def _injected(event: FaultInjected) -> str:
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in event.parameters.items()}
    how = f" ({', '.join(_words(given))})" if given else ""
    fields = dict(event.fields)
    end = fields.pop("iova_end", None)
    if end is not None:
        fields["iova"] = f"{fields['iova']:#x}..{end:#x}"
    met = f": {' '.join(_words(fields))}" if fields else ""
    came = f"; {event.note}" if event.note else ""
    return f"rule {event.rule}, {event.n}: {event.do}{how} at {event.at}{met}{came}"


def _qemu_done(event: FaultQemuDone) -> str:
    came = f"not done by QEMU: {event.error}" if event.error else "QEMU has done its part"
    return f"rule {event.rule}, {event.n}: {came}"


def _cleared(event: FaultsCleared) -> str:
    lost = [f"for good: {line}" for line in event.terminal]
    return "; ".join([f"{event.rules} rules cleared", *event.undone, *lost])


_OF_FAULTS: dict[type, Callable[[Any], str]] = {
    FaultInjected: _injected,
    FaultWantsQemu: lambda event: f"rule {event.rule}, {event.n}: QEMU is to do {event.command_line}",
    FaultQemuDone: _qemu_done,
    FaultsCleared: _cleared,
}


def _words(values: Mapping[str, object]) -> list[str]:
    return [f"{name}={_show(name, value)}" for name, value in values.items()]


def _show(name: str, value: object) -> str:
    if isinstance(value, tuple):
        return ranges_text(value) or "none"
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    if name == "endpoint" and value < 1 << 16:
        return f"{value >> 8:02x}:{value >> 3 & 0x1F:02x}.{value & 7}"
    return f"{value:#x}" if name in ADDRESSES else str(value)
