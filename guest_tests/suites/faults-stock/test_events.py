"""Fault records that are lost, doubled, late or strange, and too many of them: what the kernel's log says."""

from __future__ import annotations

import pytest

from guest_tests.payload import accel
from guest_tests.payload.accel import Operation
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog, endpoint_id
from guest_tests.payload.lab import NOWHERE_IOVA, PAGE, Lab
from guest_tests.payload.stock import Unit, within

pytestmark = pytest.mark.usefixtures("talkative")

OTHER_IOVA = NOWHERE_IOVA + PAGE
OF_ACCEL = {"endpoint": "accel0"}
FLOOD_S = 10.0
SILENCE_S = 20.0


def fault_at(lab: Lab, iova: int) -> None:
    """Have the accelerator write where nothing is mapped."""
    assert lab.engine.run(Operation(accel.FILL, dst=iova, nbytes=64)).status == accel.TRANSLATION_FAULT


def line(lab: Lab, iova: int, words: str = "page fault") -> str:
    """What virtio_iommu says of it."""
    return f"{words} from EP {endpoint_id(lab.bdf)} at {iova:#x} [W]"


def test_of_a_dropped_record_nothing_is_said_and_the_next_is_told(
    lab: Lab, faults: Faults, kernel_log: KernelLog
) -> None:
    mark = kernel_log.mark()
    with faults.injected("event", "drop", match=OF_ACCEL):
        fault_at(lab, NOWHERE_IOVA)
    fault_at(lab, OTHER_IOVA)

    assert kernel_log.wait_for(line(lab, OTHER_IOVA), since=mark) is not None
    assert kernel_log.find(line(lab, NOWHERE_IOVA), since=mark) == []


def test_a_record_that_comes_twice_is_told_twice(lab: Lab, faults: Faults, kernel_log: KernelLog) -> None:
    mark = kernel_log.mark()
    with faults.injected("event", "duplicate", match=OF_ACCEL):
        fault_at(lab, NOWHERE_IOVA)
    fault_at(lab, OTHER_IOVA)

    assert kernel_log.wait_for(line(lab, OTHER_IOVA), since=mark) is not None
    assert len(kernel_log.find(line(lab, NOWHERE_IOVA), since=mark)) == 2


def test_a_record_that_comes_late_is_told_late(lab: Lab, faults: Faults, kernel_log: KernelLog) -> None:
    mark = kernel_log.mark()
    rule = faults.add("event", "delay", match=OF_ACCEL, times=1, seconds=60)
    fault_at(lab, NOWHERE_IOVA)
    fault_at(lab, OTHER_IOVA)
    other = kernel_log.wait_for(line(lab, OTHER_IOVA), since=mark)
    meanwhile = kernel_log.find(line(lab, NOWHERE_IOVA), since=mark)
    rule.release()

    assert (other is not None, meanwhile) == (True, [])
    assert kernel_log.wait_for(line(lab, NOWHERE_IOVA), since=mark) is not None


def test_a_reason_that_no_specification_has_is_unknown(lab: Lab, faults: Faults, kernel_log: KernelLog) -> None:
    mark = kernel_log.mark()
    with faults.injected("event", "unknown-reason", match=OF_ACCEL):
        fault_at(lab, NOWHERE_IOVA)

    assert kernel_log.wait_for(line(lab, NOWHERE_IOVA, "unknown fault"), since=mark) is not None


def test_of_a_flood_a_few_records_are_told_and_afterwards_how_many_were_not(
    lab: Lab, faults: Faults, kernel_log: KernelLog, unit: Unit
) -> None:
    mark = kernel_log.mark()
    faults.add("timer", "flood", unit="iommu0")
    flooded = within(FLOOD_S, lambda: unit.state()["pending_faults"] == 0 and bool(faults.log()))
    told = len(kernel_log.find(line(lab, 0xBAD000), since=mark))

    def told_of_those_suppressed() -> bool:
        fault_at(lab, NOWHERE_IOVA)
        return bool(kernel_log.find("viommu_fault_handler:", "callbacks suppressed", since=mark))

    assert flooded
    assert 0 < told <= 10
    assert within(SILENCE_S, told_of_those_suppressed)
    with lab.both_mapped():
        assert lab.engine.run(Operation(accel.NOP)).status == accel.OK
