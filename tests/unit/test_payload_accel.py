"""The accelerator's driver in the payload: several operations outstanding at once."""

from __future__ import annotations

import pytest

from guest_tests.payload import accel

IOVA = 0x10_0000


class Registers:
    """Keeps what was written, in order."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []

    def read32(self, offset: int) -> int:
        return 0

    def write32(self, offset: int, value: int) -> None:
        self.written.append((offset, value))

    def read64(self, offset: int) -> int:
        return 0

    def write64(self, offset: int, value: int) -> None:
        self.written.append((offset, value))


@pytest.fixture
def registers() -> Registers:
    """Of a device that does nothing."""
    return Registers()


@pytest.fixture
def memory() -> memoryview:
    """Ring and completions."""
    return memoryview(bytearray(accel.MEMORY_NBYTES))


@pytest.fixture
def driver(registers: Registers, memory: memoryview) -> accel.Accelerator:
    """Started, and what it wrote for that forgotten."""
    made = accel.Accelerator(registers, memory, IOVA)
    made.start()
    registers.written.clear()
    return made


def tag_of(memory: memoryview, index: int) -> int:
    """The tag in descriptor `index`."""
    return int(accel.DESCRIPTOR.unpack_from(memory, index * accel.DESCRIPTOR.size)[2])


def complete(memory: memoryview, index: int, tag: int) -> None:
    """What the engine writes of a NOP."""
    at = accel.COMPLETIONS_OFFSET + index * accel.COMPLETION.size
    accel.COMPLETION.pack_into(memory, at, tag, accel.OK, 0, 0, 0, 0, 0, 0)


def test_many_operations_ring_the_doorbell_once(driver: accel.Accelerator, registers: Registers) -> None:
    last = driver.submit(*[accel.Operation(accel.NOP)] * 5)

    assert last == 4
    assert registers.written == [(accel.RING_TAIL, 5)]


def test_operations_wrap_round_the_ring(driver: accel.Accelerator, registers: Registers) -> None:
    driver.submit(*[accel.Operation(accel.NOP)] * 60)

    last = driver.submit(*[accel.Operation(accel.NOP)] * 8)

    assert last == 3
    assert registers.written[-1] == (accel.RING_TAIL, 4)


def test_each_completion_is_known_by_the_tag_of_its_own_operation(
    driver: accel.Accelerator, memory: memoryview
) -> None:
    driver.submit(*[accel.Operation(accel.NOP)] * 3)
    for index in range(3):
        complete(memory, index, tag_of(memory, index))

    assert [driver.wait(index, 0).status for index in range(3)] == [accel.OK] * 3


def test_a_completion_with_the_tag_of_another_operation_is_an_error(
    driver: accel.Accelerator, memory: memoryview
) -> None:
    driver.submit(*[accel.Operation(accel.NOP)] * 2)
    complete(memory, 0, tag_of(memory, 1))

    with pytest.raises(accel.AcceleratorTimeout, match="carries tag"):
        driver.wait(0, 0)
