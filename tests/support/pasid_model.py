"""A brute-force model of the PASIDs of one VM: sets, pairs, domains and accesses, found by looking at everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.iommu_requests import WRITE
from vdev.wire.viommu import S_INVAL, S_NOENT, S_NOMEM, S_OK, S_RANGE, S_UNSUPP
from vdev.wire.viommu_pasid import FAULT_R_PASID

PAGES = 12
MIRRORS = -1  # in place of a domain
MAPPING, DOMAIN = 2, 1
PairKey = tuple[int, int, int]  # unit, endpoint, PASID


@dataclass
class HeldModel:
    unit: int
    by_attach: bool
    freed: bool = False


@dataclass
class DomainModel:
    bypass: bool
    pages: dict[int, tuple[int, int]] = field(default_factory=dict)  # page -> (gpa, flags)


@dataclass
class Flying:
    """An access in flight: whose, with which PASID (0: none), by which domain, which page."""

    unit: int
    endpoint: int
    pasid: int
    domain: int | None
    page: int


class PasidModel:
    """`holes`: the reserved page of each endpoint, if it has one; `widths`: in bits, 0 for no PASIDs."""

    def __init__(
        self, units: int, holes: dict[int, int | None], widths: dict[int, int], *, managed: bool, loose: bool
    ) -> None:
        self.managed, self.loose = managed, loose
        self.holes, self.widths = holes, widths
        self.quota, self.first, self.stop = 4, 1, 64
        self.max_pairs = 5
        self.held: dict[int, HeldModel] = {}
        self.pairs: dict[PairKey, int] = {}
        self.rids: list[dict[int, int | None]] = [dict.fromkeys(holes) for _ in range(units)]
        self.domains: list[dict[int, DomainModel]] = [{} for _ in range(units)]
        self.bypass = [True] * units
        self.flying: list[Flying] = []

    # PASIDs

    def alloc(self, unit: int, first: int, last: int) -> tuple[int, int]:
        """Status and PASID: the lowest that is free."""
        if not first or not last:
            return S_INVAL, 0
        if first > last or last >= 1 << 20:
            return S_RANGE, 0
        if len(self.held) >= self.quota:
            return S_NOMEM, 0
        for pasid in range(max(first, self.first), min(last + 1, self.stop)):
            if pasid not in self.held:
                self.held[pasid] = HeldModel(unit, by_attach=False)
                return S_OK, pasid
        return S_NOMEM, 0

    def free(self, first: int, last: int) -> tuple[int, int]:
        """Status, and how many were freed."""
        if not first or not last:
            return S_INVAL, 0
        if first > last or last >= 1 << 20:
            return S_RANGE, 0
        freed = [held for pasid, held in self.held.items() if first <= pasid <= last and not held.freed]
        for held in freed:
            held.freed = True
        self.settle()
        return S_OK, len(freed)

    def settle(self) -> None:
        """End what was freed and is not used any more."""
        for pasid, held in list(self.held.items()):
            is_paired = any(key[2] == pasid for key in self.pairs)
            held.freed = held.freed or (held.by_attach and not is_paired)
            if held.freed and not is_paired and not any(flight.pasid == pasid for flight in self.flying):
                del self.held[pasid]

    def reset(self, unit: int) -> None:
        self.flying = [flight for flight in self.flying if flight.unit != unit]
        self.pairs = {key: domain for key, domain in self.pairs.items() if key[0] != unit}
        self.rids[unit] = dict.fromkeys(self.holes)
        self.domains[unit] = {}
        for held in self.held.values():
            held.freed = held.freed or held.unit == unit
        self.settle()

    def revoke(self, pasid: int) -> None:
        self.held.pop(pasid, None)
        self.pairs = {key: domain for key, domain in self.pairs.items() if key[2] != pasid}
        self.flying = [flight for flight in self.flying if flight.pasid != pasid]
        for unit in range(len(self.domains)):
            self._end_domains(unit)
        self.settle()

    # pairs and domains

    def attach_pair(self, unit: int, endpoint: int, pasid: int, domain: int, flags: int) -> int:
        mirrors = flags == 2
        if flags not in (0, 1, 2) or (mirrors and domain) or not pasid:
            return S_INVAL
        if pasid >= 1 << 20:
            return S_RANGE
        if endpoint not in self.widths:
            return S_NOENT
        if not self.widths[endpoint]:
            return S_UNSUPP
        if pasid >> self.widths[endpoint]:
            return S_RANGE
        status = self._in_set(pasid)
        if status is not None and status != S_OK:
            return status
        if status is None and len(self.held) >= self.quota:
            return S_NOMEM
        wanted = MIRRORS if mirrors else domain
        refused = self._judge(unit, endpoint, pasid, wanted, bypass=flags == 1)
        if refused:
            return refused
        if status is None:
            self.held[pasid] = HeldModel(unit, by_attach=True)
        self.pairs[unit, endpoint, pasid] = wanted
        if not mirrors:
            self.domains[unit].setdefault(domain, DomainModel(flags == 1))
        self._end_domains(unit)
        return S_OK

    def _in_set(self, pasid: int) -> int | None:
        """OK, a refusal, or None where the attach is to allocate it."""
        held = self.held.get(pasid)
        if held is not None:
            return S_NOENT if held.freed else S_OK
        if self.managed:
            return S_NOENT
        return None if self.first <= pasid < self.stop else S_RANGE

    def _judge(self, unit: int, endpoint: int, pasid: int, domain: int, *, bypass: bool) -> int:
        living = self.domains[unit].get(domain)
        if domain != MIRRORS:
            if domain > 3:
                return S_RANGE
            if not self.loose and (bypass or (living is not None and living.bypass)):
                return S_UNSUPP
            if living is not None and living.bypass != bypass:
                return S_INVAL
            if living is not None and self.holes[endpoint] in living.pages:
                return S_UNSUPP
        new = (unit, endpoint, pasid) not in self.pairs
        return S_NOMEM if new and sum(key[0] == unit for key in self.pairs) >= self.max_pairs else S_OK

    def detach_pair(self, unit: int, endpoint: int, pasid: int, domain: int) -> int:
        if not pasid:
            return S_INVAL
        if pasid >= 1 << 20:
            return S_RANGE
        if endpoint not in self.widths:
            return S_NOENT
        attached = self.pairs.get((unit, endpoint, pasid))
        if attached is None or (0 if attached == MIRRORS else attached) != domain:
            return S_INVAL
        del self.pairs[unit, endpoint, pasid]
        self._end_domains(unit)
        self.settle()
        return S_OK

    def attach(self, unit: int, endpoint: int, domain: int, *, bypass: bool) -> int:
        living = self.domains[unit].get(domain)
        if living is not None and living.bypass != bypass:
            return S_INVAL
        if living is not None and self.holes[endpoint] in living.pages:
            return S_UNSUPP
        self.domains[unit].setdefault(domain, DomainModel(bypass))
        self.rids[unit][endpoint] = domain
        self._end_domains(unit)
        return S_OK

    def detach(self, unit: int, endpoint: int, domain: int) -> int:
        attached = self.rids[unit][endpoint]
        if attached is None or (attached != domain and not (domain == 0 and self.domains[unit][attached].bypass)):
            return S_INVAL
        self.rids[unit][endpoint] = None
        self._end_domains(unit)
        return S_OK

    def _end_domains(self, unit: int) -> None:
        living = set(self.rids[unit].values()) | {domain for key, domain in self.pairs.items() if key[0] == unit}
        self.domains[unit] = {number: one for number, one in self.domains[unit].items() if number in living}

    def map(self, unit: int, domain: int, page: int, gpa: int, flags: int) -> int:
        living = self.domains[unit].get(domain)
        if living is None:
            return S_NOENT
        members = {endpoint for endpoint, attached in self.rids[unit].items() if attached == domain}
        members |= {key[1] for key, attached in self.pairs.items() if key[0] == unit and attached == domain}
        if living.bypass or page in living.pages or any(self.holes[endpoint] == page for endpoint in members):
            return S_INVAL
        living.pages[page] = (gpa, flags)
        return S_OK

    def unmap(self, unit: int, domain: int, first: int, last: int) -> int:
        living = self.domains[unit].get(domain)
        if living is None:
            return S_NOENT
        if living.bypass:
            return S_INVAL
        for page in range(first, last + 1):
            living.pages.pop(page, None)
        return S_OK

    # accesses

    def reach(
        self, unit: int, endpoint: int, pasid: int, page: int, access: int, *, execute: bool
    ) -> tuple[str, int, int | None]:
        """("", guest page, domain), or the refusal's word, wire reason and None."""
        found = self._space(unit, endpoint, pasid)
        if isinstance(found, str):
            return found, DOMAIN if found == "no-domain" else FAULT_R_PASID, None
        number, living = found
        if page == self.holes[endpoint]:
            return "reserved", MAPPING, None
        if living is None or living.bypass:
            return "", page, number
        if page not in living.pages:
            return "not-mapped", MAPPING, None
        gpa, flags = living.pages[page]
        if access & ~flags:
            return "no-write" if access & WRITE and not flags & WRITE else "no-read", MAPPING, None
        return ("no-execute", MAPPING, None) if execute else ("", gpa, number)

    def _space(self, unit: int, endpoint: int, pasid: int) -> str | tuple[int | None, DomainModel | None]:
        rid = self.rids[unit][endpoint]
        rid_bypasses = self.bypass[unit] if rid is None else self.domains[unit][rid].bypass
        if not pasid:
            if rid is None:
                return (None, None) if rid_bypasses else "no-domain"
            return rid, self.domains[unit][rid]
        attached = self.pairs.get((unit, endpoint, pasid))
        if attached is None:
            return "pasid-not-attached"
        if self.held[pasid].freed:
            return "pasid-free-pending"
        if attached != MIRRORS:
            return attached, self.domains[unit][attached]
        if rid is None and not rid_bypasses:
            return "pasid-rid-unattached"
        if rid_bypasses and not self.loose:
            return "pasid-rid-bypasses"
        return rid, None if rid is None else self.domains[unit][rid]
