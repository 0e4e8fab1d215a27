"""What an accelerator's accesses are refused for: each reason counts once, and once only, where the host can see it.

Table and test of the same in process: tests/integration/test_refusals.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asking import NO_RAM

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import (
    READ,
    WRITE,
    Accel,
    DmaArena,
    EngineStopped,
    Fault,
    Reason,
    UnsupportedRequest,
    Viommu,
    wait,
)
from guest_tests.payload.fixtures import OpenAccel, OpenViommu
from guest_tests.payload.host import Host

SOURCE, TARGET, NOTHING, PAGE = 0x1_0000, 0x2_0000, 0x70_0000, 4096
NEAR, FAR = "accel0", "accel2"  # names of the first accelerators behind each unit
MSI_START = 0xFEE0_0000
APERTURE_STOP = 1 << 32  # of the second unit, which has force_aperture


def counts(host: Host, endpoint: str = NEAR) -> dict[str, int]:
    """By reason, since the machine started."""
    (found,) = host.control("query-endpoints", endpoint=endpoint)
    return {count["name"]: count["count"] for count in found["dma-refused"]}


def moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Those that moved, and by how much."""
    return {reason: count - before.get(reason, 0) for reason, count in after.items() if count != before.get(reason, 0)}


def fill(iova: int) -> Callable[[Accel], object]:
    return lambda accel: accel.run(Operation(engine.FILL, dst=iova, nbytes=8))


def checksum(iova: int) -> Callable[[Accel], object]:
    return lambda accel: accel.run(Operation(engine.CHECKSUM, iova, nbytes=8))


REFUSED: dict[str, tuple[Callable[[Accel], object], int]] = {
    "outside-input-range": (checksum(1 << 39), READ),
    "not-mapped": (fill(NOTHING), WRITE),
    "no-read": (checksum(TARGET), READ),
    "no-write": (fill(SOURCE), WRITE),
    "reserved": (checksum(MSI_START), READ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_access_the_iommu_refuses_counts_once_under_its_reason(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host, reason: str
) -> None:
    viommu.map_buffer(mapped_accel.domain, SOURCE, dma.alloc(PAGE), READ)
    viommu.map_buffer(mapped_accel.domain, TARGET, dma.alloc(PAGE), WRITE)
    operation, access = REFUSED[reason]
    before = counts(host)

    operation(mapped_accel)

    assert moved(before, counts(host)) == {reason: 1}
    fault = viommu.wait_fault()
    assert (fault.reason, fault.access) == (Reason.MAPPING, access)


def test_an_unattached_endpoint_counts_no_domain(blocking: Viommu, accel: Accel, host: Host) -> None:
    accel.start()
    before = counts(host)

    with pytest.raises(EngineStopped):
        accel.nop()

    assert moved(before, counts(host)) == {"no-domain": 1}
    assert blocking.wait_fault().reason == Reason.DOMAIN


def test_translated_and_not_ram_counts_an_unsupported_request(viommu: Viommu, mapped_accel: Accel, host: Host) -> None:
    viommu.map(domain=mapped_accel.domain, iova=SOURCE, gpa=NO_RAM, nbytes=PAGE)
    before = counts(host)

    with pytest.raises(UnsupportedRequest):
        mapped_accel.checksum(SOURCE, 8)

    assert moved(before, counts(host)) == {"unsupported-request": 1}
    assert viommu.faults() == []


def test_force_aperture_ends_what_bypasses_with_the_input_range(
    open_viommu: OpenViommu, open_accel: OpenAccel, host: Host
) -> None:
    other, far = open_viommu(1), open_accel(2).start()
    assert other.bypass
    before = counts(host, FAR)

    with far.refused(APERTURE_STOP, READ):
        far.checksum(APERTURE_STOP - 8, 16)

    assert moved(before, counts(host, FAR)) == {"outside-input-range": 1}
    assert other.wait_fault() == Fault(Reason.MAPPING, READ, far.endpoint, APERTURE_STOP)


def test_work_that_comes_while_dma_is_frozen_counts_once_and_is_done_later(mapped_accel: Accel, host: Host) -> None:
    before = counts(host)
    host.control("freeze", by="a test")
    try:
        index = mapped_accel.engine.submit(Operation(engine.NOP))
        held = moved(before, counts(host))
        status = mapped_accel.engine.status_of(index)
    finally:
        host.control("thaw", by="a test")

    assert (held, status) == ({"frozen": 1}, engine.PENDING)
    assert wait.until(lambda: mapped_accel.engine.status_of(index) == engine.OK, 5.0)
    assert moved(before, counts(host)) == {"frozen": 1}


def test_an_operation_under_way_at_a_stop_counts_once_and_goes_on(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, host: Host
) -> None:
    target = dma.alloc(1 << 20)
    for number in range(32):  # the same memory again and again: an operation takes long
        viommu.map_buffer(mapped_accel.domain, (64 + number) << 20, target)
    last = mapped_accel.engine.submit(*[Operation(engine.FILL, dst=64 << 20, nbytes=32 << 20)] * 50)

    before, stopped, after = host.step("refusals_during_stop", endpoint=NEAR)

    assert moved(before, stopped) == moved(before, after) == {"frozen": 1}
    assert wait.until(lambda: mapped_accel.engine.status_of(last) != engine.PENDING, 20.0)
    assert mapped_accel.engine.status_of(last) == engine.OK


def test_work_that_bus_master_off_ends_counts_once(mapped_accel: Accel, host: Host) -> None:
    host.control("freeze", by="a test")
    try:
        before = counts(host)
        mapped_accel.engine.submit(Operation(engine.NOP))
        mapped_accel.function.bus_master(False)
        after = counts(host)
    finally:
        host.control("thaw", by="a test")
        mapped_accel.function.bus_master(True)

    assert moved(before, after) == {"frozen": 1, "bus-master-off": 1}
    assert mapped_accel.error == engine.ERROR_BUS_MASTER_OFF
