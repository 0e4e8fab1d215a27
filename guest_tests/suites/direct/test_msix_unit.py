"""Interrupts of the IOMMU: messages are writes to memory of ours, so that user space sees them.

By vfio-user each queue has a vector, by vhost-user all share one (docs/attachments.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.direct import DmaArena, Feature, Viommu, wait
from guest_tests.payload.direct.function import CAP_MSIX
from guest_tests.payload.direct.msix import NO_VECTOR, MsixTable, Vector
from guest_tests.payload.direct.wire import REQUEST_QUEUE, Probe
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host

NOTHING = 0x3_0000
NOWHERE = 0x8000_0000  # no RAM and no device there
OTHER_DATA = 0x7788
CLOCKS = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")


@pytest.fixture(autouse=True)
def _messages_reach_memory() -> None:
    if "kvm-clock" in CLOCKS.read_text():
        pytest.skip("KVM takes a message for an interrupt wherever it is addressed, and memory never sees it")


@pytest.fixture
def unit(open_viommu: OpenViommu) -> Viommu:
    """The first unit with its interrupts on."""
    return open_viommu(msix=True)


def ask_something(viommu: Viommu, host: Host) -> None:
    """Any request; the answer matters to nobody.

    It is reaped when the device has decided about its interrupt: a driver that is faster wants none any more.
    """
    queue = viommu.requests
    queue.ring.post(viommu.chain(Probe(endpoint=0xFFFF), nwritable=1024))
    queue.publish()
    assert wait.until(lambda: queue.ring.has_used, 2.0)
    settle(host)
    for used in queue.ring.reap():
        queue.ring.recycle(used.chain)


def request_vector(viommu: Viommu, host: Host) -> Vector:
    """The vector of the request queue, quiet: by vhost-user a start may be one interrupt too many."""
    settle(host)
    vector = viommu.vectors[1]
    vector.clear()
    return vector


def settle(host: Host) -> None:
    """An interrupt the device has raised by now has arrived when the host's answer has: both pass through QEMU."""
    host.control("query-status")


def table_of(viommu: Viommu) -> MsixTable:
    """The unit's MSI-X table."""
    assert viommu.msix is not None
    return viommu.msix


def only_with_a_vector_for_each_queue(machine: dict[str, Any]) -> None:
    """Skip where all share one."""
    if machine["attach"] == "vhost-user":
        pytest.skip("by vhost-user there is one vector for everything")


def test_an_answered_request_interrupts(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)

    ask_something(unit, host)

    assert vector.wait()


def test_every_request_interrupts_anew(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)

    fired = []
    for _ in range(5):
        ask_something(unit, host)
        fired.append(vector.wait())

    assert all(fired)


def test_a_fault_interrupts(unit: Viommu, open_accel: OpenAccel, host: Host) -> None:
    accel = open_accel().start_in(unit)
    vector = unit.vectors[2]
    settle(host)
    vector.clear()

    accel.run(engine.Operation(engine.CHECKSUM, NOTHING, nbytes=8))

    assert vector.wait()
    assert unit.wait_fault().address == NOTHING


def test_each_queue_interrupts_by_its_own_vector_where_there_are_several(
    unit: Viommu, machine: dict[str, Any], host: Host
) -> None:
    only_with_a_vector_for_each_queue(machine)
    config, requests, events = unit.vectors

    ask_something(unit, host)

    assert requests.wait()
    settle(host)
    assert not config.has_fired
    assert not events.has_fired


def test_there_are_three_vectors_by_vfio_user_and_one_by_vhost_user(unit: Viommu, machine: dict[str, Any]) -> None:
    assert table_of(unit).nvectors == (1 if machine["attach"] == "vhost-user" else 3)


def test_a_masked_vector_is_held_back_and_fires_when_it_is_unmasked(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)
    vector.mask()
    ask_something(unit, host)
    seen_masked = vector.has_fired

    vector.unmask()

    assert not seen_masked
    assert vector.wait()


def test_a_vector_held_back_by_its_own_mask_shows_as_pending(unit: Viommu, machine: dict[str, Any], host: Host) -> None:
    if machine["attach"] == "vfio-user":
        pytest.skip("QEMU remembers the interrupt of a masked vfio-user vector, and its pending bit reads 0")
    vector = request_vector(unit, host)
    vector.mask()
    ask_something(unit, host)
    seen_masked = wait.until(lambda: vector.is_pending, 2.0)

    vector.unmask()

    assert seen_masked
    assert vector.wait()
    assert not vector.is_pending


def test_a_vector_held_back_by_the_function_mask_shows_as_pending(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)
    table_of(unit).mask_all(True)
    ask_something(unit, host)
    seen_masked = wait.until(lambda: vector.is_pending, 2.0)

    table_of(unit).mask_all(False)

    assert seen_masked
    assert vector.wait()
    assert not vector.is_pending


def test_a_vector_that_was_masked_in_peace_does_not_fire(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)

    vector.mask()
    vector.unmask()
    settle(host)

    assert not vector.has_fired


def test_the_function_mask_holds_every_vector_back(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)
    table_of(unit).mask_all(True)
    ask_something(unit, host)
    seen_masked = vector.has_fired

    table_of(unit).mask_all(False)

    assert not seen_masked
    assert vector.wait()


def test_no_interrupt_comes_where_the_driver_wants_none(open_viommu: OpenViommu, host: Host) -> None:
    unit = open_viommu(msix=True, without=Feature.EVENT_IDX)  # the flag NO_INTERRUPT counts then
    unit.requests.ring.want_interrupts(False)
    vector = request_vector(unit, host)

    ask_something(unit, host)

    assert not vector.has_fired


def test_an_interrupt_comes_where_the_driver_wants_it_again(open_viommu: OpenViommu, host: Host) -> None:
    unit = open_viommu(msix=True, without=Feature.EVENT_IDX)
    unit.requests.ring.want_interrupts(False)
    ask_something(unit, host)
    vector = request_vector(unit, host)

    unit.requests.ring.want_interrupts(True)
    ask_something(unit, host)

    assert vector.wait()


def test_a_fault_does_not_interrupt_where_the_driver_wants_none(
    unit: Viommu, open_accel: OpenAccel, host: Host
) -> None:
    accel = open_accel().start_in(unit)
    for ring in (unit.requests.ring, unit.events.ring):
        ring.want_interrupts(False)
    settle(host)
    for vector in unit.vectors:
        vector.clear()

    accel.run(engine.Operation(engine.CHECKSUM, NOTHING, nbytes=8))
    settle(host)

    assert not any(vector.has_fired for vector in unit.vectors)
    assert unit.wait_fault().address == NOTHING


def test_the_event_index_says_after_how_many_answers_to_interrupt(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)
    unit.requests.ring.want_interrupt_after(3)

    fired = []
    for number in range(5):
        ask_something(unit, host)
        fired.append(vector.wait() if number == 2 else vector.has_fired)

    assert fired == [False, False, True, False, False]


def test_a_queue_without_vector_is_served_and_does_not_interrupt(unit: Viommu, host: Host) -> None:
    granted = unit.transport.queue_vector(REQUEST_QUEUE, NO_VECTOR)
    vector = request_vector(unit, host)

    ask_something(unit, host)

    assert granted == NO_VECTOR
    assert not vector.has_fired


def test_a_vector_the_device_has_not_is_not_granted(unit: Viommu) -> None:
    assert unit.transport.queue_vector(REQUEST_QUEUE, 77) == NO_VECTOR


def test_a_queue_interrupts_by_the_vector_it_was_moved_to(unit: Viommu, machine: dict[str, Any], host: Host) -> None:
    only_with_a_vector_for_each_queue(machine)
    config, requests, events = unit.vectors

    unit.transport.queue_vector(REQUEST_QUEUE, events.number)
    ask_something(unit, host)

    assert events.wait()
    settle(host)
    assert not config.has_fired
    assert not requests.has_fired


def test_a_message_rewritten_while_masked_goes_where_it_says_now(unit: Viommu, dma: DmaArena, host: Host) -> None:
    vector, page = request_vector(unit, host), dma.alloc()
    vector.mask()
    table_of(unit).set_message(vector.number, page.gpa + 64, OTHER_DATA)
    vector.unmask()

    ask_something(unit, host)

    assert wait.until(lambda: any(page.memory), 2.0)
    assert page.read(8, 64) == OTHER_DATA.to_bytes(8, "little")
    assert not vector.has_fired


def test_a_message_to_nowhere_harms_nobody(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)
    table_of(unit).set_message(vector.number, NOWHERE, OTHER_DATA)
    for _ in range(3):
        ask_something(unit, host)

    table_of(unit).program()
    ask_something(unit, host)

    assert vector.wait()


def test_without_bus_master_there_is_no_interrupt(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)
    function = unit.function
    assert hasattr(function, "bus_master")
    unit.requests.ring.post(unit.chain(Probe(endpoint=0xFFFF), nwritable=1024))

    function.bus_master(False)
    unit.requests.publish()
    settle(host)
    seen_without = vector.has_fired
    function.bus_master(True)

    assert not seen_without


def test_a_broken_ring_interrupts_by_the_configuration_vector(unit: Viommu, machine: dict[str, Any]) -> None:
    # D63: a configuration change notification follows DEVICE_NEEDS_RESET; by vhost-user there is no such status
    only_with_a_vector_for_each_queue(machine)
    config = unit.vectors[0]

    unit.requests.ring.post_head(unit.requests.ring.size)
    unit.requests.publish()

    assert config.wait()
    assert unit.is_broken


def test_with_msix_off_there_is_no_message(unit: Viommu, host: Host) -> None:
    vector = request_vector(unit, host)
    control = next(found.offset for found in unit.function.capabilities() if found.id == CAP_MSIX) + 2
    unit.function.write_config(control, 2, 0)

    ask_something(unit, host)

    assert not vector.has_fired
