"""Every example in configs/ boots a stock guest and passes the guest's checks; `make demo` runs first-light itself."""

from __future__ import annotations

import os

import pytest

from guest_tests import report
from guest_tests.boot import mapping_counts
from tests.booted.conftest import CONFIG, CONFIGS, GuestRun, boot_guest
from vdev.wire.viommu import F_BYPASS_CONFIG
from vdev.wire.viommu_pasid import FEATURES

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

EXAMPLES = [
    "two-units", "two-attachments", "strict-byte-granule", "vhost-user", "several-cpus", "hot-plug", "isolated",
    "pasids", "faults",
]  # fmt: skip
OF_RECIPES = ["on-root-bus"]  # run by test_recipes
MSI_REGION = "0x00000000fee00000 0x00000000feefffff msi"
OUTSIDE_APERTURE = "0x0000008000000000 0xffffffffffffffff reserved"


@pytest.fixture(scope="module")
def two_units() -> GuestRun:
    return boot_guest(CONFIGS / "two-units.yaml")


@pytest.fixture(scope="module")
def strict_byte_granule() -> GuestRun:
    return boot_guest(CONFIGS / "strict-byte-granule.yaml")


@pytest.fixture(scope="module")
def several_cpus() -> GuestRun:
    """With the two processors of the machines we test on, unless there is time: emulated ones take turns."""
    changes = {} if os.environ.get("VDEV_TIER") == "soak" else {"cpus": 2}
    return boot_guest(CONFIGS / "several-cpus.yaml", changes=changes)


@pytest.fixture(scope="module")
def vhost_user() -> GuestRun:
    return boot_guest(CONFIGS / "vhost-user.yaml")


@pytest.fixture(scope="module")
def hot_plug() -> GuestRun:
    """Its accelerator keeps its MSI-X table itself."""
    return boot_guest(CONFIGS / "hot-plug.yaml")


@pytest.fixture(scope="module")
def two_attachments() -> GuestRun:
    """Without isolation, to see a stock guest on both attachments under each policy: others are `preferred`."""
    return boot_guest(CONFIGS / "two-attachments.yaml", changes={"isolation": "off"})


@pytest.fixture(scope="module")
def isolated() -> GuestRun:
    """`isolation: required`, on both attachments."""
    return boot_guest(CONFIGS / "isolated.yaml")


@pytest.fixture(scope="module")
def pasids() -> GuestRun:
    """With a PASID of the host's own."""
    return boot_guest(CONFIGS / "pasids.yaml")


@pytest.fixture(scope="module")
def faults() -> GuestRun:
    """With a plan of faults that a guest gets over."""
    return boot_guest(CONFIGS / "faults.yaml")


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> GuestRun:
    """Each example in turn."""
    booted = request.getfixturevalue(request.param.replace("-", "_"))
    assert isinstance(booted, GuestRun)
    return booted


def test_every_example_is_run_by_a_test() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted([CONFIG.stem, *EXAMPLES, *OF_RECIPES])


def test_every_check_passes_in_the_guest(example: GuestRun) -> None:
    run = example.run

    assert run.ok, "\n".join(report.failure(run))
    assert [record["check"] for record in run.records] == example.checks


def test_the_stock_driver_holds_every_unit(example: GuestRun) -> None:
    log = example.data("driver-bound")["kernel"]

    wanted = [f"input address: {unit.input_range[1].bit_length()} bits" for unit in example.config.units]
    for words in wanted:
        assert sum(words in line for line in log) == wanted.count(words)
    assert len(example.data("driver-bound")["devices"]) == len(example.config.units)


def test_every_accelerator_is_alone_in_its_group_and_its_regions_arrived(example: GuestRun) -> None:
    data = example.data("own-group")

    addresses = sorted(f"0000:{endpoint.bdf}" for endpoint in example.config.endpoints)
    assert sorted(data["groups"].values()) == [[address] for address in addresses]
    assert sorted(data["reserved"]) == addresses
    assert all(MSI_REGION in regions for regions in data["reserved"].values())


def test_every_fault_is_of_the_unit_in_front_of_the_endpoint(example: GuestRun) -> None:
    faults = [fault for found in example.run.faults.values() for fault in found]

    assert {fault["endpoint"] for fault in faults} == set(example.units_by_endpoint)
    assert all(fault["unit"] == example.units_by_endpoint[fault["endpoint"]] for fault in faults)


def test_every_unit_did_its_endpoints_work_and_keeps_no_mapping(example: GuestRun) -> None:
    counts = mapping_counts(example.run.iommu)
    units = {unit["unit"]: unit for unit in example.run.iommu}

    assert set(counts.values()) == {0}
    assert {name: unit["attach"] for name, unit in units.items()} == {
        unit.name: unit.attach for unit in example.config.units
    }
    for unit in units.values():
        assert unit["counters"]["requests"]["MAP"] > 0
        assert unit["counters"]["refused"] == {}
        assert all(function["completed"] == 0 for function in unit["functions"].values()), "reset when given back"


def test_without_isolation_every_endpoint_bypasses_until_linux_attaches_it(two_attachments: GuestRun) -> None:
    for unit in two_attachments.run.iommu:
        assert (unit["isolation"], unit["bypass"], unit["force-aperture"]) == ("off", True, False)


def test_under_required_a_stock_guest_finds_no_way_around(isolated: GuestRun) -> None:
    regions = isolated.data("own-group")["reserved"].values()

    for unit in isolated.run.iommu:
        assert (unit["isolation"], unit["bypass"], unit["force-aperture"]) == ("required", False, True)
        assert not unit["features"]["offered"] & F_BYPASS_CONFIG
        assert not any(domain["bypass"] for domain in unit["domains"])
    assert all(OUTSIDE_APERTURE in of_one for of_one in regions)


def test_a_stock_guest_sees_nothing_of_pasids_that_are_offered(pasids: GuestRun) -> None:
    (unit,) = pasids.run.iommu

    assert unit["features"]["offered"] & FEATURES == FEATURES
    assert not unit["features"]["accepted"] & FEATURES
    assert (unit["pasids"]["mode"], unit["pasids"]["allocated"]) == ("not-negotiated", 0)
    assert unit["pasids"]["pairs"] == 1  # the host's own, of accel0


def test_every_rule_of_the_plan_did_something_and_the_guest_got_over_it(faults: GuestRun) -> None:
    assert faults.config.faults is not None
    wanted = {rule["id"] for rule in faults.config.faults.rules}

    assert {event["rule"] for event in faults.run.injected} == wanted


@pytest.mark.parametrize("name", ["two_units", "two_attachments"])
def test_accelerators_of_two_units_share_addresses_and_nothing_else(name: str, request: pytest.FixtureRequest) -> None:
    booted: GuestRun = request.getfixturevalue(name)
    refusals = booted.data("several")["refusals"]
    recorded = booted.run.faults["several"]

    assert len({booted.units_by_endpoint[refusal["endpoint"]] for refusal in refusals}) == 2
    assert {refusal["endpoint"] for refusal in refusals} == set(booted.units_by_endpoint)
    assert len({refusal["iova"] for refusal in refusals}) == 1
    assert [(fault["endpoint"], fault["iova"]) for fault in recorded] == [
        (refusal["endpoint"], refusal["iova"]) for refusal in refusals
    ]
    assert all(f"page fault from EP {refusal['endpoint']} " in refusal["kernel"] for refusal in refusals)


def test_a_strict_unit_with_single_byte_granule_serves_a_stock_guest(strict_byte_granule: GuestRun) -> None:
    (unit,) = strict_byte_granule.run.iommu
    log = strict_byte_granule.data("driver-bound")["kernel"]
    (regions,) = strict_byte_granule.data("own-group")["reserved"].values()

    assert unit["mode"] == "strict"
    assert any("page mask: 0xffffffffffffffff" in line for line in log)
    assert "0x0000000000001000 0x00000000000017ff reserved" in regions


def test_every_vcpu_of_the_machine_is_there(several_cpus: GuestRun) -> None:
    assert several_cpus.run.hello["cpus"] == several_cpus.config.vm.cpus
