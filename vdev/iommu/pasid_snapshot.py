"""What a unit's saved state says of PASIDs: its pairs, and what was allocated through it. The host's own are not state.

A domain's row has `pairs`, [endpoint, pasid] each; beside the domains there are `mirrors`, the same, and `held`. A unit
without any of it is saved as before there were PASIDs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vdev.errors import RequestError
from vdev.iommu.domains import Domain, DomainTable
from vdev.iommu.pairs import all_pairs, choose_domain, put_pair
from vdev.iommu.pasid_held import Held
from vdev.iommu.settings import UnitSettings
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

if TYPE_CHECKING:
    from vdev.iommu.pasid_set import PasidSet


def dump_domain_pairs(domain: Domain) -> dict[str, Any]:
    """A domain's row, as far as it has pairs."""
    pairs = [[endpoint, pasid] for endpoint, pairs in sorted(domain.pairs.items()) for pasid in sorted(pairs)]
    return {"pairs": pairs} if pairs else {}


def dump_pasids(table: DomainTable, held: list[Held]) -> dict[str, Any]:
    """The rest of it; `held` are those allocated through the unit."""
    guests = [pair for pair in all_pairs(table) if pair.domain is None and not pair.held.is_host]
    mirrors = [[pair.endpoint.id, pair.pasid] for pair in guests]
    rows = [{"pasid": one.pasid, "by_attach": one.by_attach, "freed": one.freed} for one in held]
    return {"pasids": {"mirrors": mirrors, "held": rows}} if mirrors or rows else {}


@dataclass(slots=True)
class PasidsLoaded:
    """Saved PASIDs of `unit` on their way back. They are checked against the VM's set and change nothing there."""

    unit: str
    pasids: PasidSet | None
    adopted: dict[int, Held] = field(default_factory=dict)  # that a set as new does not know yet
    kept: dict[int, tuple[Held, bool]] = field(default_factory=dict)  # those of the unit in the set; whether freed

    def load_held(self, saved: dict[str, Any]) -> None:
        """RequestError, KeyError, TypeError or ValueError for what cannot be."""
        for row in saved["held"]:
            pasid, by_attach, freed = _number(row["pasid"]), bool(row["by_attach"]), bool(row["freed"])
            if self.pasids is None or not 0 < pasid <= pasid_wire.PASID_LAST:
                raise ValueError(f"PASID {pasid}")
            known = self.pasids.of_guest(pasid)
            if pasid in self.adopted or pasid in self.kept:
                raise ValueError(f"PASID {pasid} twice")
            if known is None:
                if not self.pasids.is_untouched or self.pasids.of_host(pasid) is not None:
                    raise RequestError(wire.S_NOENT, f"PASID {pasid} is not in the set any more")
                self.adopted[pasid] = Held(pasid, self.unit, by_attach, freed)
            elif known.unit != self.unit or (known.freed and not freed):
                raise RequestError(wire.S_NOENT, f"PASID {pasid} is another unit's, or was freed since")
            else:
                self.kept[pasid] = (known, freed)

    def load_domain_pairs(self, table: DomainTable, settings: UnitSettings, domain: dict[str, Any]) -> None:
        """`load_pairs` of a domain's row."""
        wanted = (domain["id"], bool(domain["bypass"]))
        self.load_pairs(table, settings, domain.get("pairs", []), wanted)

    def load_pairs(
        self, table: DomainTable, settings: UnitSettings, saved: list[Any], wanted: tuple[int, bool] | None
    ) -> None:
        """Attach each [endpoint, pasid] of `saved` in `table` to the domain `wanted`, or mirroring; raises as above."""
        for number, pasid in saved:
            endpoint, held = table.endpoint(_number(number)), self._find(_number(pasid))
            if endpoint.pasid is None or not endpoint.pasid.takes(held.pasid) or held.pasid in endpoint.pairs:
                raise ValueError(f"PASID {held.pasid} of endpoint {endpoint.id:#x}")
            put_pair(table, endpoint, held, choose_domain(table, settings, endpoint, held.pasid, wanted))

    def _find(self, pasid: int) -> Held:
        if pasid in self.adopted:
            return self.adopted[pasid]
        held = self.kept[pasid][0] if pasid in self.kept else self.pasids and self.pasids.of_guest(pasid)
        if not held:
            raise RequestError(wire.S_NOENT, f"PASID {pasid} is not in the set")
        return held


def _number(given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"{given!r} is no number")
    return given
