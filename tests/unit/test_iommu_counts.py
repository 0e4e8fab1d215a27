"""What the demo says about the mappings of one endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from guest_tests import report
from guest_tests.iommu_counts import counts_of
from guest_tests.report import Painter


def _unit(name: str, maps: int, unmaps: int, **functions: dict[str, Any]) -> dict[str, Any]:
    return {"unit": name, "counters": {"requests": {"MAP": maps, "UNMAP": unmaps}}, "functions": functions}


ACCEL = {"endpoint": 0x100, "domain": None, "mappings": 0}
RNG = {"endpoint": 0x200, "domain": 7, "mappings": 2}
BEFORE = [_unit("iommu0", 10, 9, accel0=ACCEL), _unit("iommu1", 100, 90, rng0={**RNG, "mappings": 1})]
AFTER = [_unit("iommu0", 99, 99, accel0=ACCEL), _unit("iommu1", 164, 153, rng0=RNG)]


def test_an_endpoint_is_counted_by_its_own_unit() -> None:
    line = counts_of(0x200, BEFORE, AFTER).line()

    assert line == "rng0 has 2 live mappings in domain 7 of iommu1; meanwhile 64 MAP, 63 UNMAP"


def test_an_unattached_endpoint_is_in_no_domain() -> None:
    assert "accel0 has 0 live mappings in no domain of iommu0" in counts_of(0x100, BEFORE, AFTER).line()


def test_an_endpoint_nobody_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="0x300"):
        counts_of(0x300, BEFORE, AFTER)


def test_the_demo_shows_the_line_below_the_check() -> None:
    record = {"ok": True, "ms": 1.0, "detail": "drawn", "data": {}, "counted": "rng0 has 2 live mappings"}

    lines = report.finished(record, [], Painter(False))

    assert lines[-1].split(":", 1)[1].strip() == "rng0 has 2 live mappings"
