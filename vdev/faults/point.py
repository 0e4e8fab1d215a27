"""What the hooks of a point and whoever runs the plan (`vdev.injector`) have to do with each other.

The hooks of a point are in place only while rules stand at it. `arm` puts them where they belong, `disarm` takes them
away: with no rule the cores run exactly the code that they run without fault injection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from vdev.faults.plan import Firing
from vdev.faults.rule import Occurrence
from vdev.functions.dma import DmaDoor
from vdev.functions.vhost import VhostCarrier
from vdev.functions.viommu import ViommuDevice
from vdev.functions.virtio_pci import VirtioPciFunction
from vdev.iommu.engine import Engine

Serve = Callable[[bytes | memoryview, int], bytes]  # Engine.handle


NO_ROOM = "not done: too much waits for its time already"


class Due(Protocol):
    """Something that is to happen later."""

    def cancel(self) -> None:
        """It does not. Again, or too late, is no change."""


class UnitParts(Protocol):
    """A unit as `assemble.Unit` has it. Endpoints and doors are by name, and may come and go."""

    @property
    def engine(self) -> Engine: ...

    @property
    def device(self) -> ViommuDevice: ...

    @property
    def function(self) -> VirtioPciFunction | VhostCarrier: ...

    @property
    def doors(self) -> Mapping[str, DmaDoor]: ...

    @property
    def endpoints(self) -> Mapping[str, Any]:
        """`PciFunction`s with what `endpoints.base.Endpoint` says."""


class Services(Protocol):
    """What a point may ask for."""

    @property
    def units(self) -> Mapping[str, UnitParts]:
        """All there are, by name."""

    def meet(self, met: Occurrence, words: Callable[[Firing], str] = ...) -> Firing | None:
        """Tell the plan of an occurrence: what is to be done to it, if anything. Free actions that it sets off have
        been done, and all is in the log, when this returns. To be called once an occurrence. `words`, asked before that
        is in the log: what will come of it, where that needs words."""

    @property
    def has_room(self) -> bool:
        """Whether `later` would take one more."""

    def later(self, seconds: float, what: Callable[[], None]) -> Due | None:
        """Call `what` in a slice (so it may touch guest memory), as soon as so much time has passed while the VM runs.
        None: too much waits already; then the action is not done."""

    def ask_qemu(self, firing: Firing, command_line: str) -> None:
        """A part of `firing` is QEMU's: whoever has its monitor is asked to run `command_line` there."""

    def port_of(self, function: str) -> str | None:
        """What QEMU calls the root port in front of an endpoint; None on bus 00."""

    def answer_with(self, unit: str, rank: int, wrap: Callable[[Serve], Serve] | None) -> None:
        """Requests of `unit` are answered by `wrap(handle)`, whether or not somebody traces; `handle` is what stands at
        the next lower rank, at last `Engine.handle`. None: nothing stands at `rank`."""


def functions(services: Services, point: str) -> Iterator[tuple[Any, Occurrence]]:
    """Every function, a `PciFunction` or a unit's `VhostCarrier`, with an occurrence at `point` that is about it."""
    for name, unit in services.units.items():
        yield unit.function, Occurrence(point, unit=name, function=name)
        for endpoint, function in unit.endpoints.items():
            number = unit.doors[endpoint].endpoint_id
            yield function, Occurrence(point, unit=name, endpoint=number, function=endpoint)


class Hooks(Protocol):
    """One point. All of it is for the one event loop."""

    def arm(self) -> None:
        """Put the hooks in place, everywhere; again after endpoints came."""

    def disarm(self) -> None:
        """Take them away; what is held is still held."""

    def release(self, rule: str | None) -> int:
        """Let go of what is held because of `rule`, or of any (None); how many things."""

    def held(self) -> Mapping[str, int]:
        """How many things are held, by rule; none that are zero."""

    def clear(self) -> list[str]:
        """Undo what is left of all rules: a line of words for each thing."""
