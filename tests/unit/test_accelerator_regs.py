"""The accelerator's registers, seen through aligned and other accesses."""

from __future__ import annotations

import pytest

from tests.support.accelerator import COMPLETIONS, PAGE, RING, Rig, descriptor
from vdev.wire.accelerator import Control, ErrorCode, Op, Register, Status


def test_identity_registers_read_their_documented_values() -> None:
    rig = Rig(devmem_nbytes=2 * PAGE)
    assert rig.read32(Register.ID) == 0x76414343
    assert rig.read32(Register.VERSION) == 1
    assert rig.read32(Register.CAPS) == 0b11111
    assert rig.read64(Register.DEVMEM_NBYTES) == 2 * PAGE
    assert rig.read64(Register.ID) == 0x1_7641_4343


def test_everything_else_is_zero_at_power_on() -> None:
    rig = Rig()
    defined = {Register.ID, Register.VERSION, Register.CAPS, Register.DEVMEM_NBYTES}
    assert {offset for offset in range(0, PAGE, 4) if rig.read32(offset)} == defined


@pytest.mark.parametrize("register", [Register.RING_BASE, Register.COMPLETION_BASE])
def test_wide_registers_take_either_half_or_the_whole(register: Register) -> None:
    rig = Rig()
    rig.write64(register, 0x1122_3344_5566_7788)
    rig.write32(register + 4, 0xAABB_CCDD)
    assert rig.read64(register) == 0xAABB_CCDD_5566_7788
    rig.write32(register, 0x1)
    assert rig.read64(register) == 0xAABB_CCDD_0000_0001
    assert rig.read32(register + 4) == 0xAABB_CCDD


def test_one_wide_write_may_cover_two_narrow_registers() -> None:
    rig = Rig()
    rig.write64(Register.RING_SIZE, 0x7 << 32 | 16)
    assert rig.read32(Register.RING_SIZE) == 16
    assert rig.read32(Register.RING_HEAD) == 0


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1), (0, 2), (2, 4), (4, 8), (1, 1), (0, 16), (0, 3)])
def test_misaligned_and_odd_accesses_read_zero_and_write_nothing(offset: int, nbytes: int) -> None:
    rig = Rig()
    rig.write64(Register.RING_BASE, 0x1000)
    assert rig.engine.registers.read(offset, nbytes) == bytes(nbytes)
    rig.engine.write(Register.RING_BASE + offset + (nbytes in (4, 8) and not offset), b"\xff" * nbytes)
    assert rig.read64(Register.RING_BASE) == 0x1000


def test_read_only_and_undefined_registers_drop_writes() -> None:
    rig = Rig()
    before = [rig.read32(offset) for offset in range(0, 0x100, 4)]
    plain = {Register.CONTROL, Register.RING_BASE, Register.RING_SIZE, Register.COMPLETION_BASE, Register.RING_TAIL}
    halves = {Register.RING_BASE + 4, Register.COMPLETION_BASE + 4, Register.RING_PASID}
    for offset in range(0, 0x100, 4):
        if offset not in plain | halves:
            rig.write32(offset, 0xFFFF_FFFF)
    assert [rig.read32(offset) for offset in range(0, 0x100, 4)] == before


def test_enabling_a_good_ring_runs_it_from_index_zero() -> None:
    rig = Rig().start()
    assert rig.read32(Register.STATUS) == Status.RUNNING
    assert rig.read32(Register.CONTROL) == Control.ENABLE | Control.IRQ_ENABLE
    rig.do(descriptor(Op.NOP))
    rig.write32(Register.CONTROL, 0)
    assert (rig.read32(Register.RING_HEAD), rig.read32(Register.RING_TAIL)) == (1, 1)
    rig.write32(Register.CONTROL, Control.ENABLE)
    assert (rig.read32(Register.RING_HEAD), rig.read32(Register.RING_TAIL)) == (0, 0)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (Register.RING_SIZE, 0),
        (Register.RING_SIZE, 1),
        (Register.RING_SIZE, 3),
        (Register.RING_SIZE, 2048),
        (Register.RING_BASE, RING + 32),
        (Register.COMPLETION_BASE, COMPLETIONS + 16),
        (Register.RING_BASE + 4, 0xFFFF_FFFF),
        (Register.COMPLETION_BASE + 4, 0xFFFF_FFFF),
    ],
)
def test_a_bad_ring_is_not_enabled(register: int, value: int) -> None:
    rig = Rig().start(control=0, ring_size=1024)
    if register in (Register.RING_BASE + 4, Register.COMPLETION_BASE + 4):
        rig.write32(register - 4, 0xFFFF_FFC0)  # the ring would wrap past 2^64
    rig.write32(register, value)
    rig.write32(Register.CONTROL, Control.ENABLE | Control.IRQ_ENABLE)
    assert rig.read32(Register.STATUS) == 0
    assert rig.read32(Register.ERROR) == ErrorCode.BAD_CONFIG
    assert rig.read32(Register.CONTROL) == Control.IRQ_ENABLE
    assert rig.host.vectors == [1]


@pytest.mark.parametrize("size", [2, 1024])
def test_the_smallest_and_the_largest_ring_are_enabled(size: int) -> None:
    assert Rig().start(ring_size=size).read32(Register.STATUS) == Status.RUNNING


def test_enable_without_bus_mastering_is_refused_without_an_interrupt() -> None:
    rig = Rig()
    rig.host.dma_enabled = False
    rig.start()
    assert rig.read32(Register.STATUS) == 0
    assert rig.read32(Register.ERROR) == ErrorCode.BUS_MASTER_OFF
    assert rig.host.vectors == []


def test_ring_registers_do_not_change_while_running() -> None:
    rig = Rig().start()
    rig.write64(Register.RING_BASE, 0)
    rig.write32(Register.RING_SIZE, 2)
    rig.write64(Register.COMPLETION_BASE, 0)
    assert rig.read64(Register.RING_BASE) == RING
    assert rig.read32(Register.RING_SIZE) == 8
    assert rig.read64(Register.COMPLETION_BASE) == COMPLETIONS


def test_a_tail_outside_the_ring_is_an_error_and_changes_nothing() -> None:
    rig = Rig().start()
    rig.write32(Register.RING_TAIL, 8)
    assert rig.read32(Register.RING_TAIL) == 0
    assert rig.read32(Register.ERROR) == ErrorCode.BAD_TAIL
    assert rig.read32(Register.STATUS) == Status.RUNNING
    assert rig.host.vectors == [1]


def test_a_doorbell_while_not_running_is_an_error_and_changes_nothing() -> None:
    rig = Rig()
    rig.write32(Register.RING_TAIL, 1)
    assert rig.read32(Register.RING_TAIL) == 0
    assert rig.read32(Register.ERROR) == ErrorCode.NOT_RUNNING


def test_error_is_cleared_by_writing_the_code_it_holds_and_nothing_else() -> None:
    rig = Rig().start()
    rig.write32(Register.RING_TAIL, 8)
    rig.write32(Register.ERROR, ErrorCode.BAD_CONFIG)
    assert rig.read32(Register.ERROR) == ErrorCode.BAD_TAIL
    rig.write32(Register.ERROR, ErrorCode.BAD_TAIL)
    assert rig.read32(Register.ERROR) == ErrorCode.NONE


def test_control_reset_restores_power_on_values_but_keeps_device_memory() -> None:
    rig = Rig().start()
    rig.devmem[0] = 7
    rig.do(descriptor(Op.NOP))
    rig.write32(Register.RING_TAIL, 8)
    rig.write32(Register.CONTROL, Control.RESET | Control.ENABLE | Control.IRQ_ENABLE)
    fresh = Rig()
    assert [rig.read32(at) for at in range(0, 0x100, 4)] == [fresh.read32(at) for at in range(0, 0x100, 4)]
    assert rig.devmem[0] == 7


def test_undefined_control_bits_read_back_as_zero() -> None:
    rig = Rig().start(control=0xFFFF_FFFF & ~Control.RESET)
    assert rig.read32(Register.CONTROL) == Control.ENABLE | Control.IRQ_ENABLE
