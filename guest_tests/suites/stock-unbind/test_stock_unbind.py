"""The virtio-iommu function loses its driver and gets it again, while no endpoint has one."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest_tests.payload import accel, guest
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import SOURCE_IOVA, copy
from guest_tests.payload.stock import (
    PCI,
    VIRTIO_IOMMU,
    Machine,
    Unit,
    driver_of,
    group_of,
    newest_kernel,
    within,
    write_in_child,
)
from guest_tests.payload.stock_fixtures import opened_lab

# The other thread is the watch over the test's time; the child only writes to sysfs.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ACCELERATORS = ["accel0", "accel1"]
CLASS = guest.SYS / "class/iommu"
REBIND_S = 10.0
NTIMES = 3


@dataclass(frozen=True)
class Way:
    """A driver that can be taken from the unit: its directory in sysfs, and the device's name there."""

    driver: Path
    device: str

    def unbind(self) -> int:
        """How the write ended; see `write_in_child`."""
        return write_in_child(self.driver / "unbind", self.device)

    def bind(self) -> int:
        """Likewise."""
        return write_in_child(self.driver / "bind", self.device)


def bound() -> list[str]:
    """The virtio devices that virtio_iommu holds."""
    return [entry.name for entry in VIRTIO_IOMMU.iterdir() if entry.name.startswith("virtio")]


@pytest.fixture(params=["virtio_iommu", "virtio-pci"])
def way(request: pytest.FixtureRequest, stock: Machine) -> Way:
    """The driver of the virtio device, or the one of the PCI function under it."""
    if request.param == "virtio_iommu":
        return Way(VIRTIO_IOMMU, bound()[0])
    return Way(PCI / "drivers/virtio-pci", stock.bdf("iommu0"))


@pytest.fixture
def ungrouped(stock: Machine) -> Iterator[None]:
    """No endpoint is in a group: where the kernel has made one, the function is taken off the bus for the test."""
    taken = [bdf for bdf in map(stock.bdf, ACCELERATORS) if group_of(bdf) is not None]
    for bdf in taken:
        (PCI / "devices" / bdf / "remove").write_text("1")
    yield
    (PCI / "rescan").write_text("1")


def back_on_the_bus() -> None:
    """Have the kernel find again what `ungrouped` took."""
    (PCI / "rescan").write_text("1")


def bind_to_vfio(bdf: str) -> int:
    """The errno of the attempt, or 0; that is not to say that vfio-pci has it then."""
    try:
        guest.bind_driver(bdf, "vfio-pci")
    except OSError as error:
        return error.errno or -1
    return 0


def test_the_unit_without_its_driver_is_reset_and_gone_from_sysfs(
    stock: Machine, ungrouped: None, way: Way, unit: Unit
) -> None:
    before = unit.state()

    unbound = way.unbind()
    without, classes, holding = unit.state(), os.listdir(CLASS), bound()
    rebound = way.bind()

    assert (unbound, rebound) == (0, 0)
    assert (classes, holding) == ([], [])
    # Over vhost-user nobody tells us of a driver's reset: what was accepted counts until another driver starts.
    left = 0 if stock.facts["attach"] == "vfio-user" else before["features"]["accepted"]
    assert (without["features"]["accepted"], without["domains"]) == (left, [])
    assert within(REBIND_S, lambda: os.listdir(CLASS) == [stock.bdf("iommu0")])
    assert unit.state()["features"] == before["features"]


def test_every_time_it_is_bound_again_dma_works_and_is_refused_as_ever(
    ungrouped: None, way: Way, kernel_log: KernelLog
) -> None:
    mark = kernel_log.mark()

    for _ in range(NTIMES):
        assert way.unbind() == 0
        assert way.bind() == 0
        assert within(REBIND_S, lambda: bool(bound()))
    back_on_the_bus()

    assert kernel_log.find("virtio_iommu", "device removed", since=mark)
    assert kernel_log.find("virtio_iommu", "input address: 39 bits", since=mark)
    with opened_lab(kernel_log) as lab:
        content = lab.randomise_source()
        with lab.both_mapped():
            lab.run_ok(copy())
        assert lab.target.memory == content
        lab.run_refused(copy(), SOURCE_IOVA, accel.READ)


@pytest.mark.machines("vfio-user*")  # behind vhost-user the bit is QEMU's
def test_a_unit_that_needs_a_reset_has_it_when_its_driver_is_bound_again(
    ungrouped: None, way: Way, kernel_log: KernelLog, faults: Faults
) -> None:
    mark = kernel_log.mark()

    faults.add("timer", "needs-reset", function="iommu0")
    told = kernel_log.wait_for("virtio_iommu", "config changed", since=mark)
    ended = way.unbind(), way.bind()
    assert within(REBIND_S, lambda: bool(bound()))
    back_on_the_bus()

    assert told is not None
    assert ended == (0, 0)
    with opened_lab(kernel_log) as lab, lab.both_mapped():
        lab.run_ok(copy())


def test_vfio_takes_no_endpoint_before_the_unit_has_its_driver_again(
    stock: Machine, ungrouped: None, way: Way, unit: Unit
) -> None:
    bdf = stock.bdf("accel0")
    assert way.unbind() == 0
    back_on_the_bus()

    refused = bind_to_vfio(bdf)
    meanwhile = driver_of(bdf), group_of(bdf)
    assert way.bind() == 0
    assert within(REBIND_S, lambda: bool(bound()))
    bind_to_vfio(bdf)
    afterwards, domain = group_of(bdf), unit.domain_of(bdf)
    guest.unbind_driver(bdf)

    # vfio-pci wants a group. Soon after boot newer kernels put the probe off instead, and fail later.
    assert refused in ((0, errno.EINVAL) if newest_kernel() else (errno.EINVAL,))
    assert meanwhile == (None, None)
    assert afterwards is not None
    assert domain is not None


def test_with_an_endpoint_in_a_group_linux_itself_goes_wrong(stock: Machine, unit: Unit, kernel_log: KernelLog) -> None:
    bdf = stock.bdf("accel0")
    guest.bind_driver(bdf, "vfio-pci")
    guest.unbind_driver(bdf)  # the group stays
    mark = kernel_log.mark()
    before = unit.state()

    ended = Way(VIRTIO_IOMMU, bound()[0]).unbind()
    after = unit.state()

    # viommu_remove takes its sysfs device away before the endpoints' links to it. A kernel without that is fine, too.
    if ended == -signal.SIGKILL:
        assert kernel_log.find("BUG: kernel NULL pointer dereference", since=mark)
        assert kernel_log.find("iommu_deinit_device", since=mark)
        assert after["domains"] == before["domains"] != []  # nothing of it came to the device
    else:
        assert ended == 0
        assert (after["domains"], bound()) == ([], [])
