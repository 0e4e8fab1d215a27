"""The point register: what a guest sees in BAR 0 in place of what is there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.injected_endpoints import InjectedEndpoints, InjectedRng
from vdev.wire.accelerator import ID_VALUE, Register

STATUS = 0x14  # of the common configuration
ISR = 0x1000


@pytest.mark.parametrize(("nbytes", "seen"), [(4, 0x5566_7788), (8, 0x1122_3344_5566_7788)])
def test_a_stuck_register_reads_as_the_value_in_the_width_of_the_read(nbytes: int, seen: int) -> None:
    scene = InjectedEndpoints()
    match = {"function": "accel0", "register": int(Register.COMPLETION_BASE)}
    scene.add("register", "stuck", match=match, with_={"value": 0x1122_3344_5566_7788})

    assert scene.read(Register.COMPLETION_BASE, nbytes) == seen
    assert scene.read(Register.ID) == ID_VALUE


def test_it_is_stuck_as_often_as_the_rule_says_and_the_register_keeps_its_value() -> None:
    scene = InjectedEndpoints()
    scene.add("register", "stuck", match={"register": 0}, when={"nth": [1, 3]}, with_={"value": 0})

    assert [scene.read(Register.ID) for _ in range(4)] == [0, ID_VALUE, 0, ID_VALUE]


def test_reads_of_another_offset_are_not_met() -> None:
    scene = InjectedEndpoints()
    scene.add("register", "stuck", match={"register": 4}, with_={"value": 9})

    assert scene.read(Register.ID, 8) >> 32 == 1


def test_device_memory_and_the_vector_table_have_no_registers() -> None:
    scene = InjectedEndpoints()
    scene.add("register", "stuck", with_={"value": 0xFFFF_FFFF})

    assert scene.accel.bar_read(2, 0, 4) == bytes(4)
    assert scene.accel.bar_read(4, 0x800, 8) == bytes(8)


def test_virtio_registers_can_be_stuck_and_a_read_still_does_what_it_does() -> None:
    scene = InjectedRng()
    scene.add("register", "stuck", match={"function": "rng0", "register": STATUS}, with_={"value": 0x40})
    scene.draw()
    scene.add("register", "stuck", match={"register": ISR}, with_={"value": 0xFF}, times=1)

    first, second = (scene.rng.bar_read(0, ISR, 1) for _ in range(2))

    assert scene.driver.status() == 0x40
    assert (first, second) == (b"\xff", b"\0")  # it was read, and so it is 0


def test_the_unit_s_own_registers_are_met() -> None:
    scene = InjectedEndpoints()
    function: Any = scene.unit.function
    scene.add("register", "stuck", match={"unit": "iommu0", "function": "iommu0", "register": 0x12}, with_={"value": 7})

    assert function.bar_read(0, 0x12, 2) == b"\x07\0"


def test_a_removed_function_is_all_ones_whatever_is_stuck() -> None:
    scene = InjectedEndpoints()
    scene.add("register", "stuck", match={"register": 0}, with_={"value": 0})
    scene.accel.remove()

    assert scene.read(Register.ID) == 0xFFFF_FFFF


def test_without_a_rule_nothing_is_asked() -> None:
    scene = InjectedEndpoints()
    scene.add("register", "stuck", with_={"value": 0})

    scene.injector.clear()

    assert scene.accel.registers is None
    assert scene.read(Register.ID) == ID_VALUE
