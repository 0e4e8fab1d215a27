"""How far the guest has got with each endpoint of a unit: who waits for a device to be usable waits for a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from vdev.iommu.events import EndpointStage

Stage = Literal["absent", "plugged", "enumerated", "probed", "attached"]
ORDER: tuple[Stage, ...] = ("absent", "plugged", "enumerated", "probed", "attached")


class Stages:
    """Stages only rise while QEMU is connected, and start anew with the next connection."""

    def __init__(self, unit: str, emit: Callable[[EndpointStage], None]) -> None:
        self._unit = unit
        self._emit = emit
        self._names: dict[int, str] = {}
        self._at: dict[int, Stage] = {}

    def add(self, endpoint: int, name: str) -> None:
        """An endpoint nobody has connected to."""
        self._names[endpoint] = name
        self._at[endpoint] = "absent"

    def remove(self, endpoint: int) -> None:
        """It is gone."""
        del self._names[endpoint], self._at[endpoint]

    def reach(self, endpoint: int, stage: Stage) -> None:
        """The guest got as far as `stage`, if it was not there before."""
        if ORDER.index(stage) > ORDER.index(self._at[endpoint]):
            self._at[endpoint] = stage
            self._emit(EndpointStage(self._unit, endpoint, self._names[endpoint], stage))

    def connection(self, endpoint: int, present: bool) -> None:
        """QEMU connected, or is gone."""
        if endpoint not in self._at:
            return  # it was removed meanwhile
        if present:
            self.reach(endpoint, "plugged")
        else:
            self._at[endpoint] = "absent"

    def of(self, endpoint: int) -> Stage:
        """The stage of one endpoint."""
        return self._at[endpoint]
