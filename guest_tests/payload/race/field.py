"""Where an operation is raced: a unit, three accelerators behind it, memory, and a clock.

Two accelerators share domain 1, the third one is alone in domain 2. The rings are mapped in both domains, so that an
engine that is moved finds its own. Unattached endpoints reach nothing, unless a race says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..direct import Accel, Map, RequestRefused, Unmap, Viommu
from ..direct.accel import RING_IOVA, RING_NBYTES
from ..direct.memory import Allocator
from .ground import Scale

DOMAIN, ELSEWHERE = 1, 2
SPARE_IOVA = 0x0200_0000  # in domain 1: a ring for whoever starts an engine anew
BUFFER_NBYTES = 2 << 20


class Clock(Protocol):
    """Time, as a race needs it. A clock `is_exact` where nothing happens while nobody lets time pass."""

    is_exact: bool

    def now(self) -> int:
        """What the device's clock shows, or one that is as good."""

    def until(self, when_ns: int, *, asleep: bool = False) -> None:
        """Let time pass until `when_ns`. `asleep`: what is due at that very time has not happened yet, if possible."""

    def step(self) -> None:
        """Let time pass until something happens, or a little of it."""

    def look(self) -> None:
        """Who polls looks now."""

    def turn(self, unit_first: bool) -> None:
        """Whether the unit works before the accelerators where both have something to do at the same time."""


class WallClock:
    """The real time. What happens at the same time happens in any order."""

    is_exact = False

    def now(self) -> int:
        """CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def until(self, when_ns: int, *, asleep: bool = False) -> None:
        """Spin: races are lost by less than a sleep takes."""
        while time.monotonic_ns() < when_ns:
            pass

    def step(self) -> None:
        """A short nap: the device's process may need our CPU."""
        time.sleep(0.0001)

    def look(self) -> None:
        """They do by themselves."""

    def turn(self, unit_first: bool) -> None:
        """Nobody can tell."""


@dataclass
class Field:
    """`accels[0]` is raced against, `accels[1]` may work beside it, `accels[2]` keeps domain 2 alive."""

    viommu: Viommu
    accels: tuple[Accel, Accel, Accel]
    clock: Clock
    memory: Allocator
    latency_ns: int  # of the first two
    slack_ns: int  # how much longer than that is waited for what must not land
    scales: tuple[Scale, ...]
    slice_nbytes: int  # the most an engine moves at once
    revalidates: bool = False  # a landing is translated again
    freeze: Callable[[bool], None] | None = None  # hold all DMA, as QEMU's `stop` does
    resets: dict[str, Callable[[], None]] = field(default_factory=dict)  # more ways to reset the unit

    def __post_init__(self) -> None:
        """Memory, and everything running."""
        self.target, self.source, self.other, self.beside = (self.memory.alloc(BUFFER_NBYTES) for _ in range(4))
        self.spare = self.memory.alloc(RING_NBYTES)
        self.set_up()

    def ring_iova(self, accel: Accel) -> int:
        """Where each engine has its ring."""
        return RING_IOVA + self.accels.index(accel) * 2 * RING_NBYTES

    def set_up(self) -> None:
        """The unit is new: attach and map everything, start all engines."""
        self.viommu.bypass = False
        for accel in self.accels:
            self.viommu.attach(domain=self.home(accel), endpoint=accel.endpoint)
        requests = [
            Map(domain=domain, virt_start=iova, virt_end=iova + RING_NBYTES - 1, phys_start=accel.ring.gpa, flags=3)
            for domain in (DOMAIN, ELSEWHERE)
            for accel in self.accels
            for iova in (self.ring_iova(accel),)
        ]
        self.send_all(list(requests))
        self.viommu.map_buffer(DOMAIN, SPARE_IOVA, self.spare)
        for accel in self.accels:
            accel.start(self.ring_iova(accel))

    def home(self, accel: Accel) -> int:
        """The domain it belongs to."""
        return ELSEWHERE if accel is self.accels[2] else DOMAIN

    def start_anew(self) -> None:
        """After a reset of the unit."""
        self.viommu.start()
        self.set_up()

    def send_all(self, requests: list[Map | Unmap]) -> None:
        """Requests that are to succeed while nothing is under way."""
        for request, answer in zip(requests, self.viommu.submit(requests), strict=True):
            if not answer.ok:
                raise RequestRefused(request, answer)
