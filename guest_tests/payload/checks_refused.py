"""Checks of DMA that must be refused: no mapping, no permission, no bus mastering."""

from __future__ import annotations

import time

from . import accel, vfio
from .lab import (
    MARKER,
    NOWHERE_IOVA,
    PAGE,
    PAIR_IOVA,
    SOURCE_IOVA,
    TARGET_IOVA,
    Finding,
    Lab,
    copy,
    expect,
)

HALF = 0x8000
PART = 0x10000
SETTLE_S = 0.1  # many times what a copy takes: a device that ignores the rule has shown it by then


def refused_after_unmap(lab: Lab) -> Finding:
    """A copy works; its target is unmapped; the same copy is refused and its target stays as it was."""
    content = lab.randomise_source()
    with lab.container.mapped(SOURCE_IOVA, lab.source, vfio.READ):
        with lab.container.mapped(TARGET_IOVA, lab.target, vfio.WRITE):
            lab.run_ok(copy())
            expect(lab.target.memory == content, "the copy before UNMAP differs from its source")
        lab.target.fill(MARKER)
        facts = lab.run_refused(copy(), TARGET_IOVA, accel.WRITE)
    lab.expect_untouched(lab.target)
    return _refusal("the target", facts)


def _refusal(what: str, facts: dict[str, object]) -> Finding:
    return Finding(f"{facts['access']} at {facts['iova']:#x} refused, {what} untouched", facts)


def write_refused_by_read_only_mapping(lab: Lab) -> Finding:
    """The target is mapped for reading only."""
    lab.randomise_source()
    with (
        lab.container.mapped(SOURCE_IOVA, lab.source, vfio.READ),
        lab.container.mapped(TARGET_IOVA, lab.target, vfio.READ),
    ):
        facts = lab.run_refused(copy(), TARGET_IOVA, accel.WRITE)
        lab.run_ok(accel.Operation(accel.CHECKSUM, src=TARGET_IOVA, nbytes=PAGE))  # reading it is still allowed
    lab.expect_untouched(lab.target)
    return _refusal("the read-only memory", facts)


def read_refused_by_write_only_mapping(lab: Lab) -> Finding:
    """The source is mapped for writing only."""
    lab.randomise_source()
    with (
        lab.container.mapped(SOURCE_IOVA, lab.source, vfio.WRITE),
        lab.container.mapped(TARGET_IOVA, lab.target, vfio.WRITE),
    ):
        facts = lab.run_refused(copy(), SOURCE_IOVA, accel.READ)
        lab.run_ok(accel.Operation(accel.FILL, dst=SOURCE_IOVA, nbytes=PAGE, arg=0))  # writing it is still allowed
    lab.expect_untouched(lab.target)
    return _refusal("the target", facts)


def refused_outside_any_mapping(lab: Lab) -> Finding:
    """The source address was never mapped."""
    lab.randomise_source()
    with lab.both_mapped():
        facts = lab.run_refused(copy(PAGE, src=NOWHERE_IOVA), NOWHERE_IOVA, accel.READ)
    lab.expect_untouched(lab.target)
    return _refusal("the target", facts)


def refused_where_a_mapping_ends(lab: Lab) -> Finding:
    """A copy begins in a mapping and runs past its end: the fault names the first address that is missing."""
    lab.randomise_source()
    first, second = vfio.Buffer(PART), vfio.Buffer(PART)
    second.fill(MARKER)
    with (
        lab.container.mapped(SOURCE_IOVA, lab.source, vfio.READ),
        lab.container.mapped(PAIR_IOVA, first, vfio.WRITE),
    ):
        with lab.container.mapped(PAIR_IOVA + PART, second, vfio.WRITE):
            pass  # it was there, and is not any more
        facts = lab.run_refused(copy(PART, dst=PAIR_IOVA + HALF), PAIR_IOVA + PART, accel.WRITE)
    lab.expect_untouched(second)
    return _refusal("the memory behind the boundary", facts)


def refused_without_bus_mastering(lab: Lab) -> Finding:
    """With bus mastering off the device reaches nothing, not even its ring."""
    lab.randomise_source()
    with lab.both_mapped():
        lab.device.set_command(off=vfio.COMMAND_BUS_MASTER)
        error = lab.engine.registers.read32(accel.ERROR)
        index = lab.engine.submit(copy())
        time.sleep(SETTLE_S)
        status = lab.engine.status_of(index)
        lab.expect_untouched(lab.target)
        lab.device.set_command(on=vfio.COMMAND_BUS_MASTER)
        lab.engine.start()
        lab.run_ok(copy())
    expect(status == accel.PENDING, f"a completion was written with bus mastering off: status {status}")
    expect(error == accel.ERROR_BUS_MASTER_OFF, f"ERROR register reads {error}, expected {accel.ERROR_BUS_MASTER_OFF}")
    return Finding(
        f"nothing moved, ERROR register {error}; with bus mastering on again the copy works", {"error": error}
    )
