"""The point pasid: the host is about to be asked for a PASID, and refuses."""

from __future__ import annotations

from vdev.faults.keeping import HoldsNothing
from vdev.faults.plan import Firing
from vdev.faults.point import Services
from vdev.faults.rule import Occurrence
from vdev.iommu.pasid_set import PasidSet, Refusal

_WHY = {"exhausted": Refusal.SUPPLY, "unreachable": Refusal.UNREACHABLE, "quota": Refusal.QUOTA}


class PasidPoint(HoldsNothing):
    """In front of `PasidSet.refusal`. Nothing is ever held, so there is nothing to undo."""

    def __init__(self, services: Services, pasids: PasidSet | None) -> None:
        self._services = services
        self._pasids = pasids

    def arm(self) -> None:
        """As `point.Hooks`."""
        if self._pasids is not None:
            self._pasids.filter = self._refusal

    def disarm(self) -> None:
        """As `point.Hooks`."""
        if self._pasids is not None:
            self._pasids.filter = None

    def _refusal(self, unit: str, first: int, used: int) -> Refusal | None:
        firing = self._services.meet(Occurrence("pasid", unit=unit, pasid=first))
        if firing is None or not _applies(firing, used):
            return None
        return _WHY[firing.rule.do]


def _applies(firing: Firing, used: int) -> bool:
    """A quota that is not used up refuses nothing."""
    return firing.rule.do != "quota" or used >= firing.rule.number("quota")
