"""UNMAP to the byte. D44: the seven worked examples of the specification, with its own numbers, from BASE on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from asking import DOMAIN

from guest_tests.payload import accel as engine
from guest_tests.payload.accel import Operation
from guest_tests.payload.direct import Accel, DmaArena, Status, Viommu
from guest_tests.payload.direct.wire import Map, Unmap

BASE, NBYTES = 0x2000, 20
Span = tuple[int, int]  # first and last byte


@pytest.fixture
def viommu(of_bytes: Viommu) -> Viommu:
    """The unit of single bytes is the one, here."""
    return of_bytes


@dataclass(frozen=True)
class Example:
    """Mappings, one UNMAP, its status, and the bytes that are mapped afterwards."""

    mapped: list[Span]
    unmapped: Span
    status: Status
    left: list[Span]


EXAMPLES = {
    "1: nothing is mapped": Example([], (0, 4), Status.OK, []),
    "2: the whole mapping": Example([(0, 9)], (0, 9), Status.OK, []),
    "3: two mappings": Example([(0, 4), (5, 9)], (0, 9), Status.OK, []),
    "4: half a mapping": Example([(0, 9)], (0, 4), Status.RANGE, [(0, 9)]),
    "5: one of two": Example([(0, 4), (5, 9)], (0, 4), Status.OK, [(5, 9)]),
    "6: more than is mapped": Example([(0, 4)], (0, 9), Status.OK, []),
    "7: a gap between two": Example([(0, 4), (10, 14)], (0, 14), Status.OK, []),
}
MORE_EXAMPLES = {
    "a whole one and half of the next": Example([(0, 4), (5, 9)], (0, 7), Status.RANGE, [(0, 9)]),
    "half a mapping at the start": Example([(0, 4), (5, 9)], (2, 9), Status.RANGE, [(0, 9)]),
    "the middle of a mapping": Example([(0, 9)], (4, 5), Status.RANGE, [(0, 9)]),
    "the hole between two": Example([(0, 4), (10, 14)], (5, 9), Status.OK, [(0, 4), (10, 14)]),
    "one byte of many": Example([(n, n) for n in range(10)], (4, 4), Status.OK, [(0, 3), (5, 9)]),
    "a range that is empty": Example([(0, 4)], (4, 3), Status.RANGE, [(0, 4)]),
}


def mapped_bytes(accel: Accel) -> set[int]:
    """The bytes from BASE on that the accelerator can read, found by trying each."""
    work = [Operation(engine.CHECKSUM, BASE + number, nbytes=1) for number in range(NBYTES)]
    return {number for number, completion in enumerate(accel.run_all(work)) if completion.status == engine.OK}


def bytes_of(spans: list[Span]) -> set[int]:
    """All of them."""
    return {number for first, last in spans for number in range(first, last + 1)}


def check(viommu: Viommu, accel: Accel, gpa: int, example: Example) -> None:
    """Do it, and compare."""
    for first, last in example.mapped:
        viommu.ask(Map(domain=DOMAIN, virt_start=BASE + first, virt_end=BASE + last, phys_start=gpa + first, flags=1))
    assert mapped_bytes(accel) == bytes_of(example.mapped)

    first, last = example.unmapped
    answer = viommu.send(Unmap(domain=DOMAIN, virt_start=BASE + first, virt_end=BASE + last))

    assert answer.status == example.status
    assert mapped_bytes(accel) == bytes_of(example.left)


@pytest.mark.parametrize("name", EXAMPLES)
def test_d44_the_examples_of_the_specification_hold(
    viommu: Viommu, bytes_accel: Accel, dma: DmaArena, name: str
) -> None:
    # D44; D42: SHOULD return RANGE and SHOULD NOT remove anything; D43: holes are fine
    check(viommu, bytes_accel, dma.alloc().gpa, EXAMPLES[name])


@pytest.mark.parametrize("name", MORE_EXAMPLES)
def test_d42_d43_what_the_examples_leave_out_follows_the_same_rules(
    viommu: Viommu, bytes_accel: Accel, dma: DmaArena, name: str
) -> None:
    # D42, D43
    check(viommu, bytes_accel, dma.alloc().gpa, MORE_EXAMPLES[name])
