"""Invalidations that do not do what they say: Linux has given the page back, and the device still reaches it."""

from __future__ import annotations

from dataclasses import replace

from guest_tests.payload import accel, vfio
from guest_tests.payload.accel import Operation
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, TARGET_IOVA, Lab
from guest_tests.payload.stock import Machine, Unit, expect_random_bytes_of, within

BOTH = vfio.READ | vfio.WRITE
FILL = Operation(accel.FILL, dst=TARGET_IOVA, nbytes=64, arg=0x1111111111111111)
AGAIN = replace(FILL, arg=0x2222222222222222)
DONE_S = 10.0
OF_ACCEL = {"endpoint": "accel0"}
TARGET_WRITE = {**OF_ACCEL, "access": "write", "iova": hex(TARGET_IOVA)}


def test_a_page_that_vfio_unmapped_is_still_written_and_stands_before_the_next_one(
    lab: Lab, faults: Faults, kernel_log: KernelLog
) -> None:
    old, new = vfio.Buffer(PAGE), vfio.Buffer(PAGE)
    mark = kernel_log.mark()
    lab.container.map(TARGET_IOVA, old, BOTH)
    faults.add("invalidation", "stale", match=OF_ACCEL, times=1, seconds=60)
    lab.container.unmap(TARGET_IOVA, PAGE)

    lab.run_ok(FILL)
    lab.container.map(TARGET_IOVA, new, BOTH)
    lab.run_ok(AGAIN)
    stale = set(old.memory[:64]), set(new.memory[:64])
    faults.clear()
    lab.run_ok(FILL)
    cured = set(old.memory[:64]), set(new.memory[:64])
    lab.container.unmap(TARGET_IOVA, PAGE)

    assert (stale, cured) == (({0x22}, {0}), ({0x22}, {0x11}))
    assert kernel_log.find("", since=mark) == []


def test_the_dma_api_gives_buffers_back_that_the_device_still_reaches(
    stock: Machine, faults: Faults, unit: Unit, kernel_log: KernelLog
) -> None:
    mark = kernel_log.mark()
    with faults.injected("invalidation", "stale", match={"endpoint": "rng0"}, times=1) as rule:
        expect_random_bytes_of(unit, stock, "rng0")
        assert rule.fired == 1

    assert kernel_log.find("", since=mark) == []


def test_an_unmap_waits_for_the_access_under_way(lab: Lab, faults: Faults) -> None:
    page = vfio.Buffer(PAGE)
    lab.container.map(TARGET_IOVA, page, BOTH)
    with faults.injected("dma", "delay", match=TARGET_WRITE, times=1, seconds=0.3) as rule:
        index = lab.engine.submit(FILL)
        assert within(DONE_S, lambda: rule.held == 1 or lab.engine.status_of(index) != accel.PENDING)
        lab.container.unmap(TARGET_IOVA, PAGE)
        filled = set(page.memory[:64])

    assert filled == {0x11}


def test_an_early_answer_lets_the_access_land_in_a_page_that_was_given_back(lab: Lab, faults: Faults) -> None:
    page = vfio.Buffer(PAGE)
    lab.container.map(TARGET_IOVA, page, BOTH)
    faults.add("invalidation", "early", match=OF_ACCEL)
    rule = faults.add("dma", "delay", match=TARGET_WRITE, times=1, seconds=60)
    index = lab.engine.submit(FILL)
    assert within(DONE_S, lambda: rule.held == 1)
    lab.container.unmap(TARGET_IOVA, PAGE)
    before = lab.engine.status_of(index), set(page.memory[:64])
    rule.release()

    assert within(DONE_S, lambda: lab.engine.status_of(index) != accel.PENDING)
    assert before == (accel.PENDING, {0})
    assert (lab.engine.status_of(index), set(page.memory[:64])) == (accel.OK, {0x11})
