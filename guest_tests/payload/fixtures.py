"""pytest fixtures over `direct`, for tests that run inside the guest: `pytest -p guest_tests.payload.fixtures`.

    def test_a_copy_through_a_mapping(viommu, mapped_accel, dma):
        src, dst = dma.random(4096), dma.alloc(4096)
        viommu.map_buffer(mapped_accel.domain, 0x10000, src, READ)
        viommu.map_buffer(mapped_accel.domain, 0x20000, dst, WRITE)
        mapped_accel.copy(0x10000, 0x20000, 4096)
        assert dst.read() == src.read()

Whatever a test leaves behind, the next one starts with a device that was reset and with fresh memory: engines are
reset first, then units, and only then memory is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from .direct.accel import Accel, find_accels
from .direct.function import PciFunction
from .direct.memory import DmaArena, DmaPool
from .direct.viommu import Viommu, find_units
from .direct.virtio import VirtioPci
from .direct.wire import BYPASS_OFFSET, Feature

T = TypeVar("T")
OpenViommu = Callable[..., Viommu]
OpenAccel = Callable[..., Accel]


@pytest.fixture(scope="session")
def dma_pool() -> Iterator[DmaPool]:
    """The huge pages of all tests; they are reserved as they are needed."""
    pool = DmaPool()
    yield pool
    pool.close()


@pytest.fixture
def dma(dma_pool: DmaPool) -> Iterator[DmaArena]:
    """DMA memory for one test: `dma.alloc(nbytes)`, `dma.random(nbytes)`; freed after it."""
    with dma_pool.arena() as arena:
        yield arena


def _taken(bdfs: list[str]) -> Iterator[list[PciFunction]]:
    with ExitStack() as stack:
        yield [stack.enter_context(PciFunction(bdf)) for bdf in bdfs]


@pytest.fixture(scope="session")
def unit_functions() -> Iterator[list[PciFunction]]:
    """The PCI functions of all IOMMU units by rising BDF, taken from the kernel's drivers while tests run."""
    yield from _taken(find_units())


@pytest.fixture(scope="session")
def accel_functions() -> Iterator[list[PciFunction]]:
    """The PCI functions of all accelerators by rising BDF, likewise."""
    yield from _taken(find_accels())


@dataclass
class Unit:
    """A unit over all tests: its registers, found once, and the value of bypass it had before the first of them."""

    transport: VirtioPci
    bypass: bool


@pytest.fixture(scope="session")
def units(unit_functions: list[PciFunction]) -> list[Unit]:
    """All units, touched by nobody yet."""
    transports = [VirtioPci(function) for function in unit_functions]
    return [Unit(one, bool(one.read_config(BYPASS_OFFSET, 1) & 1)) for one in transports]


@pytest.fixture
def open_viommu(units: list[Unit], dma_pool: DmaPool) -> Iterator[OpenViommu]:
    """`open_viommu(unit=0, **options)`: unit number `unit`, started with the options of `Viommu.start`; closed after.

    The same unit may be opened again, which starts it anew: the first one is dead then. A reset does not touch the
    bypass byte; it is put back here.
    """
    with ExitStack() as stack:

        def open_one(unit: int = 0, **options: Any) -> Viommu:
            chosen = _nth(units, unit, "IOMMU unit")
            stack.callback(_restore_bypass, chosen, dma_pool)
            return stack.enter_context(Viommu.open(chosen.transport, dma_pool, **options))

        yield open_one


def _restore_bypass(unit: Unit, pool: DmaPool) -> None:
    if unit.transport.read_config(BYPASS_OFFSET, 1) & 1 != unit.bypass:
        with Viommu.open(unit.transport, pool) as viommu:
            viommu.bypass = unit.bypass


@pytest.fixture
def viommu(open_viommu: OpenViommu) -> Viommu:
    """The first unit, started with all the features we know that it offers."""
    return open_viommu()


@pytest.fixture
def managed(open_viommu: OpenViommu) -> Viommu:
    """The first unit, for which the host allocates the PASIDs."""
    return open_viommu(also=Feature.PASID | Feature.PASID_ALLOC)


@pytest.fixture
def unmanaged(open_viommu: OpenViommu) -> Viommu:
    """The first unit, whose PASIDs the driver numbers itself."""
    return open_viommu(also=Feature.PASID)


@pytest.fixture
def open_accel(accel_functions: list[PciFunction], dma_pool: DmaPool, open_viommu: OpenViommu) -> Iterator[OpenAccel]:
    """`open_accel(number=0)`: accelerator number `number`, reset, bus master on, not started; closed after.

    It asks for `open_viommu` so that engines stand still before units are reset.
    """
    with ExitStack() as stack:

        def open_one(number: int = 0) -> Accel:
            function = _nth(accel_functions, number, "accelerator")
            return stack.enter_context(Accel.open(function, dma_pool))

        yield open_one


@pytest.fixture
def accel(open_accel: OpenAccel) -> Accel:
    """The first accelerator, attached to nothing and not started: see `Accel.start` and `Accel.start_in`."""
    return open_accel()


@pytest.fixture
def mapped_accel(viommu: Viommu, open_accel: OpenAccel, accel_functions: list[PciFunction]) -> Accel:
    """An accelerator behind `viommu`, running in domain `mapped_accel.domain`, which has nothing but its ring yet."""
    for number, function in enumerate(accel_functions):
        if viommu.serves(function.endpoint):
            return open_accel(number).start_in(viommu, domain=viommu.config.domain_range.start + 1)
    pytest.skip(f"no accelerator is behind {viommu.function.bdf}")


def _nth(all_of_them: list[T], number: int, what: str) -> T:
    """Skip the test on a machine that has not so many."""
    if number >= len(all_of_them):
        pytest.skip(f"this machine has {len(all_of_them)} {what}(s), the test wants number {number}")
    return all_of_them[number]
