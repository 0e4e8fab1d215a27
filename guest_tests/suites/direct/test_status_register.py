"""The device status as a driver sees it. virtio 1.4, "Device Status Field", "Device Initialization".

Over vhost-user the register is QEMU's, which keeps whatever is written: there only what reaches the unit is tested.
"""

from __future__ import annotations

from typing import Any

import pytest
from asking import EP, EVENT_S, of, serves, unit_state

from guest_tests.payload.direct import DEFAULT_FEATURES, Attach, DmaArena, Viommu, wait
from guest_tests.payload.direct.queue import Queue
from guest_tests.payload.direct.requests import RequestQueue
from guest_tests.payload.direct.virtio import DeviceStatus, VirtioPci
from guest_tests.payload.direct.wire import EVENT_QUEUE, REQUEST_QUEUE
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host

ACKNOWLEDGE, DRIVER, FEATURES_OK = DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER, DeviceStatus.FEATURES_OK
DRIVER_OK, FAILED, NEEDS_RESET = DeviceStatus.DRIVER_OK, DeviceStatus.FAILED, DeviceStatus.NEEDS_RESET
READY = ACKNOWLEDGE | DRIVER | FEATURES_OK


@pytest.fixture
def transport(viommu: Viommu) -> VirtioPci:
    """The registers of a unit that was reset."""
    viommu.reset()
    return viommu.transport


@pytest.fixture
def ours(machine: dict[str, Any]) -> None:
    """Skip where they are QEMU's, before anything is started for nothing."""
    if machine["attach"] == "vhost-user":
        pytest.skip("QEMU owns the status register of a unit attached by vhost-user")


@pytest.fixture
def register(ours: None, transport: VirtioPci) -> VirtioPci:
    """The same, where the register is ours."""
    return transport


def test_status_is_0_after_a_reset(transport: VirtioPci) -> None:
    """The driver waits for that."""
    assert transport.status == 0


def test_every_step_of_the_initialisation_reads_back(transport: VirtioPci) -> None:
    """ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, in this order."""
    seen = []
    for value in (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, READY, READY | DRIVER_OK):
        if value == READY:
            transport.accept(DEFAULT_FEATURES)
        transport.status = value
        seen.append(transport.status)

    assert seen == [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, READY, READY | DRIVER_OK]


EARLY = {
    "driver-before-acknowledge": (0, DRIVER),
    "features_ok-before-driver": (ACKNOWLEDGE, ACKNOWLEDGE | FEATURES_OK),
    "driver_ok-before-features_ok": (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK),
    "driver_ok-at-once": (0, DRIVER_OK),
}


@pytest.mark.parametrize(("before", "written"), of(EARLY))
def test_a_bit_that_comes_too_early_is_not_taken(register: VirtioPci, before: int, written: int) -> None:
    """The steps have an order; what is not legal is not taken."""
    register.accept(DEFAULT_FEATURES)
    if before:
        register.status = before

    register.status = written

    assert register.status == before


@pytest.mark.parametrize("written", of({"acknowledge": ACKNOWLEDGE, "driver": DRIVER, "features_ok": FEATURES_OK}))
def test_bits_are_cleared_by_a_reset_only(register: VirtioPci, written: int) -> None:
    """The driver MUST NOT clear a bit; a write without it does not."""
    register.negotiate(DEFAULT_FEATURES)

    register.status = written

    assert register.status == READY


@pytest.mark.parametrize("bit", [NEEDS_RESET, 16, 32])
def test_a_driver_cannot_set_bits_that_are_not_its_own(register: VirtioPci, bit: int) -> None:
    """DEVICE_NEEDS_RESET is the device's to set; 16 and 32 are nobody's."""
    register.status = ACKNOWLEDGE | bit

    assert register.status == ACKNOWLEDGE


def test_a_driver_that_failed_can_only_reset(register: VirtioPci) -> None:
    """FAILED: the driver gave up."""
    register.status = ACKNOWLEDGE | FAILED

    register.status = ACKNOWLEDGE | DRIVER | FAILED
    assert register.status == ACKNOWLEDGE | FAILED

    register.reset()
    assert register.status == 0


def test_a_running_device_can_be_failed_and_reset(viommu: Viommu) -> None:
    """FAILED may come at any time."""
    viommu.transport.status = READY | DRIVER_OK | FAILED
    assert viommu.transport.status & FAILED

    viommu.start()

    assert serves(viommu)


def test_requests_made_available_before_driver_ok_are_served_by_driver_ok(
    dma: DmaArena, viommu: Viommu, host: Host
) -> None:
    """The device MUST NOT consume buffers before DRIVER_OK. A kick that came too early is not needed again."""
    viommu.reset()
    viommu.transport.negotiate(DEFAULT_FEATURES)
    requests = RequestQueue(viommu.transport, REQUEST_QUEUE, dma, DEFAULT_FEATURES)
    Queue(viommu.transport, EVENT_QUEUE, dma, DEFAULT_FEATURES)
    requests.ring.post(requests.chain(Attach(domain=1, endpoint=EP)))
    requests.ring.publish()
    requests.kick()

    unit_state(host)  # a round trip through the process that would have served it
    was_early = requests.ring.has_used
    viommu.transport.driver_ok()

    assert not was_early
    assert wait.until(lambda: requests.ring.has_used, EVENT_S)


def test_nothing_is_attached_after_a_reset(open_viommu: OpenViommu, host: Host) -> None:
    """D9. Over vhost-user the unit learns of a reset when the next driver starts."""
    viommu = open_viommu()
    viommu.attach(domain=1, endpoint=EP)

    viommu = open_viommu()

    assert unit_state(host)["domains"] == []
    assert serves(viommu)


def test_two_hundred_resets_in_a_row(viommu: Viommu) -> None:
    """No state is left to pile up."""
    for _ in range(200):
        viommu.transport.reset()

    viommu.start()

    assert serves(viommu)
