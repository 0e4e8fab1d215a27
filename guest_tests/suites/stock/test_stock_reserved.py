"""Regions an endpoint must not use: what VFIO lets its user map, where interrupts go, what the device reaches there."""

from __future__ import annotations

import contextlib

import pytest

from guest_tests.payload import accel, checks_device, vfio
from guest_tests.payload.lab import PAGE, Lab
from guest_tests.payload.stock import Machine, Unit

pytestmark = pytest.mark.machines("lazy-*")  # what VFIO does depends on no default domain

MSI_FIRST, MSI_LAST = 0xFEE00000, 0xFEEFFFFF
OWN_FIRST, OWN_LAST = 0x50000000, 0x500FFFFF  # accel0's, from machine.yaml
REGIONS = pytest.mark.parametrize(
    ("first", "last"), [(MSI_FIRST, MSI_LAST), (OWN_FIRST, OWN_LAST)], ids=["msi", "reserved"]
)


@REGIONS
def test_vfio_refuses_to_map_over_any_part_of_the_region(lab: Lab, unit: Unit, first: int, last: int) -> None:
    npages = (last + 1 - first) // PAGE
    buffer = vfio.Buffer(npages * PAGE)
    before = unit.domain_of(lab.bdf)

    for iova, count in [
        (first, 1), (last + 1 - PAGE, 1), (first - PAGE, 2), (last + 1 - PAGE, 2), (first, npages),
    ]:  # fmt: skip
        with pytest.raises(OSError, match="Invalid argument"):
            lab.container.map(iova, buffer, vfio.READ | vfio.WRITE, nbytes=count * PAGE)

    assert unit.domain_of(lab.bdf) == before
    assert unit.state()["counters"]["refused"] == {}  # Linux knows the region from PROBE, and does not even ask


@REGIONS
def test_the_pages_beside_the_region_are_ordinary(lab: Lab, first: int, last: int) -> None:
    below, above = vfio.Buffer(PAGE), vfio.Buffer(PAGE)
    with lab.container.mapped(first - PAGE, below), lab.container.mapped(last + 1, above):
        for number, iova in enumerate((first - PAGE, last + 1)):
            lab.run_ok(accel.Operation(accel.FILL, dst=iova, nbytes=PAGE, arg=0x1111111111111111 * (number + 1)))

    assert below.memory == b"\x11" * PAGE
    assert above.memory == b"\x22" * PAGE


def test_another_endpoint_may_use_what_is_reserved_for_the_first(stock: Machine, lab: Lab) -> None:
    other = lab.accelerators[stock.bdf("accel1")]
    buffer = vfio.Buffer(PAGE)

    with (
        contextlib.closing(vfio.Container(other)) as container,
        container.mapped(OWN_FIRST, buffer),
        pytest.raises(OSError, match="Invalid argument"),
    ):
        container.map(MSI_FIRST, buffer, vfio.READ)


def test_the_interrupt_arrives_through_the_msi_region_with_no_mapping_there(lab: Lab, unit: Unit) -> None:
    since = unit.next_event()

    checks_device.interrupt_arrives(lab)

    assert unit.events("FaultRaised", since) == []


def test_the_device_reads_nothing_from_the_msi_region(lab: Lab) -> None:
    lab.run_refused(accel.Operation(accel.CHECKSUM, src=MSI_FIRST, nbytes=64), MSI_FIRST, accel.READ)


def test_what_the_device_writes_into_the_msi_region_is_not_translated(lab: Lab, unit: Unit) -> None:
    since = unit.next_event()

    completion = lab.engine.run(accel.Operation(accel.FILL, dst=MSI_FIRST, nbytes=4))

    # It goes to the doorbell as it is. That is no RAM, so the accelerator, which is no interrupt, is refused there.
    assert completion.status == accel.UNSUPPORTED_REQUEST
    assert unit.events("FaultRaised", since) == []


@pytest.mark.parametrize(("operation", "access"), [(accel.CHECKSUM, accel.READ), (accel.FILL, accel.WRITE)])
def test_the_device_reaches_nothing_in_a_reserved_region(lab: Lab, operation: int, access: int) -> None:
    lab.run_refused(accel.Operation(operation, src=OWN_FIRST, dst=OWN_FIRST, nbytes=64), OWN_FIRST, access)
