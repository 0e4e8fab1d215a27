"""Fault injection over a machine without sockets: rules, a clock of the test's, and what was told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.pasid_allocator import PlainAllocator
from vdev.assemble import Machine
from vdev.config import Config, EndpointConfig, PasidsConfig, UnitConfig, VmConfig
from vdev.faults.events import FaultInjected
from vdev.faults.rule import NS
from vdev.functions.base import Progress, Worker
from vdev.injector import Around, Injector
from vdev.iommu.pasid_set import PasidSet
from vdev.virtio.ordering import NoOrdering

PLAIN = Config(
    units=(UnitConfig(name="iommu0"),),
    endpoints=(
        EndpointConfig(name="accel0"),
        EndpointConfig(name="rng0", model="rng", bdf="02:00.0"),
    ),
)
WITH_PASIDS = Config(vm=VmConfig(pasids=PasidsConfig()), units=PLAIN.units, endpoints=PLAIN.endpoints)


class Injected:
    """A machine and its injector. Time stands still until `pass_time`."""

    def __init__(self, config: Config = PLAIN) -> None:
        self.events: list[object] = []
        self.woken: list[Worker] = []
        self.orders: list[tuple[str, Mapping[str, Any]]] = []
        self.stalls: list[float] = []
        self.deaths = 0
        self.now_ns = 5 * NS
        self.alarms: dict[str, int] = {}
        self.allocator = PlainAllocator()
        self.pasids = None if config.vm.pasids is None else PasidSet(self.allocator, self.events.append)
        self.machine = Machine(
            config,
            emit=self.events.append,
            wake=self.woken.append,
            wake_at=self._wake_at,
            ordering=NoOrdering(),
            pasids=self.pasids,
        )
        around = Around(
            emit=self.events.append,
            clock_ns=lambda: self.now_ns,
            wake_at=self._wake_at,
            order=lambda command, arguments: self.orders.append((command, arguments)),
            stall=self.stalls.append,
            die=self._die,
        )
        self.injector = Injector(self.machine, config, around, self.pasids)

    def _wake_at(self, worker: Worker, when_ns: int) -> None:
        self.alarms[worker.name] = when_ns

    def _die(self) -> None:
        self.deaths += 1

    def add(self, at: str, do: str, **more: Any) -> str:
        """Add a rule; `with_` is its `with`."""
        if "with_" in more:
            more["with"] = more.pop("with_")
        return self.injector.add({"at": at, "do": do, **more})

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and what is due in it happen, each thing at its time."""
        until = self.now_ns + round(seconds * NS)
        while (due := self.alarms.get("faults")) is not None and due <= until:
            self.now_ns = max(self.now_ns, due)
            del self.alarms["faults"]
            while self.injector.run_slice(self.now_ns) is Progress.BUSY:
                pass
        self.now_ns = until

    @property
    def firings(self) -> list[tuple[str, int]]:
        """Rule and number of each firing, in order."""
        return [(event.rule, event.n) for event in self.events if isinstance(event, FaultInjected)]
