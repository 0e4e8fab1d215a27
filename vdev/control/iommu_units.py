"""What the commands about the IOMMU need of the machine, and how they find what a client names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vdev.errors import ConfigError
from vdev.functions.dma import DmaDoor
from vdev.functions.freezer import Freezer
from vdev.functions.viommu import ViommuDevice
from vdev.iommu.engine import Engine
from vdev.wire import viommu as wire

MAX_LIMIT = 4096
DEFAULT_LIMIT = 256


class UnitPlace(Protocol):
    """Where a unit is, and how QEMU reaches it."""

    @property
    def bdf(self) -> str: ...

    @property
    def attach(self) -> str: ...


class UnitFunction(Protocol):
    """What carries a unit, as far as commands use it."""

    def config_changed(self) -> None: ...

    def needs_reset(self, why: str) -> None: ...


class Unit(Protocol):
    """A unit and the doors of what is behind it, by name. Endpoints may come and go."""

    @property
    def config(self) -> UnitPlace: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def device(self) -> ViommuDevice: ...

    @property
    def function(self) -> UnitFunction: ...

    @property
    def freezer(self) -> Freezer: ...

    @property
    def doors(self) -> Mapping[str, DmaDoor]: ...


Units = Mapping[str, Unit]


def the_unit(units: Units, name: str | None) -> Unit:
    """The unit called `name`; the only one where it is None. ConfigError names those there are."""
    known = ", ".join(sorted(units))
    if name is None:
        if len(units) != 1:
            raise ConfigError("unit", f"there are {len(units)} of them", f"name one: {known}")
        return next(iter(units.values()))
    if name not in units:
        raise ConfigError("unit", f"there is no unit '{name}'", f"known: {known}")
    return units[name]


def these_units(units: Units, name: str | None) -> list[Unit]:
    """The one called `name`, all of them where it is None."""
    return list(units.values()) if name is None else [the_unit(units, name)]


def check_number(key: str, value: int, low: int, high: int) -> None:
    """ConfigError unless `value` is in [low, high]."""
    if not low <= value <= high:
        raise ConfigError(key, f"{value} is not in {low}..{high}")


def endpoint_name(units: Units, unit: str, endpoint_id: int) -> str | None:
    """The name of an endpoint by its number; None when it is not there (any more)."""
    endpoint = units[unit].engine.table.endpoints.get(endpoint_id) if unit in units else None
    return None if endpoint is None else endpoint.name


def flag_names(flags: int) -> list[str]:
    """The flags of a mapping, in the schema's words. The list is everybody's: a page of mappings has thousands."""
    return _FLAG_NAMES[flags & _ALL_FLAGS]


_ALL_FLAGS = wire.MAP_F_READ | wire.MAP_F_WRITE | wire.MAP_F_MMIO
_WORDS = ((wire.MAP_F_READ, "read"), (wire.MAP_F_WRITE, "write"), (wire.MAP_F_MMIO, "mmio"))
_FLAG_NAMES = [[word for bit, word in _WORDS if flags & bit] for flags in range(_ALL_FLAGS + 1)]
