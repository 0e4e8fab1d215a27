"""A reset of the whole machine: units of both attachments, modes and boot values of bypass, in one machine."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Literal

import pytest

from guest_tests.runner.handle import GuestOn
from vdev.config import Config, EndpointConfig, UnitConfig
from vdev.config.schema import ATTACHMENTS

INSIDE = Path(__file__).parent / "inside"
MODES: tuple[Literal["compat", "strict"], ...] = ("compat", "strict")
BOOT_VALUES: tuple[Literal["on", "off"], ...] = ("on", "off")
UNITS = tuple(
    UnitConfig(name=f"{attach}-{mode}-{bypass}", bdf=f"00:{slot:02x}.0", attach=attach, mode=mode, bypass=bypass)
    for slot, (attach, mode, bypass) in enumerate(product(ATTACHMENTS, MODES, BOOT_VALUES), start=0x10)
)
# Of a unit by vhost-user QEMU does not tell that the machine was reset: the reset of an endpoint beside it does.
ENDPOINTS = (EndpointConfig(name="accel0", unit=UNITS[0].name, bdf="01:00.0"),)
AT_BOOT = [unit.bypass == "on" for unit in UNITS]


@pytest.mark.guest
@pytest.mark.timeout(300)
@pytest.mark.conformance(attach=list(ATTACHMENTS))
def test_d5_d7_bypass_is_its_boot_value_after_a_system_reset(guest_on: GuestOn) -> None:
    """D5: it MAY start as 1. D7: a system reset SHOULD restore it."""
    guest = guest_on(Config(units=UNITS, endpoints=ENDPOINTS), files=INSIDE, driver="stock")

    def bypass() -> list[bool]:
        return [unit["bypass"] for unit in guest.control("query-iommu")]

    at_boot = bypass()
    flipped = guest.call("bypass:flip")
    seen_by_the_host = bypass()
    guest.restart()

    assert at_boot == AT_BOOT
    assert flipped == seen_by_the_host == [not value for value in AT_BOOT]
    assert bypass() == AT_BOOT
