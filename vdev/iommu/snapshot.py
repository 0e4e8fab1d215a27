"""A unit's state as plain data: for queries, and versioned and back. Counters are not state and stay out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vdev.errors import ConfigError, RequestError, VdevError
from vdev.iommu.domains import DomainTable
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.wire import viommu as wire

VERSION = 1
MAP_FLAGS = wire.MAP_F_READ | wire.MAP_F_WRITE | wire.MAP_F_MMIO


class SnapshotError(VdevError):
    """A snapshot is of another version, damaged, or does not fit this unit; nothing was restored."""


def describe_table(table: DomainTable) -> dict[str, Any]:
    """What a query shows of it: no mappings."""
    return {
        "bypass": table.bypass,
        "domains": [
            {"id": d.id, "bypass": d.bypass, "endpoints": sorted(d.endpoints), "mappings": len(d.mappings)}
            for d in table.domains.values()
        ],
        "mappings": table.nmappings,
        "endpoints": [
            {"id": e.id, "name": e.name, "domain": e.domain_id, "mappings": e.nmappings}
            for e in table.endpoints.values()
        ],
    }


def dump_domains(table: DomainTable) -> list[dict[str, Any]]:
    """Domains by id; mappings as [start, stop, gpa, flags] by rising start, half-open (stop may be 1 << 64)."""
    return [
        {
            "id": domain.id,
            "bypass": domain.bypass,
            "endpoints": sorted(domain.endpoints),
            "mappings": [list(item) for item in domain.mappings],
        }
        for _, domain in sorted(table.domains.items())
    ]


@dataclass(frozen=True, slots=True)
class UnitState:
    """What `dump_unit` writes down: the table with its `bypass`, the accepted features, fault records oldest first."""

    table: DomainTable
    features: int
    pending_faults: list[bytes]


def dump_unit(state: UnitState) -> dict[str, Any]:
    """As versioned plain data."""
    return {
        "version": VERSION,
        "bypass": state.table.bypass,
        "features": state.features,
        "domains": dump_domains(state.table),
        "pending_faults": [record.hex() for record in state.pending_faults],
    }


def load_unit(saved: dict[str, Any], settings: UnitSettings, endpoints: Iterable[EndpointSettings]) -> UnitState:
    """The reverse, for a unit with these settings and endpoints; SnapshotError if it does not fit."""
    if saved.get("version") != VERSION:
        raise SnapshotError(f"version {saved.get('version')!r}, this is {VERSION}")
    try:
        bypass, features = bool(saved["bypass"]), int(saved["features"])
        domains, faults = saved["domains"], saved["pending_faults"]
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"damaged: {error!r}") from error
    if features & ~settings.offered_features or (bypass and not settings.bypass_offered):
        raise SnapshotError("holds features this unit does not offer")
    records = load_faults(faults, settings.limits.max_pending_faults)
    table = load_domains(domains, settings, endpoints)
    table.bypass = bypass
    return UnitState(table, features, records)


def load_domains(
    saved: list[dict[str, Any]], settings: UnitSettings, endpoints: Iterable[EndpointSettings]
) -> DomainTable:
    """A new table rebuilt through the checks every request passes; SnapshotError if one refuses."""
    table = DomainTable(settings, endpoints)
    try:
        for domain in saved:
            for endpoint in domain["endpoints"]:
                if table.endpoint(endpoint).domain is not None:
                    raise SnapshotError(f"endpoint {endpoint:#x} is in two domains")
                table.attach(domain["id"], endpoint, bypass=bool(domain["bypass"]))
            for start, stop, gpa, flags in domain["mappings"]:
                if flags & ~MAP_FLAGS:
                    raise SnapshotError(f"mapping flags {flags:#x} are not all known")
                table.map(domain["id"], start, stop, gpa, flags)
    except RequestError as error:
        raise SnapshotError(f"does not fit this unit: {error}") from error
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise SnapshotError(f"damaged: {error!r}") from error
    return table


def load_faults(saved: list[str], limit: int) -> list[bytes]:
    """Fault records from their hex form, the oldest `limit` of them."""
    try:
        records = [bytes.fromhex(text) for text in saved]
    except (TypeError, ValueError) as error:
        raise SnapshotError(f"damaged fault record: {error!r}") from error
    if any(len(record) != wire.FAULT_NBYTES for record in records):
        raise SnapshotError("damaged fault record: not 24 bytes")
    return records[:limit]
