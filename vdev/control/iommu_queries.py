"""The control socket's queries about units, domains, mappings, faults and requests, and `translate`. Nothing changes.

Each is bounded: by the number of endpoints (an endpoint is in one domain at most, and a domain without one ends), or by
its limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec

from vdev.control.iommu_units import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    Unit,
    Units,
    check_number,
    endpoint_name,
    flag_names,
    the_unit,
    these_units,
)
from vdev.control.server import Command
from vdev.errors import ConfigError
from vdev.functions.dma import READ, WRITE
from vdev.functions.explain import Access, explain_access
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

MAX_ACCESS_NBYTES = 1 << 20
_ACCESS = {"read": READ, "write": WRITE}
_FAULT_FLAGS = (
    (wire.FAULT_F_READ, "read"), (wire.FAULT_F_WRITE, "write"), (pasid_wire.FAULT_F_EXEC, "execute"),
    (pasid_wire.FAULT_F_PRIVILEGED, "privileged"),
)  # fmt: skip
_REASON_NAMES = {**wire.FAULT_REASON_NAMES, **pasid_wire.FAULT_REASON_NAMES}

Reply = dict[str, Any]


def iommu_queries(units: Units) -> dict[str, Command]:
    """The table; `units` may change later."""
    queries = IommuQueries(units)
    return {
        "query-units": Command(queries.units),
        "query-domains": Command(queries.domains),
        "query-mappings": Command(queries.mappings),
        "query-faults": Command(queries.faults),
        "query-requests": Command(queries.requests),
        "translate": Command(queries.translate),
    }


class Mapped(msgspec.Struct, gc=False, rename="kebab"):
    """The schema's Mapping. Unlike dicts these never start the garbage collector, which looks at all mappings there
    are: tens of milliseconds at a million."""

    virt_start: int
    virt_end: int
    phys_start: int
    flags: list[str]


class IommuQueries:
    """Every method answers one command of the schema; ConfigError for a name or number that makes no sense."""

    def __init__(self, units: Units) -> None:
        self._units = units

    def units(self, unit: str | None = None) -> list[Reply]:
        """query-units."""
        return [_unit_reply(found) for found in these_units(self._units, unit)]

    def domains(self, unit: str | None = None, from_: int = 0, limit: int = DEFAULT_LIMIT) -> Reply:
        """query-domains."""
        check_number("limit", limit, 1, MAX_LIMIT)
        table = the_unit(self._units, unit).engine.table
        wanted = sorted(number for number in table.domains if number >= from_)
        shown = [table.domains[number] for number in wanted[:limit]]
        page = [
            {
                "id": domain.id,
                "bypass": domain.bypass,
                "endpoints": [domain.endpoints[number].name for number in sorted(domain.endpoints)],
                "pairs": domain.npairs,
                "mappings": len(domain.mappings),
            }
            for domain in shown
        ]
        return {"domains": page, **_next(wanted[limit:])}

    def mappings(self, domain: int, unit: str | None = None, from_: int = 0, limit: int = DEFAULT_LIMIT) -> Reply:
        """query-mappings."""
        check_number("limit", limit, 1, MAX_LIMIT)
        engine = the_unit(self._units, unit).engine
        found = engine.table.domains.get(domain)
        if found is None:
            name = engine.settings.name
            raise ConfigError("domain", f"{name} has no domain {domain}", "query-domains lists them")
        items = found.mappings.items_from(from_, limit + 1)
        page = [Mapped(start, stop - 1, gpa, flag_names(flags)) for start, stop, gpa, flags in items[:limit]]
        return {"mappings": page, "total": len(found.mappings), **_next([item[0] for item in items[limit:]])}

    def faults(self, unit: str | None = None, limit: int = DEFAULT_LIMIT) -> list[Reply]:
        """query-faults."""
        check_number("limit", limit, 1, MAX_LIMIT)
        chosen = these_units(self._units, unit)
        return [
            self._fault(found.engine.settings.name, record)
            for found in chosen
            for record in islice(found.engine.pending_faults, limit)
        ]

    def _fault(self, unit: str, record: bytes) -> Reply:
        fault = wire.Fault.parse(record)
        name = endpoint_name(self._units, unit, fault.endpoint)
        return {
            "unit": unit,
            "reason": reason_word(fault.reason),
            "id": fault.endpoint,
            **({"endpoint": name} if name is not None else {}),
            "flags": [word for bit, word in _FAULT_FLAGS if fault.flags & bit],
            # of an access with a PASID it is where the specification has reserved bytes
            **({"pasid": fault.reserved1} if fault.flags & pasid_wire.FAULT_F_PASID else {}),
            "address": fault.address,
        }

    def requests(self, unit: str | None = None) -> list[Reply]:
        """query-requests."""
        replies = []
        for found in these_units(self._units, unit):
            waiting, held = found.device.unanswered()
            reply: Reply = {"unit": found.engine.settings.name, "held": held}
            replies.append(reply if waiting is None else {**reply, "waiting": waiting})
        return replies

    def translate(
        self, endpoint: str, iova: int, nbytes: int = 1, access: str = "read", pasid: int | None = None,
        execute: bool = False, privileged: bool = False,
    ) -> Reply:  # fmt: skip
        """translate."""
        check_number("nbytes", nbytes, 1, MAX_ACCESS_NBYTES)
        tag = _tag(pasid, access, execute=execute, privileged=privileged)
        unit = self._unit_of(endpoint)
        holders = ", ".join(sorted(unit.freezer.holders))
        asked = Access(endpoint, iova, nbytes, _ACCESS[access], holders, tag)
        told = explain_access(unit.engine, unit.doors[endpoint], asked)
        return {
            "endpoint": endpoint,
            "allowed": not told.reason,
            **({"reason": told.reason} if told.reason else {}),
            **({"fault": reason_word(told.fault)} if told.fault is not None else {}),
            "steps": [{"step": step.step, "ok": step.ok, "text": step.text} for step in told.steps],
            "pieces": [
                {"iova": piece.iova, "gpa": piece.gpa, "nbytes": piece.nbytes, "memory": piece.memory}
                for piece in told.pieces
            ],
        }

    def _unit_of(self, endpoint: str) -> Unit:
        for unit in self._units.values():
            if endpoint in unit.doors:
                return unit
        known = ", ".join(sorted(name for unit in self._units.values() for name in unit.doors))
        raise ConfigError("endpoint", f"there is no endpoint '{endpoint}'", f"known: {known}")


def reason_word(reason: int) -> str:
    """A fault record's reason in the schema's words."""
    return _REASON_NAMES[reason].lower().replace("_", "-")


def _tag(pasid: int | None, access: str, *, execute: bool, privileged: bool) -> Tag | None:
    if pasid is None:
        for key, given in (("execute", execute), ("privileged", privileged)):
            if given:
                raise ConfigError(key, "only an access with a PASID can request it", "give pasid, or leave it out")
        return None
    check_number("pasid", pasid, 1, pasid_wire.PASID_LAST)
    if execute and access != "read":
        raise ConfigError("execute", "an access that requests execution reads", "leave access out")
    return Tag(pasid, execute, privileged)


def _next(rest: list[int]) -> Mapping[str, int]:
    """Where the next page begins, if there is one."""
    return {"next": rest[0]} if rest else {}


def _counts(counts: Mapping[str, int]) -> list[Reply]:
    return [{"name": name, "count": count} for name, count in counts.items()]


def _unit_reply(unit: Unit) -> Reply:
    engine, device = unit.engine, unit.device
    given, state = engine.settings, engine.describe()
    counters = state["counters"]
    return {
        "unit": given.name,
        "bdf": unit.config.bdf,
        "attach": unit.config.attach,
        "mode": given.mode,
        "granule": given.granule,
        "input-start": given.input_start,
        "input-end": given.input_stop - 1,
        "domain-start": given.domain_start,
        "domain-end": given.domain_stop - 1,
        "isolation": given.isolation,
        "bypass": engine.bypass,
        "bypass-offered": given.bypass_offered,
        "force-aperture": given.force_aperture,
        "revalidate": given.revalidate,
        "features-offered": engine.offered_features,
        "features-accepted": state["features"]["accepted"],
        "domains": len(state["domains"]),
        "mappings": state["mappings"],
        "endpoints": len(state["endpoints"]),
        "pending-faults": state["pending_faults"],
        **({"pasids": {"unit": given.name, **state["pasids"]}} if "pasids" in state else {}),
        "counters": {
            "requests": _counts(counters["requests"]),
            "refused": _counts(counters["refused"]),
            "faults": _counts(counters["faults"]),
            "faults-dropped": counters["faults_dropped"] + device.dropped_faults,
            "kicks": device.kicks,
            "held-replies": device.held_replies,
            "ring-errors": device.ring_errors,
        },
    }
