"""A unit's state as plain data: for queries, and versioned and back. Counters are not state and stay out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vdev.errors import ConfigError, RequestError, VdevError
from vdev.iommu.domains import DomainTable
from vdev.iommu.pasid_held import Held
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.pasid_snapshot import PasidsLoaded, dump_domain_pairs, dump_pasids
from vdev.iommu.settings import EndpointSettings, UnitSettings
from vdev.wire import viommu as wire
from vdev.wire.viommu_pasid import FAULT_PASID_NBYTES

VERSION = 1
VERSION_WITH_PASIDS = 2  # the same, and what pasid_snapshot.py says
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
            **dump_domain_pairs(domain),
        }
        for _, domain in sorted(table.domains.items())
    ]


@dataclass(frozen=True, slots=True)
class UnitState:
    """What `load_unit` makes of a saved state: the table with its `bypass`, the accepted features, fault records oldest
    first, and what was found out about PASIDs."""

    table: DomainTable
    features: int
    pending_faults: list[bytes]
    pasids: PasidsLoaded


def dump_unit(table: DomainTable, features: int, faults: Iterable[bytes], held: list[Held] | None) -> dict[str, Any]:
    """As versioned plain data; `held` are the PASIDs allocated through the unit."""
    more = dump_pasids(table, held or [])
    has_pasids = bool(more) or any(domain.pairs for domain in table.domains.values())
    return {
        "version": VERSION_WITH_PASIDS if has_pasids else VERSION,
        "bypass": table.bypass,
        "features": features,
        "domains": dump_domains(table),
        "pending_faults": [record.hex() for record in faults],
        **more,
    }


def load_unit(
    saved: dict[str, Any], settings: UnitSettings, endpoints: Iterable[EndpointSettings], pasids: PasidSet | None
) -> UnitState:
    """The reverse, for a unit with these settings and endpoints; SnapshotError if it does not fit, the set included."""
    if saved.get("version") not in (VERSION, VERSION_WITH_PASIDS):
        raise SnapshotError(f"version {saved.get('version')!r}, this is {VERSION} or {VERSION_WITH_PASIDS}")
    try:
        bypass, features = bool(saved["bypass"]), int(saved["features"])
        domains, faults = saved["domains"], saved["pending_faults"]
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"damaged: {error!r}") from error
    if features & ~settings.offered_features or (bypass and not settings.bypass_offered):
        raise SnapshotError("holds features this unit does not offer")
    records = load_faults(faults, settings.limits.max_pending_faults)
    loaded = PasidsLoaded(settings.name, pasids)
    table = DomainTable(settings, endpoints)
    more = saved.get("pasids", {"mirrors": [], "held": []})
    with _checks():
        loaded.load_held(more)
        load_domains(table, domains, settings, loaded)
        loaded.load_pairs(table, settings, more["mirrors"], None)
    table.bypass = bypass
    return UnitState(table, features, records, loaded)


@contextmanager
def _checks() -> Iterator[None]:
    """What a request would be refused for, and what is no state at all, as SnapshotError."""
    try:
        yield
    except RequestError as error:
        raise SnapshotError(f"does not fit this unit: {error}") from error
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise SnapshotError(f"damaged: {error!r}") from error


def load_domains(table: DomainTable, saved: list[dict[str, Any]], settings: UnitSettings, pasids: PasidsLoaded) -> None:
    """Rebuild them in a new table, through the checks every request passes; raises as `_checks` expects."""
    for domain in saved:
        for endpoint in domain["endpoints"]:
            if table.endpoint(endpoint).domain is not None:
                raise SnapshotError(f"endpoint {endpoint:#x} is in two domains")
            table.attach(domain["id"], endpoint, bypass=bool(domain["bypass"]))
        pasids.load_domain_pairs(table, settings, domain)
        for start, stop, gpa, flags in domain["mappings"]:
            if flags & ~MAP_FLAGS:
                raise SnapshotError(f"mapping flags {flags:#x} are not all known")
            table.map(domain["id"], start, stop, gpa, flags)


def load_faults(saved: list[str], limit: int) -> list[bytes]:
    """Fault records from their hex form, the oldest `limit` of them."""
    try:
        records = [bytes.fromhex(text) for text in saved]
    except (TypeError, ValueError) as error:
        raise SnapshotError(f"damaged fault record: {error!r}") from error
    if any(len(record) not in (wire.FAULT_NBYTES, FAULT_PASID_NBYTES) for record in records):
        raise SnapshotError("damaged fault record: neither 24 nor 48 bytes")
    return records[:limit]
