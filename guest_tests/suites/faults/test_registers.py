"""Registers that read as something else than they hold; and that the same seed does it again."""

from __future__ import annotations

import pytest
from moving import Mover
from repeat import OCCURRENCES, assert_repeats

from guest_tests.payload import accel as engine
from guest_tests.payload.direct import DeviceBroken, EngineStopped, Viommu
from guest_tests.payload.fault_fixtures import Faults

DEVICE_STATUS, NEEDS_RESET = 0x14, 0x40  # of the common configuration


def stuck(offset: int) -> dict[str, object]:
    return {"function": "accel0", "register": offset}


def test_a_register_reads_as_what_it_is_stuck_at_in_any_width(mover: Mover, faults: Faults) -> None:
    read32, read64 = mover.accel.registers.read32, mover.accel.registers.read64
    before = read64(engine.COMPLETION_BASE)
    faults.add("register", "stuck", match=stuck(engine.COMPLETION_BASE), value=0x1122_3344_5566_7788)

    seen = read32(engine.COMPLETION_BASE), read64(engine.COMPLETION_BASE), read32(engine.ID)
    faults.clear()

    assert seen == (0x5566_7788, 0x1122_3344_5566_7788, engine.ID_VALUE)
    assert read64(engine.COMPLETION_BASE) == before
    assert mover.works()


def test_a_status_that_shows_nothing_looks_like_an_engine_that_does_not_start(mover: Mover, faults: Faults) -> None:
    with faults.injected("register", "stuck", match=stuck(engine.STATUS), value=0) as rule:
        with pytest.raises(EngineStopped):
            mover.accel.start(0x0100_0000)
        assert rule.fired > 0

    assert mover.works()  # it runs


def test_a_tail_that_cannot_be_read_is_written_all_the_same(mover: Mover, faults: Faults) -> None:
    faults.add("register", "stuck", match=stuck(engine.RING_TAIL), value=0)

    assert mover.works()


@pytest.mark.machines("vfio-user")  # behind vhost-user its registers are QEMU's
def test_a_unit_whose_status_is_stuck_looks_broken_to_its_driver(viommu: Viommu, faults: Faults) -> None:
    match = {"function": "iommu0", "register": DEVICE_STATUS}
    faults.add("register", "stuck", match=match, value=NEEDS_RESET)
    faults.add("request", "hold", match={"type": "PROBE"})

    with pytest.raises(DeviceBroken):
        viommu.probe(0x100)
    faults.clear()

    assert not viommu.is_broken
    viommu.start()
    assert viommu.serves(0x100)


def test_the_same_seed_shows_the_same_values(mover: Mover, faults: Faults) -> None:
    read32 = mover.accel.registers.read32

    def traffic() -> list[int]:
        return [read32(engine.ID) for _ in range(OCCURRENCES)]

    assert_repeats(faults, traffic, "register", "stuck", match=stuck(engine.ID), value=0xDEAD)
