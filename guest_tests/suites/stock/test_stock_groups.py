"""What the stock kernel makes of VIOT, of PROBE and of its own command line: IOMMU groups and their domains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest_tests.payload import guest
from guest_tests.payload.guest import KernelLog, endpoint_id, link_name, read_text
from guest_tests.payload.stock import PCI, VIRTIO_IOMMU, Machine, Unit, driver_of, group_of, newest_kernel

TYPES = {"strict": "DMA", "lazy": "DMA-FQ", "passthrough": "identity"}
ACCELERATORS = ["accel0", "accel1"]


@pytest.fixture(scope="module")
def taken(stock: Machine) -> Iterator[None]:
    """The accelerators are held by vfio-pci: some kernels group only functions that have a driver."""
    for name in ACCELERATORS:
        guest.bind_driver(stock.bdf(name), "vfio-pci")
    yield
    for name in ACCELERATORS:
        guest.unbind_driver(stock.bdf(name))


def test_the_driver_logs_the_width_of_the_input_range_and_the_granule(stock: Machine, kernel_log: KernelLog) -> None:
    (device,) = [entry.name for entry in VIRTIO_IOMMU.iterdir() if entry.name.startswith("virtio")]
    (unit,) = stock.facts["units"]

    width, granules = kernel_log.find(f"virtio_iommu {device}: ")[-2:]

    assert width.endswith(f"input address: {unit['input_range'][1].bit_length()} bits")
    assert granules.endswith("page mask: 0xfffffffffffff000")


def test_the_unit_is_attached_as_the_machine_asks(stock: Machine, unit: Unit) -> None:
    assert unit.state()["attach"] == stock.facts["attach"]


def test_the_unit_itself_is_behind_no_iommu(stock: Machine) -> None:
    assert driver_of(stock.bdf("iommu0")) == "virtio-pci"
    assert group_of(stock.bdf("iommu0")) is None


def test_nothing_but_our_endpoints_is_in_a_group(stock: Machine, taken: None) -> None:
    grouped = [entry.name for entry in PCI.joinpath("devices").iterdir() if group_of(entry.name) is not None]

    assert sorted(grouped) == [stock.bdf(endpoint["name"]) for endpoint in stock.facts["endpoints"]]


def test_newer_kernels_group_endpoints_when_the_unit_registers_and_older_ones_when_a_driver_asks(
    stock: Machine, kernel_log: KernelLog
) -> None:
    undriven = [name for name in ACCELERATORS if kernel_log.find(f"] pci {stock.bdf(name)}: Adding to iommu group")]

    assert undriven == (ACCELERATORS if newest_kernel() else [])


@pytest.mark.parametrize("name", [*ACCELERATORS, "rng0"])
def test_the_group_is_of_the_type_the_command_line_asks_for(stock: Machine, taken: None, name: str) -> None:
    group = group_of(stock.bdf(name))

    assert group is not None
    assert group.type == TYPES[stock.mode]  # even while VFIO has the function: its domain is not the group's default


@pytest.mark.parametrize("name", [*ACCELERATORS, "rng0"])
def test_every_endpoint_is_alone_in_its_group_and_names_its_unit(stock: Machine, taken: None, name: str) -> None:
    bdf = stock.bdf(name)

    group = group_of(bdf)

    assert group is not None
    assert group.members == (bdf,)
    assert link_name(PCI / "devices" / bdf / "iommu") == stock.bdf("iommu0")


@pytest.mark.parametrize("name", [*ACCELERATORS, "rng0"])
def test_the_reserved_regions_are_those_of_the_configuration(stock: Machine, taken: None, name: str) -> None:
    group = group_of(stock.bdf(name))

    assert group is not None
    assert list(group.reserved) == stock.reserved(name)
    assert (0xFEE00000, 0xFEEFFFFF, "msi") in group.reserved


def test_a_translated_group_has_a_domain_of_its_own_and_an_identity_group_a_bypass_domain(
    stock: Machine, unit: Unit
) -> None:
    domain = unit.domain_of(stock.bdf("rng0"))

    assert domain is not None
    assert domain.bypass == (stock.mode == "passthrough")
    assert endpoint_id(stock.bdf("rng0")) in domain.endpoints
    assert domain.bypass or domain.endpoints == (endpoint_id(stock.bdf("rng0")),)


def test_the_kernel_says_which_of_the_three_it_chose(stock: Machine, kernel_log: KernelLog) -> None:
    kind = "Passthrough" if stock.mode == "passthrough" else "Translated"
    policy = {"strict": "strict", "lazy": "lazy"}

    assert kernel_log.find(f"iommu: Default domain type: {kind}")
    assert stock.mode not in policy or kernel_log.find(f"TLB invalidation policy: {policy[stock.mode]} mode")
    assert read_text(PCI / "devices" / stock.bdf("rng0") / "iommu_group/type") == TYPES[stock.mode]
