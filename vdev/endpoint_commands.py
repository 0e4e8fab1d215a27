"""The control socket's commands for endpoints, their groups and their slots. Texts and members: vdev/qapi/vdev.qapi."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vdev.config import EndpointConfig, endpoint_named, parse_bdf, slots_of
from vdev.control.server import Command
from vdev.endpoints.table import MODELS
from vdev.errors import ConfigError
from vdev.hot_plug import Endpoints
from vdev.iommu.engine import Engine
from vdev.iommu.probe import probed_regions
from vdev.iommu.settings import RESV_PROPERTY_NBYTES, ReservedRegion
from vdev.qemu.machine import port_of
from vdev.wire.pci import PASID_ENABLE


def endpoint_commands(endpoints: Endpoints) -> dict[str, Command]:
    """query-endpoints, query-groups, query-slots, endpoint-add, endpoint-remove."""
    handlers = _Handlers(endpoints)
    return {
        "query-endpoints": Command(handlers.query),
        "query-groups": Command(handlers.groups),
        "query-slots": Command(handlers.slots),
        "endpoint-add": Command(handlers.add),
        "endpoint-remove": Command(handlers.remove),
    }


class _Handlers:
    """Parameters and returned members are the schema's."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    def query(self, unit: str | None = None, endpoint: str | None = None) -> list[dict[str, Any]]:
        """query-endpoints. ConfigError for a unit or endpoint that is not there."""
        if endpoint is not None:
            endpoint_named(self._endpoints.config, endpoint)
        behind = _behind(self._endpoints, unit)
        return [describe(self._endpoints, known) for known in behind if endpoint in (None, known.name)]

    def groups(self, unit: str | None = None) -> list[dict[str, Any]]:
        """query-groups. ConfigError for a unit that is not there."""
        return _groups(self._endpoints, _behind(self._endpoints, unit))

    def slots(self) -> list[dict[str, Any]]:
        """query-slots."""
        places = slots_of(self._endpoints.config) if self._endpoints.has_slots else []
        return [
            {
                "bdf": slot.bdf,
                "unit": slot.unit,
                "port": port_of(slot.bdf),
                **({"endpoint": there.name} if there is not None else {}),
            }
            for slot, there in places
        ]

    def add(
        self,
        name: str,
        model: str = "accelerator",
        bdf: str | None = None,
        reserved: Sequence[Mapping[str, Any]] = (),
        options: object = None,
        dma: str = "any",
        kernel_pasid: bool = False,
        reserved_pasids: Sequence[str] = (),
    ) -> dict[str, Any]:
        """endpoint-add. ConfigError, and then nothing has changed."""
        given: dict[str, object] = {"name": name, "model": model, "reserved": reserved, "options": {}}
        given |= {} if options is None else {"options": options}
        given |= {"dma": dma.replace("-", "_"), "kernel_pasid": kernel_pasid, "reserved_pasids": reserved_pasids}
        made = self._endpoints.add(given if bdf is None else {**given, "bdf": bdf})
        alone = MODELS[made.model].in_linux and self._endpoints.unit_of(made).engine.has_driver
        until = "attached" if alone else "enumerated"
        path = str(self._endpoints.socket_of(name))
        return {"endpoint": name, "bdf": made.bdf, "port": port_of(made.bdf), "path": path, "until": until}

    def remove(self, name: str) -> dict[str, Any]:
        """endpoint-remove. ConfigError, and then nothing has changed."""
        self._endpoints.remove(name)
        return {}


def describe(endpoints: Endpoints, config: EndpointConfig) -> dict[str, Any]:
    """One endpoint as the schema's `Endpoint`."""
    unit, number = endpoints.unit_of(config), parse_bdf(config.bdf)
    facts = unit.engine.describe_endpoint(number)
    regions = probed_regions(unit.engine.settings, facts["reserved"])
    properties: bytes = facts["probe"][: RESV_PROPERTY_NBYTES * len(regions)]  # the rest are zeros
    return {
        "endpoint": config.name,
        "id": number,
        "bdf": config.bdf,
        "unit": config.unit,
        "model": config.model,
        "stage": unit.stages.of(number),
        "plugged": endpoints.came_later(config.name),
        **({"domain": facts["domain"]} if facts["domain"] is not None else {}),
        "mappings": facts["mappings"],
        "isolation": unit.engine.settings.isolation,
        "path": _path(unit.engine, number),
        "reserved": [_region(region) for region in _sorted(regions)],
        "probe": properties.hex(),
        "dma-refused": [{"name": name, "count": count} for name, count in unit.doors[config.name].refused.items()],
        "in-flight": unit.doors[config.name].nflights,
        **_pasids(endpoints, config),
        "state": unit.endpoints[config.name].describe(),
    }


def _pasids(endpoints: Endpoints, config: EndpointConfig) -> dict[str, Any]:
    unit, number = endpoints.unit_of(config), parse_bdf(config.bdf)
    known = unit.engine.table.endpoints[number]
    if known.pasid is None:
        return {}
    door = unit.doors[config.name]
    kernel = next((pair.pasid for pair in known.pairs.values() if pair.held.is_host), None)
    return {
        "pasids": {
            "bits": known.pasid.bits,
            "enabled": bool(unit.endpoints[config.name].pasid_control & PASID_ENABLE),
            "execute": known.pasid.execute,
            "privileged": known.pasid.privileged,
            "dma": "pasid-only" if known.pasid.only else "any",
            "pairs": len(known.pairs),
            **({} if kernel is None else {"kernel": kernel}),
            "reserved": [{"first": start, "last": stop - 1} for start, stop in known.pasid.reserved],
            "refused": [{"pasid": pasid, "count": count} for pasid, count in door.refused_pasids.items()],
        }
    }


def _groups(endpoints: Endpoints, behind: Iterable[EndpointConfig]) -> list[dict[str, Any]]:
    """A group is what cannot be told apart or would reach each other past the IOMMU: the functions of one device.

    Devices have a slot of the root bus, or a root port of QEMU's, which has ACS, to themselves.
    """
    found: dict[int, list[EndpointConfig]] = {}
    for config in sorted(behind, key=lambda config: parse_bdf(config.bdf)):
        found.setdefault(parse_bdf(config.bdf) >> 3, []).append(config)
    return [
        {
            "id": parse_bdf(members[0].bdf),
            "unit": members[0].unit,
            "endpoints": [config.name for config in members],
            "reserved": [_region(region) for region in _regions(endpoints, members)],
        }
        for members in found.values()
    ]


def _regions(endpoints: Endpoints, members: Iterable[EndpointConfig]) -> list[ReservedRegion]:
    regions: set[ReservedRegion] = set()
    for config in members:
        engine = endpoints.unit_of(config).engine
        regions.update(probed_regions(engine.settings, engine.describe_endpoint(parse_bdf(config.bdf))["reserved"]))
    return _sorted(regions)


def _sorted(regions: Iterable[ReservedRegion]) -> list[ReservedRegion]:
    return sorted(regions, key=lambda region: region.start)


def _path(engine: Engine, number: int) -> str:
    """The schema's `EndpointPath`: what becomes of an access now."""
    domain = engine.table.endpoints[number].domain
    if domain is not None and not domain.bypass:
        return "translated"
    return "untranslated" if domain is not None or engine.bypass else "blocked"


def _region(region: ReservedRegion) -> dict[str, Any]:
    return {"start": region.start, "end": region.stop - 1, "kind": "msi" if region.is_msi else "reserved"}


def _behind(endpoints: Endpoints, unit: str | None) -> list[EndpointConfig]:
    """All endpoints, or those behind `unit`. ConfigError if it is not there."""
    known = [given.name for given in endpoints.config.units]
    if unit is not None and unit not in known:
        raise ConfigError("unit", f"there is no unit {unit!r}", f"there are: {', '.join(known)}")
    return [config for config in endpoints.config.endpoints if unit in (None, config.unit)]
