"""Why an access is translated as it is: the decisions of `DomainTable.translate`, and with a PASID of `translate_pair`,
one by one, for people.

A second account of the same rules, so that the first can stay fast. A property test holds them to each other: pieces
and refusals are the same. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vdev.errors import ConfigError, TranslationFault
from vdev.iommu.domains import READ, WRITE, DomainTable, Endpoint
from vdev.iommu.intervals import Interval, IntervalMap
from vdev.iommu.pairs import PAIR_REFUSALS, reached_domain
from vdev.iommu.settings import ADDRESS_SPACE, ReservedRegion, UnitSettings
from vdev.iommu.tag import Tag
from vdev.wire import viommu as wire

MAX_EXPLAINED = 256  # mappings and regions one access may cross: as many as one slice of DMA takes

Piece = tuple[int, int, int]  # iova, gpa, nbytes


@dataclass(frozen=True, slots=True)
class Step:
    """One decision: whether the access goes on after it, and what was found."""

    step: str
    ok: bool
    text: str


@dataclass(slots=True)
class Explanation:
    """`pieces` lead as far as the access got. `fault` is what refused it, never raised."""

    steps: list[Step] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    fault: TranslationFault | None = None

    def add(self, step: str, text: str) -> None:
        """A decision that lets the access go on."""
        self.steps.append(Step(step, True, text))

    def refuse(self, step: str, text: str, reason: int, word: str, iova: int) -> None:
        """The decision that ends it; `reason` and `word` are those of the TranslationFault."""
        self.steps.append(Step(step, False, text))
        self.fault = TranslationFault(reason, word, iova, text)


@dataclass(frozen=True, slots=True)
class Asked:
    """An access: [iova, iova + nbytes), READ=1 or WRITE=2, `nbytes` positive; with a PASID, `tag`."""

    iova: int
    nbytes: int
    access: int
    tag: Tag | None = None


def explain(table: DomainTable, settings: UnitSettings, endpoint_id: int, asked: Asked) -> Explanation:
    """How `table` translates one access.

    ConfigError where it crosses more than MAX_EXPLAINED mappings and regions: no device does that in one go.
    """
    told, iova, nbytes, tag = Explanation(), asked.iova, asked.nbytes, asked.tag
    endpoint = table.endpoints.get(endpoint_id)
    if endpoint is None:
        text = f"the unit has no endpoint {endpoint_id:#x}"
        told.refuse("domain", text, wire.FAULT_R_UNKNOWN, "unknown-endpoint", iova)
        return told
    if tag is None:
        mappings = _explain_domain(told, table, endpoint, iova)
    else:
        mappings = _explain_pair(told, table, settings, endpoint, asked)
    if told.fault is not None:
        return told
    if iova + nbytes > ADDRESS_SPACE:
        text = f"[{iova:#x}, +{nbytes:#x}) leaves the 64-bit address space"
        told.refuse("mapping", text, wire.FAULT_R_MAPPING, "outside-address-space", iova)
        return told
    regions = endpoint.reserved if tag is None else endpoint.closed
    needs_execute = tag is not None and tag.execute
    _Walk(told, settings, endpoint, regions, mappings, asked.access, needs_execute).run(iova, iova + nbytes)
    return told


def _explain_pair(
    told: Explanation, table: DomainTable, settings: UnitSettings, endpoint: Endpoint, asked: Asked
) -> IntervalMap | None:
    """As `_explain_domain`, of an access with a PASID."""
    pasid = asked.tag.pasid if asked.tag is not None else 0
    name, pair = f"PASID {pasid:#x} of {endpoint.name}", endpoint.pairs.get(pasid)
    try:
        domain = reached_domain(table, settings, endpoint, pasid, asked.iova)
    except TranslationFault as error:
        told.refuse("pasid", f"{name}: {PAIR_REFUSALS[error.reason]}", error.fault_reason, error.reason, asked.iova)
        return None
    told.add("pasid", f"{name} follows its RID" if pair is not None and pair.domain is None else f"{name} is attached")
    if domain is None:
        told.add("bypass", "bypass is 1, and isolation is off: the pair passes untranslated as its RID does")
        return None
    if domain.bypass:
        told.add("bypass", f"domain {domain.id} was made with the BYPASS flag: accesses pass untranslated")
        return None
    told.add("domain", f"it reaches domain {domain.id}, which has {len(domain.mappings)} mappings")
    return domain.mappings


def _explain_domain(told: Explanation, table: DomainTable, endpoint: Endpoint, iova: int) -> IntervalMap | None:
    """The mappings that decide; None where the access is not translated, or refused."""
    domain = endpoint.domain
    if domain is None:
        told.add("domain", f"{endpoint.name} is attached to no domain: the bypass byte decides")
        if table.bypass:
            told.add("bypass", "bypass is 1: accesses of endpoints without a domain pass untranslated")
        else:
            text = "bypass is 0: endpoints without a domain reach nothing"
            told.refuse("bypass", text, wire.FAULT_R_DOMAIN, "no-domain", iova)
        return None
    if domain.bypass:
        told.add("domain", f"{endpoint.name} is attached to domain {domain.id}")
        told.add("bypass", f"domain {domain.id} was made with the BYPASS flag: accesses pass untranslated")
        return None
    told.add("domain", f"{endpoint.name} is attached to domain {domain.id}, which has {len(domain.mappings)} mappings")
    return domain.mappings


@dataclass(slots=True)
class _Walk:
    """One access on its way through regions and mappings; `mappings` None is identity."""

    told: Explanation
    settings: UnitSettings
    endpoint: Endpoint
    regions: tuple[ReservedRegion, ...]
    mappings: IntervalMap | None
    access: int
    needs_execute: bool = False

    def run(self, start: int, stop: int) -> None:
        """Cut [start, stop) at the edges of regions and mappings, until something refuses a piece."""
        cursor = start
        regions = self._regions(start, stop)
        region = next(regions, None)
        while cursor < stop and self.told.fault is None:
            if len(self.told.pieces) >= MAX_EXPLAINED:
                problem = f"the access crosses more than {MAX_EXPLAINED} mappings and regions"
                raise ConfigError("nbytes", problem, "ask for a shorter one")
            if region is not None and region.start <= cursor:
                limit = min(stop, region.stop)
                self._in_region(region, cursor, limit)
                region = next(regions, None)
            else:
                limit = stop if region is None else min(stop, region.start)
                limit = self._outside_regions(cursor, limit)
            cursor = limit

    def _regions(self, start: int, stop: int) -> Iterator[ReservedRegion]:
        """Those the access touches, by rising address."""
        return (region for region in self.regions if region.start < stop and start < region.stop)

    def _in_region(self, region: ReservedRegion, cursor: int, limit: int) -> None:
        """D56: only writes to an MSI doorbell pass, untranslated."""
        kind = "MSI" if region.is_msi else "RESERVED"
        where = f"{cursor:#x} is in the {kind} region {region.start:#x}..{region.stop - 1:#x} of {self.endpoint.name}"
        if region.is_msi and self.access == WRITE:
            self.told.add("region", f"{where}: writes pass untranslated")
            self.told.pieces.append((cursor, cursor, limit - cursor))
        else:
            why = "only writes pass" if region.is_msi else "nothing passes"
            self.told.refuse("region", f"{where}: {why}", wire.FAULT_R_MAPPING, "reserved", cursor)

    def _outside_regions(self, cursor: int, limit: int) -> int:
        """Take one mapping; where the piece ends."""
        if self.mappings is None:
            return self._untranslated(cursor, limit)
        hit = self.mappings.find(cursor)
        if hit is None:
            self._not_mapped(cursor)
            return limit
        limit = min(limit, hit[1])
        self._permission(hit, cursor)
        if self.told.fault is None:
            self.told.pieces.append((cursor, hit[2] + cursor - hit[0], limit - cursor))
        return limit

    def _untranslated(self, cursor: int, limit: int) -> int:
        """With force_aperture what bypasses ends where the input range does; where the piece ends."""
        given = self.settings
        if not given.force_aperture:
            self.told.pieces.append((cursor, cursor, limit - cursor))
            return limit
        if not given.input_start <= cursor < given.input_stop:
            text = f"{self._outside(cursor)}, and force_aperture holds accesses that bypass to it"
            self.told.refuse("aperture", text, wire.FAULT_R_MAPPING, "outside-input-range", cursor)
            return limit
        self.told.add("aperture", f"{cursor:#x} is inside the input range")
        limit = min(limit, given.input_stop)
        self.told.pieces.append((cursor, cursor, limit - cursor))
        return limit

    def _outside(self, iova: int) -> str:
        return f"{iova:#x} is outside the input range {self.settings.input_start:#x}..{self.settings.input_stop - 1:#x}"

    def _not_mapped(self, iova: int) -> None:
        given = self.settings
        if given.input_start <= iova < given.input_stop:
            text, word = f"no mapping contains {iova:#x}", "not-mapped"
        else:
            text, word = self._outside(iova), "outside-input-range"
        self.told.refuse("mapping", text, wire.FAULT_R_MAPPING, word, iova)

    def _permission(self, hit: Interval, iova: int) -> None:
        """D35, D36: each direction needs its own flag."""
        start, stop, gpa, flags = hit
        allowed = " and ".join(word for bit, word in ((READ, "READ"), (WRITE, "WRITE")) if flags & bit) or "nothing"
        self.told.add("mapping", f"{iova:#x} is in the mapping {start:#x}..{stop - 1:#x} -> GPA {gpa:#x}")
        if self.access & WRITE and not flags & WRITE:
            self.told.refuse("permission", f"it allows {allowed}, not WRITE", wire.FAULT_R_MAPPING, "no-write", iova)
        elif self.access & READ and not flags & READ:
            self.told.refuse("permission", f"it allows {allowed}, not READ", wire.FAULT_R_MAPPING, "no-read", iova)
        elif self.needs_execute:
            self.told.refuse("permission", "MAP allows no execution", wire.FAULT_R_MAPPING, "no-execute", iova)
        else:
            self.told.add("permission", f"it allows {allowed}")
