"""A reset of the whole machine: units of both modes and both boot values of bypass, in one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_tests.runner.handle import GuestOn
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.config.schema import ATTACHMENTS, Attach

INSIDE = Path(__file__).parent / "inside"
UNITS = (
    UnitConfig(name="compat", bdf="00:10.0", bypass="on"),
    UnitConfig(name="strict", bdf="00:11.0", mode="strict", bypass="on"),
    UnitConfig(name="closed", bdf="00:12.0", bypass="off"),
    UnitConfig(name="strict-closed", bdf="00:13.0", mode="strict", bypass="off"),
)
# Of a unit by vhost-user QEMU does not tell that the machine was reset: the reset of an endpoint beside it does.
ENDPOINTS = (EndpointConfig(name="accel0", unit="compat", bdf="01:00.0"),)
AT_BOOT = [unit.bypass == "on" for unit in UNITS]


@pytest.mark.guest
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "attach", [pytest.param(attach, marks=pytest.mark.conformance(attach=[attach])) for attach in ATTACHMENTS]
)
def test_d5_d7_bypass_is_its_boot_value_after_a_system_reset(guest_on: GuestOn, attach: Attach) -> None:
    """D5: it MAY start as 1. D7: a system reset SHOULD restore it."""
    guest = guest_on(Config(units=UNITS, endpoints=ENDPOINTS), files=INSIDE, attach=attach, driver="stock")

    def bypass() -> list[bool]:
        return [unit["bypass"] for unit in guest.control("query-iommu")]

    at_boot = bypass()
    flipped = guest.call("bypass:flip")
    seen_by_the_host = bypass()
    guest.restart()

    assert at_boot == AT_BOOT
    assert flipped == seen_by_the_host == [not value for value in AT_BOOT]
    assert bypass() == AT_BOOT
