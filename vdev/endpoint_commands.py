"""The control socket's commands for endpoints, their groups and their slots. Texts and members: vdev/qapi/vdev.qapi."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vdev.config import EndpointConfig, endpoint_named, parse_bdf, slots_of
from vdev.control.server import Command
from vdev.endpoints.table import MODELS
from vdev.errors import ConfigError
from vdev.hot_plug import Endpoints
from vdev.iommu.settings import RESV_PROPERTY_NBYTES, ReservedRegion
from vdev.qemu.machine import port_of


def endpoint_commands(endpoints: Endpoints) -> dict[str, Command]:
    """query-endpoints, query-groups, query-slots, endpoint-add, endpoint-remove."""

    def query(unit: str | None = None, endpoint: str | None = None) -> list[dict[str, Any]]:
        _check_unit(endpoints, unit)
        if endpoint is not None:
            endpoint_named(endpoints.config, endpoint)
        return [
            describe(endpoints, known)
            for known in _behind(endpoints, unit)
            if endpoint is None or known.name == endpoint
        ]

    def groups(unit: str | None = None) -> list[dict[str, Any]]:
        _check_unit(endpoints, unit)
        return _groups(endpoints, _behind(endpoints, unit))

    def slots() -> list[dict[str, Any]]:
        return [
            {
                "bdf": slot.bdf,
                "unit": slot.unit,
                "port": port_of(slot.bdf),
                **({"endpoint": there.name} if there is not None else {}),
            }
            for slot, there in (slots_of(endpoints.config) if endpoints.has_slots else [])
        ]

    def add(
        name: str,
        model: str = "accelerator",
        bdf: str | None = None,
        reserved: Sequence[Mapping[str, Any]] = (),
        options: object = None,
    ) -> dict[str, Any]:
        given = {"name": name, "model": model, "reserved": reserved, "options": {} if options is None else options}
        made = endpoints.add(given if bdf is None else {**given, "bdf": bdf})
        path = str(endpoints.socket_of(name))
        alone = MODELS[made.model].in_linux and endpoints.unit_of(made).engine.has_driver
        until = "attached" if alone else "enumerated"
        return {"endpoint": name, "bdf": made.bdf, "port": port_of(made.bdf), "path": path, "until": until}

    def remove(name: str) -> dict[str, Any]:
        endpoints.remove(name)
        return {}

    return {
        "query-endpoints": Command(query),
        "query-groups": Command(groups),
        "query-slots": Command(slots),
        "endpoint-add": Command(add),
        "endpoint-remove": Command(remove),
    }


def describe(endpoints: Endpoints, config: EndpointConfig) -> dict[str, Any]:
    """One endpoint as the schema's `Endpoint`."""
    unit, number = endpoints.unit_of(config), parse_bdf(config.bdf)
    facts = unit.engine.describe_endpoint(number)
    regions: Sequence[ReservedRegion] = facts["reserved"]
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
        "reserved": [_region(region) for region in regions],
        "probe": properties.hex(),
        "dma-refused": [{"name": name, "count": count} for name, count in unit.doors[config.name].refused.items()],
        "state": unit.endpoints[config.name].describe(),
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
        regions.update(endpoints.unit_of(config).engine.describe_endpoint(parse_bdf(config.bdf))["reserved"])
    return sorted(regions, key=lambda region: region.start)


def _region(region: ReservedRegion) -> dict[str, Any]:
    return {"start": region.start, "end": region.stop - 1, "kind": "msi" if region.is_msi else "reserved"}


def _behind(endpoints: Endpoints, unit: str | None) -> list[EndpointConfig]:
    return [config for config in endpoints.config.endpoints if unit in (None, config.unit)]


def _check_unit(endpoints: Endpoints, unit: str | None) -> None:
    known = [given.name for given in endpoints.config.units]
    if unit is not None and unit not in known:
        raise ConfigError("unit", f"there is no unit {unit!r}", f"there are: {', '.join(known)}")
