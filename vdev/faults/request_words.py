"""A request as an occurrence: what a rule can match of it. For the points request and invalidation."""

from __future__ import annotations

from vdev.faults.rule import Occurrence
from vdev.iommu.engine import Engine
from vdev.iommu.kinds import Kind
from vdev.wire import viommu as wire
from vdev.wire.record import Record

# Who stands between the engine and its requests, by rank, the lowest next to the engine. Invalidated is what was
# carried out, whatever its driver is told of it.
INVALIDATION, REQUEST = range(2)


def parse(engine: Engine, readable: bytes | memoryview, writable_nbytes: int) -> tuple[Kind, Record] | None:
    """The request as `Engine.handle` would serve it; None for one that fits no type it serves, which is let pass."""
    kind = engine.served.get(readable[0]) if len(readable) >= wire.HEAD_NBYTES else None
    if kind is None or len(readable) < kind.nbytes or writable_nbytes < kind.properties_nbytes + wire.TAIL_NBYTES:
        return None
    return kind, kind.record.parse(readable)


def occurrence(point: str, engine: Engine, kind: Kind, request: Record) -> Occurrence:
    """What there is of `request`. One that names a domain only is of the endpoint the domain has, if it is one."""
    domain = getattr(request, "domain", None)
    met = Occurrence(point, engine.settings.name, kind.name, getattr(request, "endpoint", None), domain)
    met.pasid = getattr(request, "pasid", getattr(request, "first", None))
    if met.endpoint is None and domain is not None:
        met.endpoint = _only_endpoint(engine, domain)
    if isinstance(request, wire.Map | wire.Unmap):
        met.start, met.stop = request.virt_start, request.virt_end + 1
    return met


def _only_endpoint(engine: Engine, number: int) -> int | None:
    domain = engine.table.domains.get(number)
    if domain is None:
        return None
    endpoints = domain.endpoints.keys() | domain.pairs.keys()
    return next(iter(endpoints)) if len(endpoints) == 1 else None
