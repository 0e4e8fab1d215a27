"""A unit that says it needs a reset: it serves nothing before its driver has done so."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct import DeviceBroken, Viommu
from guest_tests.payload.direct.wait import until
from guest_tests.payload.fault_fixtures import Faults

EP = 0x100
SOON_S = 5.0

pytestmark = pytest.mark.machines("vfio-user")  # behind vhost-user the bit is QEMU's


def test_a_request_is_answered_again_after_the_reset_and_not_before(viommu: Viommu, faults: Faults) -> None:
    rule = faults.add("timer", "needs-reset", function="iommu0")
    assert until(lambda: viommu.is_broken, SOON_S)
    with pytest.raises(DeviceBroken):
        viommu.probe(EP)

    viommu.start()
    viommu.probe(EP)

    assert rule.fired == 1
    assert [line.split(":")[0] for line in faults.clear()["terminal"]] == ["needs-reset"]
