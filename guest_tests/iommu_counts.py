"""What vdev counted for one endpoint between two answers of query-iommu. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counts:
    """`live` mappings of the endpoint's domain at the end; requests its unit got in between, whoever they were for."""

    name: str
    unit: str
    domain: int | None
    live: int
    maps: int
    unmaps: int

    def line(self) -> str:
        """For people."""
        where = f"domain {self.domain} of {self.unit}" if self.domain is not None else f"no domain of {self.unit}"
        return f"{self.name} has {self.live} live mappings in {where}; meanwhile {self.maps} MAP, {self.unmaps} UNMAP"


def counts_of(endpoint: int, before: Any, after: Any) -> Counts:
    """The counts of the endpoint of that number. Raises ValueError where no unit has it."""
    earlier = {unit["unit"]: unit["counters"]["requests"] for unit in before}
    for unit in after:
        requests, started = unit["counters"]["requests"], earlier[unit["unit"]]
        for name, function in unit["functions"].items():
            if function["endpoint"] == endpoint:
                maps, unmaps = (requests[kind] - started[kind] for kind in ("MAP", "UNMAP"))
                return Counts(name, unit["unit"], function["domain"], function["mappings"], maps, unmaps)
    raise ValueError(f"no unit has endpoint {endpoint:#x}")
