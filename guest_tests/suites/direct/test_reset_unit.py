"""Resets of the IOMMU: DMA of its endpoints stops first, domains go, the bypass byte stays, and all works anew.

By vhost-user the unit learns of a reset at the next start; until then its endpoints stand still (docs/attachments.md).
"""

from __future__ import annotations

from typing import Any

import pytest

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    READ,
    Accel,
    DmaArena,
    PciFunction,
    RequestRefused,
    Viommu,
    wait,
)
from guest_tests.payload.direct.wire import Map
from guest_tests.payload.host import Host

SOURCE, TARGET, PAGE = 0x1_0000, 0x2_0000, 4096
MIB = 1 << 20


def settle(host: Host) -> None:
    """Whatever the device still had to do is done when it has answered the host."""
    host.control("query-status")


def function_of(viommu: Viommu) -> PciFunction:
    """The unit's function, with all its methods."""
    assert isinstance(viommu.function, PciFunction)
    return viommu.function


def test_no_byte_lands_after_a_reset_under_load(viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host) -> None:
    target = dma.alloc(2 * MIB)
    viommu.map_buffer(mapped_accel.domain, 2 * MIB, target)
    work = [Operation(engine.FILL, dst=2 * MIB, nbytes=2 * MIB, arg=number) for number in range(1, 41)]
    mapped_accel.engine.submit(*work)

    viommu.transport.reset()
    just_after = target.read()
    settle(host)

    assert target.read() == just_after


def test_a_reset_under_load_leaves_operations_undone_and_says_stopped(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena
) -> None:
    target = dma.alloc(2 * MIB)
    for number in range(16):  # the same memory again and again: an operation takes long
        viommu.map_buffer(mapped_accel.domain, (64 + 2 * number) * MIB, target)
    work = [Operation(engine.FILL, dst=64 * MIB, nbytes=32 * MIB, arg=number) for number in range(1, 61)]
    last = mapped_accel.engine.submit(*work)

    viommu.start()

    assert (mapped_accel.is_running, mapped_accel.error) == (False, engine.ERROR_STOPPED)
    assert mapped_accel.engine.status_of(last) == engine.PENDING


def test_between_reset_and_start_an_endpoint_bypasses_or_stands_still(
    viommu: Viommu, accel: Accel, dma: DmaArena, machine: dict[str, Any], host: Host
) -> None:
    target = dma.alloc(PAGE)
    viommu.transport.reset()

    accel.start()
    index = accel.engine.submit(Operation(engine.FILL, dst=target.gpa, nbytes=PAGE, arg=(1 << 64) - 1))

    if machine["attach"] == "vfio-user":
        assert wait.until(lambda: accel.engine.status_of(index) == engine.OK, 2.0)
        assert target.read() == b"\xff" * PAGE
    else:
        settle(host)
        assert accel.engine.status_of(index) == engine.PENDING
        assert not any(target.read())


def test_no_answer_is_written_after_a_reset_with_requests_in_flight(viommu: Viommu, accel: Accel, host: Host) -> None:
    viommu.attach(domain=1, endpoint=accel.endpoint)
    queue = viommu.requests
    for number in range(100):
        queue.ring.post(viommu.chain(a_map(number)))
    queue.publish()

    viommu.transport.reset()
    just_after = queue.ring.buffer.read()
    settle(host)

    assert queue.ring.buffer.read() == just_after


def test_a_reset_with_requests_in_flight_leaves_nothing_of_them(viommu: Viommu, accel: Accel, dma: DmaArena) -> None:
    viommu.attach(domain=1, endpoint=accel.endpoint)
    for number in range(100):
        viommu.requests.ring.post(viommu.chain(a_map(number)))
    viommu.requests.publish()

    viommu.start()
    viommu.attach(domain=1, endpoint=accel.endpoint)

    viommu.map(domain=1, iova=SOURCE, gpa=dma.alloc(PAGE).gpa, nbytes=100 * PAGE)  # overlaps with none


def a_map(number: int) -> Map:
    """One of many mappings of a page."""
    start = SOURCE + number * PAGE
    return Map(domain=1, virt_start=start, virt_end=start + PAGE - 1, phys_start=0, flags=READ)


def test_a_unit_that_was_reset_translates_again(viommu: Viommu, mapped_accel: Accel, dma: DmaArena) -> None:
    viommu.start()
    source, target = dma.random(PAGE), dma.alloc(PAGE)
    mapped_accel.start_in(viommu, domain=3)
    viommu.map_buffer(3, SOURCE, source)
    viommu.map_buffer(3, TARGET, target)

    mapped_accel.copy(SOURCE, TARGET, PAGE)

    assert target.read() == source.read()


def test_ten_resets_in_a_row_do_no_harm(viommu: Viommu, accel: Accel) -> None:
    for _ in range(10):
        viommu.start()
        viommu.attach(domain=1, endpoint=accel.endpoint)

    accel.start_in(viommu, domain=1)
    accel.nop()


def test_a_reset_while_reset_is_no_error(viommu: Viommu) -> None:
    viommu.transport.reset()
    viommu.transport.reset()

    viommu.start()

    assert viommu.config.granule == PAGE


def test_a_function_level_reset_of_the_unit_stops_its_endpoints(viommu: Viommu, mapped_accel: Accel) -> None:
    flr_of(viommu)
    viommu.start()  # by vhost-user the unit hears of it here

    assert (mapped_accel.is_running, mapped_accel.error) == (False, engine.ERROR_STOPPED)


def test_a_function_level_reset_of_the_unit_is_a_device_reset(blocking: Viommu, accel: Accel) -> None:
    # D6, D9
    blocking.attach(domain=1, endpoint=accel.endpoint)

    flr_of(blocking)
    blocking.start()

    assert not blocking.bypass
    with pytest.raises(RequestRefused):
        blocking.detach(domain=1, endpoint=accel.endpoint)


def flr_of(viommu: Viommu) -> None:
    """Reset the unit's function, where it can be."""
    if not function_of(viommu).has_flr():
        pytest.skip("QEMU's device for vhost-user has no function-level reset on the root bus")
    function_of(viommu).flr()


def test_bus_master_off_holds_requests_and_on_lets_them_be_served(
    viommu: Viommu, accel: Accel, machine: dict[str, Any], host: Host
) -> None:
    function, queue = function_of(viommu), viommu.requests
    viommu.attach(domain=1, endpoint=accel.endpoint)
    queue.ring.post(viommu.chain(a_map(0)))
    function.bus_master(False)
    queue.publish()
    settle(host)
    early = queue.ring.has_used

    function.bus_master(True)
    if machine["attach"] == "vhost-user":
        viommu.transport.driver_ok()  # QEMU took DRIVER_OK away with bus mastering
    queue.kick()

    (used,) = queue.wait_used(1)
    assert not early
    assert used.nbytes == 4
