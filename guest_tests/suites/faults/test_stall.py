"""A backend that stands still: whoever waits for it gets what it waits for when it goes on."""

from __future__ import annotations

from guest_tests.payload.direct import Viommu
from guest_tests.payload.fault_fixtures import Faults

EP = 0x100
STALL_S = 0.5


def test_a_request_is_answered_when_the_stall_is_over(viommu: Viommu, faults: Faults) -> None:
    before = viommu.probe(EP)
    with faults.injected("request", "stall", match={"type": "PROBE"}, times=1, seconds=STALL_S) as rule:
        answer = viommu.probe(EP)
        fired = rule.fired

    assert (answer, fired) == (before, 1)
