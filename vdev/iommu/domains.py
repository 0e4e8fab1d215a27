"""Domains, the endpoints attached to them, their mappings, and the translation of one access.

All ranges are half-open. Every method validates first and commits after: a refused request (RequestError carries the
status of its tail) leaves no trace. Choices the specification leaves open are listed in __init__.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from vdev.errors import ConfigError, RequestError, TranslationFault
from vdev.iommu.intervals import Interval, IntervalMap, Rubbish
from vdev.iommu.pasid_held import Held
from vdev.iommu.settings import ADDRESS_SPACE, EndpointSettings, PasidSettings, ReservedRegion, UnitSettings
from vdev.wire import viommu as wire

READ = wire.MAP_F_READ
WRITE = wire.MAP_F_WRITE

Piece = tuple[int, int]  # gpa, nbytes

SWEEP_BLOCKS = 64  # what one `sweep` frees: about 2 ms


@dataclass(slots=True)
class Domain:
    """One address space. `holes` are the regions reserved for any of its endpoints: nothing is mapped there. `pairs`
    by endpoint and PASID."""

    id: int
    bypass: bool
    endpoints: dict[int, Endpoint] = field(default_factory=dict)
    pairs: dict[int, dict[int, Pair]] = field(default_factory=dict)  # no empty ones
    mappings: IntervalMap = field(default_factory=IntervalMap)
    holes: tuple[Piece, ...] = ()  # (start, stop), distinct

    def refresh_holes(self) -> None:
        """Recompute `holes` after an endpoint, or one's first or last pair, came or went."""
        regions = {(region.start, region.stop) for ep in self.endpoints.values() for region in ep.reserved}
        for pairs in self.pairs.values():
            pair = next(iter(pairs.values()))
            regions |= {(region.start, region.stop) for region in pair.endpoint.reserved}
        self.holes = tuple(sorted(regions))

    @property
    def npairs(self) -> int:
        """How many are attached to it."""
        return sum(map(len, self.pairs.values()))


@dataclass(slots=True, eq=False)
class Pair:
    """An endpoint and a PASID, attached: to `domain`, or to whatever the endpoint's RID is (None). See pairs.py."""

    endpoint: Endpoint
    pasid: int
    held: Held
    domain: Domain | None = None

    @property
    def domain_id(self) -> int | None:
        """None where it mirrors."""
        return None if self.domain is None else self.domain.id


@dataclass(slots=True)
class Endpoint:
    """One endpoint's state; `domain` None is unattached."""

    id: int
    name: str
    reserved: tuple[ReservedRegion, ...]  # by rising start
    pasid: PasidSettings | None = None
    domain: Domain | None = None
    pairs: dict[int, Pair] = field(default_factory=dict)  # by PASID, those that mirror included
    closed: tuple[ReservedRegion, ...] = field(init=False)  # `reserved` for accesses with a PASID

    def __post_init__(self) -> None:
        """P26: none of it lets an access with a PASID pass: messages carry none."""
        self.closed = tuple(replace(region, is_msi=False) for region in self.reserved)

    @property
    def domain_id(self) -> int | None:
        """The domain it is attached to."""
        return None if self.domain is None else self.domain.id

    @property
    def nmappings(self) -> int:
        """How many its domain has."""
        return 0 if self.domain is None else len(self.domain.mappings)

    def describe(self) -> dict[str, Any]:
        """State for queries."""
        return {"domain": self.domain_id, "mappings": self.nmappings, "reserved": self.reserved}


class DomainTable:
    """All domains and endpoints of one unit. `bypass` says whether unattached endpoints bypass."""

    def __init__(self, settings: UnitSettings, endpoints: Iterable[EndpointSettings]) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._misaligned = settings.granule - 1
        self._input_start = settings.input_start
        self._input_stop = settings.input_stop
        # What bypasses reaches this; mappings lie in the input range anyway.
        self._aperture = (self._input_start, self._input_stop) if settings.force_aperture else (0, ADDRESS_SPACE)
        self.bypass = False
        self.nmappings = 0
        self.npairs = 0
        # Removed and not freed yet. Bounded: a block takes hundreds of MAPs to make, and every slice of them sweeps.
        self.rubbish: Rubbish = []
        self.domains: dict[int, Domain] = {}
        self.endpoints: dict[int, Endpoint] = {}
        for given in endpoints:
            self.add(given)

    def add(self, given: EndpointSettings) -> None:
        """An unattached endpoint. ConfigError when its id is taken."""
        if given.id in self.endpoints:
            raise ConfigError(f"endpoint {given.name}", f"id {given.id:#x} is taken by {self.endpoints[given.id].name}")
        reserved = tuple(sorted(given.reserved, key=lambda region: region.start))
        self.endpoints[given.id] = Endpoint(given.id, given.name, reserved, given.pasid)

    def remove(self, endpoint_id: int) -> int | None:
        """Detach and forget; the domain it left, which has ended if it was the last there. KeyError if unknown.

        It has no pairs any more.
        """
        endpoint = self.endpoints.pop(endpoint_id)
        left = endpoint.domain
        if left is None:
            return None
        self._leave(endpoint, left)
        return left.id

    def endpoint_settings(self) -> list[EndpointSettings]:
        """Those there are, as `__init__` takes them."""
        known = self.endpoints.values()
        return [EndpointSettings(endpoint.id, endpoint.name, endpoint.reserved, endpoint.pasid) for endpoint in known]

    def clear(self) -> None:
        """Detach every endpoint, which ends every domain. No pair is attached to one any more."""
        for endpoint in self.endpoints.values():
            endpoint.domain = None
        for domain in self.domains.values():
            domain.mappings.empty_into(self.rubbish)
        self.domains = {}
        self.nmappings = 0

    def sweep(self) -> bool:
        """Free a part of what was removed; whether there is more."""
        del self.rubbish[-SWEEP_BLOCKS:]
        return bool(self.rubbish)

    def attach(self, domain_id: int, endpoint_id: int, *, bypass: bool) -> None:
        """Attach, creating the domain (D24) and leaving the present one (D21) as needed."""
        endpoint = self.endpoint(endpoint_id)
        self.check_domain(domain_id)
        domain = self.admit(domain_id, endpoint, endpoint.domain, bypass=bypass)
        if endpoint.domain is domain:
            return
        if endpoint.domain is not None:
            self._leave(endpoint, endpoint.domain)
        self.domains[domain_id] = domain
        # D19: several endpoints may share a domain
        domain.endpoints[endpoint_id] = endpoint
        domain.refresh_holes()
        endpoint.domain = domain

    def check_domain(self, domain_id: int) -> None:
        """RANGE outside the domain range."""
        if not self._settings.domain_start <= domain_id < self._settings.domain_stop:
            raise RequestError(wire.S_RANGE, f"domain {domain_id} is outside the domain range")

    def admit(self, domain_id: int, endpoint: Endpoint, present: Domain | None, *, bypass: bool) -> Domain:
        """The domain, maybe a new one, that `endpoint` or a pair of it may join from `present`; changes nothing."""
        if bypass and not self._settings.bypass_offered:
            raise RequestError(wire.S_INVAL, "bypass domains are not offered")
        domain = self.domains.get(domain_id)
        if domain is None:
            self._check_room_for_domain(present)
            return Domain(domain_id, bypass)
        # D20: existing domain with inconsistent BYPASS flag
        if domain.bypass != bypass:
            raise RequestError(wire.S_INVAL, f"domain {domain_id} exists with another BYPASS flag")
        if domain is not present:
            # D22: the domain's mappings would hide what is reserved for this endpoint
            for region in endpoint.reserved:
                if domain.mappings.overlaps(region.start, region.stop):
                    problem = f"domain {domain_id} has mappings in reserved {region.start:#x}..{region.stop:#x}"
                    raise RequestError(wire.S_UNSUPP, problem)
        return domain

    def detach(self, domain_id: int, endpoint_id: int) -> int:
        """Detach; returns the id of the domain left, which may differ from `domain_id` (see below)."""
        endpoint = self.endpoint(endpoint_id)
        domain = endpoint.domain
        # Linux 7 detaches from its shared bypass domain by naming domain 0, whatever that domain's id (D27 is a MAY)
        lenient = domain_id == 0 and domain is not None and domain.bypass
        # D27: unknown domain, or the endpoint is not in it
        if domain is None or (domain.id != domain_id and not lenient):
            raise RequestError(wire.S_INVAL, f"endpoint {endpoint_id:#x} is not attached to domain {domain_id}")
        self._leave(endpoint, domain)
        return domain.id

    def map(self, domain_id: int, start: int, stop: int, gpa: int, flags: int) -> None:
        """Map [start, stop) of IOVA to `gpa` on. Whether RAM is there is checked at access, not here."""
        domain = self.domains.get(domain_id)
        # D33: unknown domain; D34: bypass domain
        if domain is None:
            raise RequestError(wire.S_NOENT, f"no domain {domain_id}")
        if domain.bypass:
            raise RequestError(wire.S_INVAL, f"domain {domain_id} bypasses")
        # D30: virt_start, phys_start or virt_end+1 not granule-aligned
        if (start | stop | gpa) & self._misaligned:
            raise RequestError(wire.S_RANGE, f"{start:#x}..{stop:#x} to {gpa:#x} is not aligned to the granule")
        # D37: inside input_range; an empty range and an output beyond 64 bits get the same answer
        if not self._input_start <= start < stop <= self._input_stop or gpa + stop - start > ADDRESS_SPACE:
            raise RequestError(wire.S_RANGE, f"{start:#x}..{stop:#x} to {gpa:#x} is empty or out of range")
        # D38: overlap with a RESV_MEM region
        for hole_start, hole_stop in domain.holes:
            if start < hole_stop and hole_start < stop:
                raise RequestError(wire.S_INVAL, f"{start:#x}..{stop:#x} overlaps reserved {hole_start:#x}")
        mappings = domain.mappings
        full = self.nmappings >= self._limits.max_mappings or len(mappings) >= self._limits.max_mappings_per_domain
        # D31: overlap with a mapping
        if mappings.overlaps(start, stop) if full else not mappings.insert((start, stop, gpa, flags)):
            raise RequestError(wire.S_INVAL, f"{start:#x}..{stop:#x} overlaps a mapping")
        if full:
            raise RequestError(wire.S_NOMEM, "too many mappings")
        self.nmappings += 1

    def unmap(self, domain_id: int, start: int, stop: int) -> None:
        """Remove the mappings inside [start, stop); holes are fine (D43)."""
        domain = self.domains.get(domain_id)
        # D40: unknown domain; D41: bypass domain
        if domain is None:
            raise RequestError(wire.S_NOENT, f"no domain {domain_id}")
        if domain.bypass:
            raise RequestError(wire.S_INVAL, f"domain {domain_id} bypasses")
        if stop <= start:
            raise RequestError(wire.S_RANGE, f"{start:#x}..{stop:#x} is empty")
        removed = domain.mappings.remove(start, stop, self.rubbish)
        # D42: would split a mapping
        if removed is None:
            raise RequestError(wire.S_RANGE, f"{start:#x}..{stop:#x} would split a mapping")
        self.nmappings -= removed

    def endpoint(self, endpoint_id: int) -> Endpoint:
        """The endpoint, or NOENT (D18, D26, D46)."""
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None:
            raise RequestError(wire.S_NOENT, f"no endpoint {endpoint_id:#x}")
        return endpoint

    def domain_of(self, endpoint_id: int, pasid: int = 0) -> Domain | None:
        """The domain that accesses of an endpoint go by, with a PASID or without one (0); None where there is none."""
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None or not pasid:
            return None if endpoint is None else endpoint.domain
        pair = endpoint.pairs.get(pasid)
        return None if pair is None else pair.domain or endpoint.domain

    def translate(self, endpoint_id: int, iova: int, nbytes: int, access: int) -> list[Piece]:
        """The (gpa, nbytes) pieces of one access, in order; raises TranslationFault unless all of it is allowed."""
        if nbytes <= 0:
            return []
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None:
            raise TranslationFault(wire.FAULT_R_UNKNOWN, "unknown-endpoint", iova, f"endpoint {endpoint_id:#x}")
        domain = endpoint.domain
        if domain is not None and not domain.bypass:
            # No mapping overlaps a region reserved for this endpoint (map and attach refuse that), so one hit decides
            hit = domain.mappings.find(iova)
            if hit is not None and iova + nbytes <= hit[1] and not access & ~hit[3]:
                return [(hit[2] + iova - hit[0], nbytes)]
        # D14: unattached, non-bypass endpoints reach nothing, the MSI doorbell included
        elif domain is None and not self.bypass:
            raise TranslationFault(wire.FAULT_R_DOMAIN, "no-domain", iova)
        if iova < 0 or iova + nbytes > ADDRESS_SPACE:
            raise TranslationFault(wire.FAULT_R_MAPPING, "outside-address-space", iova)
        mappings = domain.mappings if domain is not None and not domain.bypass else None
        return self.walk(endpoint.reserved, mappings, (iova, iova + nbytes), access)

    def walk(
        self, reserved: tuple[ReservedRegion, ...], mappings: IntervalMap | None, span: Piece, access: int
    ) -> list[Piece]:
        """Cut `span` at region and mapping edges and check every piece; `mappings` None is identity (bypass)."""
        cursor, stop = span
        regions = [region for region in reserved if region.start < stop and cursor < region.stop]
        pieces: list[Piece] = []
        while cursor < stop:
            region = next((region for region in regions if cursor < region.stop), None)
            limit = stop
            if region is not None and region.start <= cursor:
                # D56: reserved regions affect nobody else; only writes to an MSI doorbell pass, untranslated
                if not region.is_msi or access != WRITE:
                    raise TranslationFault(wire.FAULT_R_MAPPING, "reserved", cursor)
                limit = min(stop, region.stop)
                pieces.append((cursor, limit - cursor))
            else:
                if region is not None:
                    limit = min(stop, region.start)
                if mappings is None:
                    limit = min(limit, self._aperture_end(cursor))
                    pieces.append((cursor, limit - cursor))
                else:
                    hit = self._permitted(mappings, cursor, access)
                    limit = min(limit, hit[1])
                    pieces.append((hit[2] + cursor - hit[0], limit - cursor))
            cursor = limit
        return pieces

    def _aperture_end(self, iova: int) -> int:
        """Where an access that bypasses at `iova` leaves what bypassing accesses may reach."""
        start, stop = self._aperture
        if not start <= iova < stop:
            raise TranslationFault(wire.FAULT_R_MAPPING, "outside-input-range", iova)
        return stop

    def _permitted(self, mappings: IntervalMap, iova: int, access: int) -> Interval:
        """The mapping of `iova`, if there is one that allows `access`."""
        hit = mappings.find(iova)
        if hit is None:
            inside = self._input_start <= iova < self._input_stop
            raise TranslationFault(wire.FAULT_R_MAPPING, "not-mapped" if inside else "outside-input-range", iova)
        # D35: no write without WRITE; D36: no read through a write-only mapping either
        if access & WRITE and not hit[3] & WRITE:
            raise TranslationFault(wire.FAULT_R_MAPPING, "no-write", iova)
        if access & READ and not hit[3] & READ:
            raise TranslationFault(wire.FAULT_R_MAPPING, "no-read", iova)
        return hit

    def _check_room_for_domain(self, present: Domain | None) -> None:
        """NOMEM if one more domain would be too many, once who asks has left `present`."""
        frees_one = present is not None and len(present.endpoints) + present.npairs == 1
        if len(self.domains) - frees_one >= self._limits.max_domains:
            raise RequestError(wire.S_NOMEM, "too many domains")

    def _leave(self, endpoint: Endpoint, domain: Domain) -> None:
        """Take the endpoint out."""
        endpoint.domain = None
        del domain.endpoints[endpoint.id]
        self.was_left(domain)

    def was_left(self, domain: Domain) -> None:
        """An endpoint or a pair is out of `domain`. D29, P24: it ends with the last, and its mappings with it."""
        if domain.endpoints or domain.pairs:
            domain.refresh_holes()
            return
        del self.domains[domain.id]
        self.nmappings -= len(domain.mappings)
        domain.mappings.empty_into(self.rubbish)
