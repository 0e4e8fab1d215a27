"""Interrupts that are lost, late or without a reason. A lost one is not made up for: with EVENT_IDX the device owes no
other before the driver has looked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from looks import rng_gives, rng_is_silent

from guest_tests.payload import accel
from guest_tests.payload.accel import Operation
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog, endpoint_id
from guest_tests.payload.lab import NOWHERE_IOVA, PAGE, Lab

# The other thread is the watch over the test's time; the child only reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("talkative"),
]

EVENTS, RNG_INPUT = 1, 1  # vectors


@pytest.fixture
def looked(faults: Faults) -> Iterator[None]:
    """Whatever interrupt is lost in the test, the drivers look once more afterwards."""
    yield
    faults.add("timer", "spurious", function="iommu0", vector=EVENTS)
    faults.add("timer", "spurious", function="rng0", vector=RNG_INPUT)
    assert rng_gives()


def fault_at(lab: Lab, iova: int) -> str:
    """Have the accelerator write where nothing is mapped; what the kernel's log has to say about it."""
    assert lab.engine.run(Operation(accel.FILL, dst=iova, nbytes=64)).status == accel.TRANSLATION_FAULT
    return f"page fault from EP {endpoint_id(lab.bdf)} at {iova:#x} [W]"


def test_after_a_lost_interrupt_no_fault_is_told_until_another_interrupt_comes(
    lab: Lab, faults: Faults, kernel_log: KernelLog, looked: None
) -> None:
    mark = kernel_log.mark()
    with faults.injected("interrupt", "lose", match={"function": "iommu0", "vector": EVENTS}, times=1) as rule:
        lines = [fault_at(lab, NOWHERE_IOVA + number * PAGE) for number in range(3)]
        fired, matched = rule.fired, rule.matched
    silent = kernel_log.wait_for("page fault", since=mark, timeout_s=0.5) is None
    faults.add("timer", "spurious", function="iommu0", vector=EVENTS)

    assert (fired, matched, silent) == (1, 1, True)  # the others were not even asked for
    assert all(kernel_log.wait_for(line, since=mark) is not None for line in lines)


def test_a_late_interrupt_tells_of_faults_late(lab: Lab, faults: Faults, kernel_log: KernelLog, looked: None) -> None:
    mark = kernel_log.mark()
    rule = faults.add("interrupt", "delay", match={"function": "iommu0", "vector": EVENTS}, times=1, seconds=60)
    line = fault_at(lab, NOWHERE_IOVA)
    silent = kernel_log.wait_for(line, since=mark, timeout_s=0.5) is None
    rule.release()

    assert silent
    assert kernel_log.wait_for(line, since=mark) is not None


def test_after_a_lost_interrupt_the_rng_gives_nothing_until_another_comes(faults: Faults, looked: None) -> None:
    with faults.injected("interrupt", "lose", match={"function": "rng0", "vector": RNG_INPUT}, times=1) as rule:
        silent = rng_is_silent()
        fired = rule.fired
    faults.add("timer", "spurious", function="rng0", vector=RNG_INPUT)

    assert (fired, silent) == (1, True)
    assert rng_gives()


def test_a_late_interrupt_keeps_the_reader_waiting(faults: Faults, looked: None) -> None:
    with faults.injected(
        "interrupt", "delay", match={"function": "rng0", "vector": RNG_INPUT}, times=1, seconds=0.3
    ) as rule:
        assert rng_gives()
        assert rule.fired == 1


def test_interrupts_without_a_reason_go_unnoticed(lab: Lab, faults: Faults, kernel_log: KernelLog) -> None:
    mark = kernel_log.mark()
    for function, vector in (("iommu0", EVENTS), ("rng0", RNG_INPUT), ("accel0", 0)):
        faults.add("timer", "spurious", function=function, vector=vector)
    assert rng_gives()
    with lab.both_mapped():
        lab.run_ok(Operation(accel.NOP))

    assert len(faults.log()) == 3
    assert kernel_log.find("", since=mark) == []


@pytest.mark.machines("vfio-user*")  # over vhost-user vectors are queues
def test_an_interrupt_of_the_configuration_is_a_change_of_it(faults: Faults, kernel_log: KernelLog) -> None:
    mark = kernel_log.mark()
    faults.add("timer", "spurious", function="iommu0", vector=0)

    assert kernel_log.wait_for("virtio_iommu", "config changed", since=mark) is not None
