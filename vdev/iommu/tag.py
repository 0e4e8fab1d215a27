"""What an access carries beside its address, where it carries a PASID."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tag:
    """The PASID prefix of an access: `pasid` 1..0xfffff, and what is requested (PCI Express, "PASID TLP Prefix").

    Execution is requested together with a read.
    """

    pasid: int
    execute: bool = False
    privileged: bool = False
