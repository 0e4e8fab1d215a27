"""The fixture `faults`: rules that a test adds, what it learns of them, and that nothing of them is left after it."""

from __future__ import annotations

from typing import Any

import pytest

from guest_tests.payload.direct import Accel, DmaArena, Feature, RequestRefused, Viommu
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenViommu
from guest_tests.payload.host import Host, HostRefused


@pytest.fixture
def managed(open_viommu: OpenViommu) -> Viommu:
    """The unit, for which the host allocates the PASIDs."""
    return open_viommu(also=Feature.PASID | Feature.PASID_ALLOC)


def test_a_driver_that_gets_no_mapping_goes_on(
    viommu: Viommu, mapped_accel: Accel, dma: DmaArena, faults: Faults
) -> None:
    """The example of docs/faults.md."""
    rule = faults.add("request", "status", match={"type": "MAP"}, times=1, status="NOMEM")
    with pytest.raises(RequestRefused):
        viommu.map_buffer(mapped_accel.domain, 0x10000, dma.alloc(4096))
    viommu.map_buffer(mapped_accel.domain, 0x10000, dma.alloc(4096))
    assert rule.fired == 1


def refusals(viommu: Viommu, count: int) -> list[int]:
    """Ask for so many PASIDs; the numbers of those requests that got none, from 1."""
    refused = []
    for number in range(1, count + 1):
        try:
            viommu.pasids.alloc()
        except RequestRefused:
            refused.append(number)
    return refused


def test_a_rule_does_what_it_says_for_the_length_of_a_block(faults: Faults, managed: Viommu) -> None:
    with faults.injected("pasid", "exhausted", when={"nth": 2}) as rule:
        during = refusals(managed, 3)

    assert (during, refusals(managed, 3)) == ([2], [])
    assert (rule.matched, rule.fired, rule.held) == (3, 1, 0)


def test_firings_are_logged_with_rule_and_what_they_hit(faults: Faults, managed: Viommu) -> None:
    rule = faults.add("pasid", "exhausted", id="none-left", match={"unit": "iommu0"}, times=2)

    refusals(managed, 3)

    log = rule.log()
    assert [(one["rule"], one["n"], one["at"], one["do"]) for one in log] == [
        ("none-left", 1, "pasid", "exhausted"), ("none-left", 2, "pasid", "exhausted"),
    ]  # fmt: skip
    assert log[0]["fields"]["unit"] == "iommu0"
    assert log == faults.log()


def test_the_same_seed_does_the_same_to_the_same_traffic(faults: Faults, managed: Viommu) -> None:
    def played(seed: int) -> list[int]:
        faults.seed(seed)
        with faults.injected("pasid", "exhausted", id="at-random", when={"probability": 0.5}):
            return refusals(managed, 20)

    first, other, again = played(7), played(8), played(7)

    assert first == again
    assert first != other


def test_a_rule_of_an_earlier_one_s_name_begins_anew(faults: Faults, managed: Viommu) -> None:
    with faults.injected("pasid", "exhausted", id="same"):
        refusals(managed, 2)
    rule = faults.add("pasid", "exhausted", id="same")

    assert (rule.fired, rule.log()) == (0, [])
    assert len(faults.log()) == 2


def test_a_plan_is_added_as_a_whole_or_not_at_all(faults: Faults) -> None:
    good: dict[str, Any] = {"at": "request", "do": "drop"}
    rules = faults.load({"seed": 9, "rules": [good, {**good, "id": "second"}]})

    with pytest.raises(HostRefused, match=r"faults\.rules\[second\]\.id"):
        faults.load({"rules": [{**good, "id": "third"}, {**good, "id": "second"}]})

    assert [rule.fired for rule in rules] == [0, 0]
    assert faults.clear()["removed"] == 2


def test_what_is_refused_says_why(faults: Faults) -> None:
    with pytest.raises(HostRefused, match="no action at the point event"):
        faults.add("event", "status")


@pytest.fixture
def leaves_rules(faults: Faults) -> None:
    """Somebody who does not clean up."""
    faults.add("request", "drop", match={"type": "PROBE"}, when={"nth": 1000})
    faults.seed(5)


@pytest.mark.usefixtures("leaves_rules")
def test_nothing_is_left_of_a_test_with_rules(host: Host) -> None:
    assert len(host.control("query-fault-plan")["rules"]) == 1


def test_nothing_was_left(host: Host) -> None:
    plan = host.control("query-fault-plan")

    assert (plan["rules"], plan["seed"]) == ([], 0)
