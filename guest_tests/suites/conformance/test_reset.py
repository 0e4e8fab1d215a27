"""Device resets: endpoints become unattached, domains go, the bypass byte stays; and the reset that is asked for (D63).

By vhost-user the unit learns of a reset at the next start (docs/attachments.md).
"""

from __future__ import annotations

from typing import Any

import pytest
from asking import DOMAIN, EP, NARROW, NO_RAM, OTHER_DOMAIN, OTHER_EP, domains, exists, is_mapped, map_pages, unit_state

from guest_tests.payload import accel as engine
from guest_tests.payload.direct import Accel, Attach, Descriptor, Detach, Feature, NoAnswer, Status, Viommu
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host

BREAKS = {
    "a-head-that-is-no-descriptor": None,
    "a-descriptor-outside-ram": Descriptor(NO_RAM, 4),
}


def test_d9_after_a_reset_no_endpoint_is_attached(viommu: Viommu, host: Host) -> None:
    for domain, endpoint in ((DOMAIN, EP), (OTHER_DOMAIN, OTHER_EP)):
        viommu.attach(domain=domain, endpoint=endpoint)

    viommu.start()

    assert domains(host) == {}
    for domain, endpoint in ((DOMAIN, EP), (OTHER_DOMAIN, OTHER_EP)):
        assert viommu.send(Detach(domain=domain, endpoint=endpoint)).status == Status.INVAL


def test_d9_after_a_reset_no_mapping_is_left(attached: Viommu, host: Host) -> None:
    attached.ask(map_pages(16))

    attached.start()
    before = unit_state(host)["mappings"]
    attached.attach(domain=DOMAIN, endpoint=EP)

    assert before == 0
    assert not is_mapped(attached, 16)


def test_d9_after_a_reset_no_domain_is_left(attached: Viommu) -> None:
    attached.start()

    assert not exists(attached, DOMAIN)


def test_d9_a_reset_makes_room_for_as_many_domains_as_before(open_viommu: OpenViommu) -> None:
    """The narrow unit has room for one."""
    narrow = open_viommu(NARROW)
    narrow.attach(domain=3, endpoint=0x300)

    narrow.start()

    narrow.attach(domain=4, endpoint=0x300)


def test_d9_features_are_negotiated_anew(viommu: Viommu, host: Host) -> None:
    viommu.start(features=Feature.VERSION_1)

    assert unit_state(host)["features"]["accepted"] == 0


def test_d9_a_reset_stops_the_engines_of_all_endpoints(viommu: Viommu, open_accel: OpenAccel) -> None:
    """Bypass must not come back while an endpoint still runs on old IOVAs."""
    accels = [open_accel(number).start_in(viommu, domain=number + 1) for number in range(2)]

    viommu.start()

    assert [accel.registers.read32(engine.STATUS) for accel in accels] == [engine.HALTED] * 2
    assert [accel.error for accel in accels] == [engine.ERROR_STOPPED] * 2


def test_d9_an_unattached_engine_is_stopped_by_a_reset_too(viommu: Viommu, accel: Accel) -> None:
    accel.start()
    accel.nop()

    viommu.start()

    assert (accel.is_running, accel.error) == (False, engine.ERROR_STOPPED)


@pytest.mark.parametrize("nresets", [1, 3])
def test_d6_bypass_that_is_off_stays_off_over_a_reset(blocking: Viommu, nresets: int) -> None:
    for _ in range(nresets):
        blocking.start()

    assert not blocking.bypass


def test_d6_bypass_that_is_on_stays_on_over_a_reset(viommu: Viommu) -> None:
    assert viommu.bypass

    viommu.start()

    assert viommu.bypass


def test_d6_bypass_that_is_off_at_boot_and_was_switched_on_stays_on(narrow: Viommu) -> None:
    """A device reset does not restore the boot value: that is the system's."""
    narrow.bypass = True

    narrow.start()

    assert narrow.bypass


# D63: a ring that breaks the rules is an error that belongs to no endpoint.


def break_ring(viommu: Viommu, how: str) -> None:
    """Publish a chain that breaks the rules."""
    ring, descriptor = viommu.requests.ring, BREAKS[how]
    if descriptor is not None:
        ring.put(3, descriptor)
    ring.post_head(3 if descriptor is not None else 0xFFFF)
    viommu.requests.publish()
    viommu.requests.kick()


def is_served(viommu: Viommu) -> bool:
    """Whether a good request is answered."""
    try:
        return viommu.send_chain(viommu.chain(Attach(domain=OTHER_DOMAIN, endpoint=EP)), timeout_s=0.3).ok
    except NoAnswer:
        return False


@pytest.mark.machines("*-vfio-user", "*-in-process")
@pytest.mark.parametrize("how", BREAKS)
def test_d63_a_broken_ring_sets_device_needs_reset_and_notifies_of_the_change(viommu: Viommu, how: str) -> None:
    """The device SHOULD set the bit; a configuration change notification MUST follow if DRIVER_OK."""
    before = viommu.transport.generation
    assert not viommu.is_broken

    break_ring(viommu, how)

    assert not is_served(viommu)
    assert viommu.is_broken
    assert viommu.transport.generation == (before + 1) & 0xFF


@pytest.mark.parametrize("how", BREAKS)
def test_d63_a_unit_with_a_broken_ring_serves_nothing_until_it_is_reset(attached: Viommu, host: Host, how: str) -> None:
    errors = unit_state(host)["ring-errors"]

    break_ring(attached, how)

    assert not is_served(attached)
    assert domains(host) == {DOMAIN: ([EP], 0)}
    assert unit_state(host)["ring-errors"] == errors + 1
    attached.start()
    assert is_served(attached)


def test_d63_another_unit_is_not_concerned(viommu: Viommu, narrow: Viommu, machine: dict[str, Any]) -> None:
    break_ring(viommu, "a-head-that-is-no-descriptor")

    assert not is_served(viommu)

    assert narrow.send(Attach(domain=3, endpoint=0x300)).ok
    assert not narrow.is_broken
