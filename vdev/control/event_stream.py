"""`events-follow`: what happens, in the schema's events and in the form QMP has, one a line.

Limits (`event_limits`) hold for all followers together: what one is told the others are told. Without a follower
nothing is connected, and an event costs a comparison.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import msgspec

from vdev.control.event_limits import EventLimiter
from vdev.control.monitor_events import EVENTS, EVENTS_LOST, Names, Told, is_told
from vdev.control.server import Command

MAX_WAITING = 1024  # lines for a follower that does not read
CHUNK = 64  # lines given to its socket at a time

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Around:
    """What the stream needs of the application."""

    connect: Callable[[Callable[[object], None] | None], None]  # give events to this from now on, or to nobody
    names: Names
    clock: Callable[[], float]  # monotonic, seconds
    wall_us: Callable[[], int]  # since 1970, as QMP's timestamps
    schedule: Callable[[float, Callable[[], None]], object]  # call something in so many seconds


@dataclass(frozen=True, slots=True)
class _Happened:
    """An event as it was when it happened, with what is known of it then."""

    told: Told
    data: dict[str, Any]
    wall_us: int


class Follower:
    """The lines one client has not taken yet."""

    def __init__(self, wall_us: Callable[[], int]) -> None:
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._wall_us = wall_us
        self._awake = asyncio.Event()

    def put(self, line: bytes) -> None:
        """Keep `line`, or count it when the client is too far behind."""
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return
        self._waiting.append(line)
        self._awake.set()

    async def take(self) -> bytes:
        """Wait for lines; some of them, and after the last one that was kept, how many were not."""
        await self._awake.wait()
        lines = [self._waiting.popleft() for _ in range(min(CHUNK, len(self._waiting)))]
        if not self._waiting:
            self._awake.clear()
            if self._lost:
                lines.append(event_line(EVENTS_LOST, {"count": self._lost}, self._wall_us()))
                self._lost = 0
        return b"".join(lines)

    async def lines(self, left: Callable[[Follower], None]) -> AsyncGenerator[bytes, None]:
        """All there will be, until whoever takes them ends it: `left` is told."""
        try:
            while True:
                yield await self.take()
        finally:
            left(self)


class EventStream:
    """Give it to the control server by `events_commands`."""

    def __init__(self, around: Around) -> None:
        self._around = around
        # Weak: a stream that was never begun, because its client is gone, has no end that anybody could see.
        self._followers: WeakSet[Follower] = WeakSet()
        self._limiter: EventLimiter[_Happened] = EventLimiter()
        self._timer_at: float | None = None

    @property
    def nfollowers(self) -> int:
        """How many listen."""
        return len(self._followers)

    def follow(self) -> AsyncGenerator[bytes, None]:
        """Lines from now on: what happens before the first is asked for is not missed."""
        follower = Follower(self._around.wall_us)
        if not self._followers:
            self._limiter = EventLimiter()
            self._around.connect(self.put)
        self._followers.add(follower)
        return follower.lines(self._left)

    def _left(self, follower: Follower) -> None:
        self._followers.discard(follower)
        self._leave()

    def put(self, event: object) -> None:
        """Take in an event of any kind."""
        if not is_told(event):
            return
        if not self._followers:
            self._leave()
            return
        told = EVENTS[type(event)]
        happened = _Happened(told, told.data(event, self._around.names), self._around.wall_us())
        if told.key is None:
            self._tell(happened, 0)
            return
        suppressed = self._limiter.offer(told.name, told.key(event), happened, self._around.clock())
        if suppressed is not None:
            self._tell(happened, suppressed)
        else:
            self._set_timer()

    def _tell(self, happened: _Happened, suppressed: int) -> None:
        told, data = happened.told, happened.data
        if told.key is not None and told.counted:
            data = {**data, "suppressed": suppressed}
        line = event_line(told.name, data, happened.wall_us)
        for follower in self._followers:
            follower.put(line)

    def _set_timer(self) -> None:
        due = self._limiter.next_due()
        if due is None or self._timer_at is not None:
            return
        self._timer_at = due
        self._around.schedule(max(due - self._around.clock(), 0.0), self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer_at = None
        for happened, suppressed in self._limiter.due(self._around.clock()):
            self._tell(happened, suppressed)
        self._set_timer()

    def _leave(self) -> None:
        if not self._followers:
            self._around.connect(None)


def event_line(name: str, data: dict[str, Any], wall_us: int) -> bytes:
    """One event as QMP has it, without the schema's prefix, with a newline."""
    seconds, microseconds = divmod(wall_us, 1_000_000)
    timestamp = {"seconds": seconds, "microseconds": microseconds}
    return _encode({"event": name, "data": data, "timestamp": timestamp}) + b"\n"


def events_commands(stream: EventStream) -> dict[str, Command]:
    """events-follow, after whose answer events follow."""
    return {"events-follow": Command(lambda: {}, stream.follow)}
