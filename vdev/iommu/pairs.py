"""Pairs of an endpoint and a PASID in the tables of a unit: attached, detached, and their accesses translated.

A pair is attached to a domain, or mirrors: it has none of its own and reaches what its endpoint's RID reaches by MAP,
which is looked up at every access, so there is nothing to keep in step (P25). The set's books are kept by whoever
calls these (pasid_unit.py), as is what the specification has checked first.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdev.errors import RequestError, TranslationFault
from vdev.iommu.domains import Domain, DomainTable, Endpoint, Pair, Piece
from vdev.iommu.intervals import IntervalMap
from vdev.iommu.pasid_held import Held
from vdev.iommu.settings import ADDRESS_SPACE, UnitSettings
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

PAIR_REFUSALS = {
    "pasid-not-attached": "the pair is not attached",
    "pasid-free-pending": "the PASID was freed, and waits for its last use to end",
    "pasid-rid-unattached": "the pair follows its RID, which is attached to nothing",
    "pasid-rid-bypasses": "the pair follows its RID, which bypasses, and the policy does not let PASIDs bypass",
}


def all_pairs(table: DomainTable) -> Iterator[Pair]:
    """Those of all endpoints, by endpoint and PASID."""
    for _, endpoint in sorted(table.endpoints.items()):
        for _, pair in sorted(endpoint.pairs.items()):
            yield pair


def choose_domain(
    table: DomainTable, settings: UnitSettings, endpoint: Endpoint, pasid: int, wanted: tuple[int, bool] | None
) -> Domain | None:
    """The domain, with its BYPASS flag, that a pair may be attached to; None for one that mirrors. RequestError with
    the answer (P19, P20, P22), and nothing changed."""
    pair = endpoint.pairs.get(pasid)
    domain: Domain | None = None
    if wanted is not None:
        domain_id, bypass = wanted
        table.check_domain(domain_id)
        living = table.domains.get(domain_id)
        # P20: identity for a PASID exists only where isolation is off
        if settings.isolation != "off" and (bypass or (living is not None and living.bypass)):
            raise RequestError(wire.S_UNSUPP, "no PASID bypasses unless isolation is off")
        domain = table.admit(domain_id, endpoint, None if pair is None else pair.domain, bypass=bypass)
    # P22: a pair more than the unit keeps
    if pair is None and table.npairs >= settings.limits.max_pairs:
        raise RequestError(wire.S_NOMEM, "too many attached PASIDs")
    return domain


def put_pair(table: DomainTable, endpoint: Endpoint, held: Held, domain: Domain | None) -> None:
    """Attach to what `choose_domain` chose; a pair that is attached elsewhere leaves it."""
    present = endpoint.pairs.get(held.pasid)
    if present is not None:
        if present.domain is domain:
            return
        take_pair(table, present)
    pair = Pair(endpoint, held.pasid, held, domain)
    endpoint.pairs[held.pasid] = pair
    table.npairs += 1
    if domain is not None:
        table.domains[domain.id] = domain
        domain.pairs.setdefault(endpoint.id, {})[held.pasid] = pair
        domain.refresh_holes()


def take_pair(table: DomainTable, pair: Pair) -> None:
    """Detach it; P24: its domain ends with the last endpoint or pair."""
    endpoint, domain = pair.endpoint, pair.domain
    del endpoint.pairs[pair.pasid]
    table.npairs -= 1
    if domain is not None:
        of_endpoint = domain.pairs[endpoint.id]
        del of_endpoint[pair.pasid]
        if not of_endpoint:
            del domain.pairs[endpoint.id]
        table.was_left(domain)


def reached_domain(
    table: DomainTable, settings: UnitSettings, endpoint: Endpoint, pasid: int, iova: int
) -> Domain | None:
    """What decides about accesses of a pair now; None, or a bypass domain, is identity. TranslationFault (P42)."""
    pair = endpoint.pairs.get(pasid)
    if pair is None:
        raise TranslationFault(pasid_wire.FAULT_R_PASID, "pasid-not-attached", iova)
    # P38: a freed PASID is of no use, attached or not
    if pair.held.freed:
        raise TranslationFault(pasid_wire.FAULT_R_PASID, "pasid-free-pending", iova)
    if pair.domain is not None:
        return pair.domain
    domain = endpoint.domain
    # P25: of a RID that bypasses there is nothing to reach, unless isolation is off
    if domain is None and not table.bypass:
        raise TranslationFault(pasid_wire.FAULT_R_PASID, "pasid-rid-unattached", iova)
    if (domain is None or domain.bypass) and settings.isolation != "off":
        raise TranslationFault(pasid_wire.FAULT_R_PASID, "pasid-rid-bypasses", iova)
    return domain


def translate_pair(
    table: DomainTable, settings: UnitSettings, endpoint_id: int, span: Piece, access: int, tag: Tag
) -> tuple[list[Piece], int | None]:
    """The (gpa, nbytes) pieces of an access to `span`, (iova, nbytes), with a PASID, and the domain they are from
    (None: identity of an unattached RID). TranslationFault unless all of it is allowed."""
    iova, nbytes = span
    endpoint = table.endpoints.get(endpoint_id)
    if endpoint is None:
        raise TranslationFault(wire.FAULT_R_UNKNOWN, "unknown-endpoint", iova, f"endpoint {endpoint_id:#x}")
    domain = reached_domain(table, settings, endpoint, tag.pasid, iova)
    if nbytes <= 0:
        return [], None
    if iova < 0 or iova + nbytes > ADDRESS_SPACE:
        raise TranslationFault(wire.FAULT_R_MAPPING, "outside-address-space", iova)
    mappings: IntervalMap | None = None
    if domain is not None and not domain.bypass:
        mappings = domain.mappings
        if tag.execute:
            # P44: MAP has no right for it; what its first byte would be refused for anyway comes first
            table.walk(endpoint.closed, mappings, (iova, iova + 1), access)
            raise TranslationFault(wire.FAULT_R_MAPPING, "no-execute", iova)
        hit = mappings.find(iova)
        if hit is not None and iova + nbytes <= hit[1] and not access & ~hit[3]:
            return [(hit[2] + iova - hit[0], nbytes)], domain.id
    pieces = table.walk(endpoint.closed, mappings, (iova, iova + nbytes), access)
    return pieces, None if domain is None else domain.id
