"""A brute-force virtio-iommu: one dictionary entry per mapped byte, every rule written down a second time.

Deliberately naive and independent of vdev.iommu; it knows the status of every request and the fate of every byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OK, UNSUPP, INVAL, RANGE, NOENT, NOMEM = 0, 2, 4, 5, 6, 8
READ, WRITE = 1, 2
FAULT_DOMAIN, FAULT_MAPPING = 1, 2


@dataclass
class ModelDomain:
    bypass: bool
    bytes: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # iova: (gpa, flags, serial of the MAP)


@dataclass
class Model:
    granule: int
    input_range: range
    domain_range: range
    reserved: dict[int, list[tuple[range, bool]]]  # endpoint: its regions, and whether each is MSI
    max_domains: int
    max_mappings: int
    negotiated: bool = True  # BYPASS_CONFIG and MMIO
    bypass: bool = True
    force_aperture: bool = False
    required: bool = False  # isolation: BYPASS_CONFIG is not offered
    serial: int = 0
    domains: dict[int, ModelDomain] = field(default_factory=dict)
    where: dict[int, int] = field(default_factory=dict)  # endpoint: domain

    def members(self, domain: int) -> list[int]:
        return [endpoint for endpoint, place in self.where.items() if place == domain]

    def drop_empty(self) -> None:
        self.domains = {number: found for number, found in self.domains.items() if self.members(number)}

    def live(self, domain: int | None = None) -> int:
        chosen = self.domains if domain is None else [domain]
        return sum(len({serial for _, _, serial in self.domains[number].bytes.values()}) for number in chosen)

    def attach(self, domain: int, endpoint: int, flags: int, reserved: bool) -> int:
        if reserved or flags > 1 or (flags and (self.required or not self.negotiated)):
            return INVAL
        if endpoint not in self.reserved:
            return NOENT
        if domain not in self.domain_range:
            return RANGE
        present = self.where.get(endpoint)
        if domain in self.domains:
            if self.domains[domain].bypass != bool(flags):
                return INVAL
            if present == domain:
                return OK
            taken = self.domains[domain].bytes
            if any(address in region for region, _ in self.reserved[endpoint] for address in taken):
                return UNSUPP
        else:
            ending = present is not None and self.members(present) == [endpoint]
            if len(self.domains) + 1 - ending > self.max_domains:
                return NOMEM
            self.domains[domain] = ModelDomain(bool(flags))
        self.where[endpoint] = domain
        self.drop_empty()
        return OK

    def detach(self, domain: int, endpoint: int) -> int:
        if endpoint not in self.reserved:
            return NOENT
        present = self.where.get(endpoint)
        if present is None or (present != domain and not (domain == 0 and self.domains[present].bypass)):
            return INVAL
        del self.where[endpoint]
        self.drop_empty()
        return OK

    def map(self, domain: int, first: int, last: int, gpa: int, flags: int) -> int:
        if flags > (7 if self.negotiated else 3):
            return INVAL
        if domain not in self.domains:
            return NOENT
        found = self.domains[domain]
        if found.bypass:
            return INVAL
        if first % self.granule or (last + 1) % self.granule or gpa % self.granule or last < first:
            return RANGE
        wanted = range(first, last + 1)
        if first not in self.input_range or last not in self.input_range:
            return RANGE
        holes = [region for endpoint in self.members(domain) for region, _ in self.reserved[endpoint]]
        if any(address in hole for hole in holes for address in wanted):
            return INVAL
        if any(address in found.bytes for address in wanted):
            return INVAL
        if self.live() >= self.max_mappings:
            return NOMEM
        self.serial += 1
        found.bytes.update({address: (gpa + address - first, flags, self.serial) for address in wanted})
        return OK

    def unmap(self, domain: int, first: int, last: int, reserved: bool) -> int:
        if reserved:
            return INVAL
        if domain not in self.domains:
            return NOENT
        found = self.domains[domain]
        if found.bypass:
            return INVAL
        if last < first:
            return RANGE
        inside = {found.bytes[address][2] for address in range(first, last + 1) if address in found.bytes}
        outside = {serial for address, (_, _, serial) in found.bytes.items() if not first <= address <= last}
        if inside & outside:
            return RANGE
        found.bytes = {a: entry for a, entry in found.bytes.items() if entry[2] not in inside}
        return OK

    def byte(self, endpoint: int, address: int, access: int) -> int | tuple[str, int]:
        """The guest-physical address of one byte, or ("fault", wire reason)."""
        place = self.where.get(endpoint)
        if place is None and not self.bypass:
            return ("fault", FAULT_DOMAIN)
        for region, is_msi in self.reserved[endpoint]:
            if address in region:
                return address if is_msi and access == WRITE else ("fault", FAULT_MAPPING)
        if place is None or self.domains[place].bypass:
            outside = self.force_aperture and address not in self.input_range
            return ("fault", FAULT_MAPPING) if outside else address
        entry = self.domains[place].bytes.get(address)
        if entry is None or access & ~entry[1]:
            return ("fault", FAULT_MAPPING)
        return entry[0]

    def reset(self) -> None:
        self.domains, self.where = {}, {}
