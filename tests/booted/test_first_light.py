"""A stock guest's DMA through vdev: the payload's checks as tests, and what guest kernel and vdev say about them."""

from __future__ import annotations

import re

import pytest

from guest_tests import report
from guest_tests.payload.checks import Check, chosen
from tests.booted.conftest import GuestRun

# Most of the time goes into fetching parts on the first run ever; the boot itself takes seconds.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

CHECKS = chosen([], naccelerators=1, nrngs=1)
REFUSALS = [check for check in CHECKS if check.refusal]
WORKING = [check for check in CHECKS if not check.refusal]


def _sentence(check: Check) -> str:
    return check.title


@pytest.mark.parametrize("check", CHECKS, ids=_sentence)
def test_in_the_guest(check: Check, first_light: GuestRun) -> None:
    record = first_light.run.record(check.name)

    assert record["ok"], "\n".join(report.check_failure(first_light.run, check.name))
    assert record["title"] == check.title
    assert record["detail"]


def test_the_guest_says_done_after_every_check_in_order(first_light: GuestRun) -> None:
    run = first_light.run

    assert run.hello["checks"] == [check.name for check in CHECKS]
    assert [record["check"] for record in run.records] == run.hello["checks"]
    assert run.done == {"done": True, "ok": True, "checks": len(CHECKS), "passed": len(CHECKS)}
    assert run.ok


def test_the_kernel_log_says_that_virtio_iommu_is_bound(first_light: GuestRun) -> None:
    data = first_light.data("driver-bound")

    assert len(data["devices"]) == len(first_light.config.units)
    assert data["function"] == f"0000:{first_light.config.units[0].bdf}"
    assert any(re.search(r"virtio_iommu virtio\d+: input address: 39 bits", line) for line in data["kernel"])


def test_the_accelerator_is_alone_in_its_group_at_the_configured_address(first_light: GuestRun) -> None:
    data = first_light.data("own-group")

    assert data["bdf"] == f"0000:{first_light.endpoints('accelerator')[0].bdf}"
    assert data["groups"][str(data["group"])] == [data["bdf"]]


@pytest.mark.parametrize("check", REFUSALS, ids=_sentence)
def test_the_kernel_log_has_the_fault_line(check: Check, first_light: GuestRun) -> None:
    data = first_light.data(check.name)

    where = f"page fault from EP {first_light.endpoint} at {data['iova']:#x} "
    assert where + ("[W]" if data["access"] == "write" else "[R]") in data["kernel"]


@pytest.mark.parametrize("check", REFUSALS, ids=_sentence)
def test_vdev_records_the_fault_the_guest_saw(check: Check, first_light: GuestRun) -> None:
    data = first_light.data(check.name)

    faults = first_light.run.faults[check.name]

    access = 2 if data["access"] == "write" else 1
    seen = [(fault["endpoint"], fault["iova"], fault["access"], fault["unit"]) for fault in faults]
    assert seen == [(first_light.endpoint, data["iova"], access, first_light.config.units[0].name)]
    assert faults[0]["reason"]


@pytest.mark.parametrize("check", WORKING, ids=_sentence)
def test_vdev_records_no_fault(check: Check, first_light: GuestRun) -> None:
    assert first_light.run.faults[check.name] == []


def test_every_refusal_is_of_another_address_or_access_than_was_allowed(first_light: GuestRun) -> None:
    wanted = {check.name: first_light.data(check.name) for check in REFUSALS}

    assert wanted["read-only-mapping"]["access"] == "write"
    assert wanted["write-only-mapping"]["access"] == "read"
    assert wanted["end-of-mapping"]["iova"] == first_light.data("two-mappings")["boundary"]


def test_the_reset_puts_every_register_back(first_light: GuestRun) -> None:
    registers = first_light.data("reset")["registers"]

    assert registers == first_light.data("opens-through-vfio")["power_on"]
    assert set(registers.values()) == {0}


def test_one_completion_is_one_interrupt(first_light: GuestRun) -> None:
    assert first_light.data("opens-through-vfio")["vectors"] == 2
    assert first_light.data("interrupt")["count"] == 1


def test_map_unmap_and_copy_were_timed(first_light: GuestRun) -> None:
    scattered = first_light.data("scattered-pages")

    assert scattered["cycles"] == 256
    assert 0 < scattered["map_us"] < 1e6
    assert 0 < scattered["unmap_us"] < 1e6
    assert first_light.data("copy")["copy_ms"] > 0


def test_no_mapping_is_left_when_the_guest_has_given_everything_back(first_light: GuestRun) -> None:
    (unit,) = first_light.run.iommu
    functions = unit["functions"]

    assert functions["accel0"]["mappings"] == 0
    assert unit["mappings"] == functions["rng0"]["mappings"]  # a bound driver keeps its ring


def test_every_map_and_unmap_went_through_vdev(first_light: GuestRun) -> None:
    (unit,) = first_light.run.iommu
    requests = unit["counters"]["requests"]

    assert requests["MAP"] > first_light.data("scattered-pages")["cycles"]
    assert requests["UNMAP"] > first_light.data("scattered-pages")["cycles"]
    assert unit["counters"]["faults_dropped"] == 0


def test_the_mappings_of_the_kernels_own_driver_are_counted_for_people(first_light: GuestRun) -> None:
    counts = first_light.run.counts["hwrng"]

    assert counts.domain is not None
    assert counts.live >= 1
    assert (counts.maps > 0, counts.unmaps > 0) == (True, True)
    assert f"rng0 has {counts.live} live mappings" in first_light.run.record("hwrng")["counted"]
