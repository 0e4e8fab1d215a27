"""A driver that keeps the rules, and drivers that were planted to be caught: `DRIVERS` by name."""

from __future__ import annotations

from .driver import USER_IOVA, Driver, Loan, User
from .wrong import ForgetsUnmap, IgnoresUsedLength, LosesEventBuffer, MapsShort, ReusesPasid

DRIVERS: dict[str, type[Driver]] = {
    "right": Driver,
    "forgets-unmap": ForgetsUnmap,
    "reuses-pasid": ReusesPasid,
    "ignores-used-length": IgnoresUsedLength,
    "maps-short": MapsShort,
    "loses-event-buffer": LosesEventBuffer,
}

__all__ = ["DRIVERS", "USER_IOVA", "Driver", "Loan", "User"]
