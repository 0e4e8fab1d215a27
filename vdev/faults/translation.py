"""The point translation: an endpoint's access asks the IOMMU, and gets another answer than its mappings give.

Refusals are those of the IOMMU, reason and all, and are reported to the guest in the same way. Messages of endpoints
whose MSI-X table is ours go through as accesses do. An access in flight that is asked about once more as it lands, as
under `isolation: required`, meets no rule a second time: what the domain of another translated wrongly is found then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vdev.errors import TranslationFault
from vdev.faults.detours import Detours, Place
from vdev.faults.keeping import HoldsNothing
from vdev.faults.plan import Firing
from vdev.faults.point import Services
from vdev.faults.translators import TRANSLATION, Asked, Found, put_stage, take_stage
from vdev.functions.dma import WRITE
from vdev.iommu.settings import ADDRESS_SPACE
from vdev.wire.viommu import FAULT_R_DOMAIN, FAULT_R_MAPPING


class TranslationPoint(HoldsNothing):
    """In front of the engine, for every endpoint. Nothing is ever held, so there is nothing to undo."""

    def __init__(self, services: Services, detours: Detours) -> None:
        self._services = services
        self._detours = detours

    def arm(self) -> None:
        """As `point.Hooks`."""
        self._detours.arm("translation")
        for name, unit in self._services.units.items():
            put_stage(unit, TRANSLATION, partial(self._stage, name))

    def disarm(self) -> None:
        """As `point.Hooks`."""
        for unit in self._services.units.values():
            take_stage(unit, TRANSLATION)
        self._detours.disarm("translation")

    def _stage(self, unit: str, asked: Asked) -> Found | None:
        """As `translators.Stage`."""
        if asked.flight is not None:
            return None
        fate = self._detours.fate
        if fate is not None and fate.is_translated:
            return fate.found
        place = self._place(unit, asked.endpoint)
        if place is None:
            return None
        met = place.occurrence("translation", asked.iova, asked.nbytes, asked.access, asked.tag)
        firing = self._services.meet(met)
        found = None if firing is None else _ACTIONS[firing.rule.do](firing, place, asked)
        if fate is not None:
            fate.is_translated, fate.found = True, found
        return found

    def _place(self, unit: str, endpoint: int) -> Place | None:
        parts = self._services.units[unit]
        found = ((name, door) for name, door in parts.doors.items() if door.endpoint_id == endpoint)
        return next((Place(unit, parts.engine, name, door) for name, door in found), None)


def _unmapped(firing: Firing, place: Place, asked: Asked) -> Found | None:
    raise TranslationFault(FAULT_R_MAPPING, "not-mapped", asked.iova)


def _no_permission(firing: Firing, place: Place, asked: Asked) -> Found | None:
    raise TranslationFault(FAULT_R_MAPPING, "no-write" if asked.access == WRITE else "no-read", asked.iova)


def _aperture(firing: Firing, place: Place, asked: Asked) -> Found | None:
    start, end = firing.rule.number("start"), firing.rule.number("end")
    if not start <= asked.iova <= end:
        raise TranslationFault(FAULT_R_MAPPING, "outside-input-range", asked.iova)
    if asked.iova + asked.nbytes - 1 > end:
        raise TranslationFault(FAULT_R_MAPPING, "outside-input-range", end + 1)
    return None


def _wrong_domain(firing: Firing, place: Place, asked: Asked) -> Found | None:
    """The mappings are the other domain's; what is reserved for the endpoint stays so."""
    table, number = place.engine.table, firing.rule.number("domain")
    domain, endpoint = table.domains.get(number), table.endpoints.get(asked.endpoint)
    if domain is None or endpoint is None:
        raise TranslationFault(FAULT_R_DOMAIN, "no-domain", asked.iova, f"injected: domain {number}")
    if asked.iova < 0 or asked.iova + asked.nbytes > ADDRESS_SPACE:
        raise TranslationFault(FAULT_R_MAPPING, "outside-address-space", asked.iova)
    reserved = endpoint.reserved if asked.tag is None else endpoint.closed
    mappings = None if domain.bypass else domain.mappings
    pieces = table.walk(reserved, mappings, (asked.iova, asked.iova + asked.nbytes), asked.access)
    if asked.tag is not None and asked.tag.execute and mappings is not None:
        raise TranslationFault(FAULT_R_MAPPING, "no-execute", asked.iova)
    return Found(pieces, number)


_ACTIONS: dict[str, Callable[[Firing, Place, Asked], Found | None]] = {
    "unmapped": _unmapped,
    "no-permission": _no_permission,
    "aperture": _aperture,
    "wrong-domain": _wrong_domain,
}
