"""What the accelerators of several units reach by DMA, together in one container and each alone."""

from __future__ import annotations

import contextlib
import itertools
import os
import zlib
from collections.abc import Iterator

import pytest
from spaces import TOP, MakeContainer, Yard

from guest_tests.payload import accel, vfio
from guest_tests.payload.guest import KernelLog, endpoint_id
from guest_tests.payload.lab import PAGE, run_ok, run_refused, running_engine
from guest_tests.payload.stock import PCI

RINGS = (0x0100_0000, 0x0200_0000)  # IOVA of the first engine's ring and of the second one's
SHARED = 1 << 32  # inside all the ranges
BEYOND = 1 << 40  # outside narrow's, inside middle's and wide's
NARROW_STOP, MIDDLE_STOP = 1 << 39, 1 << 48
BOTH = vfio.READ | vfio.WRITE
PAIRS = list(itertools.combinations(["narrow0", "middle0", "wide0"], 2))


@contextlib.contextmanager
def engines(yard: Yard, container: vfio.Container, *names: str) -> Iterator[list[accel.Accelerator]]:
    """The accelerators `names` of the container's groups, running."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(running_engine(container, yard.stock.bdf(name), ring))
            for name, ring in zip(names, RINGS, strict=False)
        ]


@pytest.fixture
def page() -> vfio.Buffer:
    """A page of random bytes."""
    buffer = vfio.Buffer(PAGE)
    buffer.memory[:] = os.urandom(PAGE)
    return buffer


def checksum(iova: int, nbytes: int = PAGE) -> accel.Operation:
    """Read `nbytes` at `iova`."""
    return accel.Operation(accel.CHECKSUM, src=iova, nbytes=nbytes)


def beyond(yard: Yard, endpoint: str) -> tuple[int, int]:
    """How often DMA outside the input range was refused so far, as counted by the endpoint and by its unit."""
    state = yard.unit(endpoint).state()
    counts = state["functions"][endpoint]["refused"], state["counters"]["faults"]
    return counts[0].get("outside-input-range", 0), counts[1].get("outside-input-range", 0)


def faults(yard: Yard, since: int) -> list[tuple[str, int, str, int]]:
    """Unit, endpoint, reason and IOVA of vdev's faults from event `since` on."""
    found = yard.unit("narrow0").events("FaultRaised", since)
    return [(fault["unit"], fault["endpoint"], fault["reason"], fault["iova"]) for fault in found]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_one_map_lets_endpoints_of_two_units_reach_the_same_memory(
    yard: Yard, container: MakeContainer, page: vfio.Buffer, pair: tuple[str, str]
) -> None:
    shared, content, target = container(*pair), bytes(page.memory), vfio.Buffer(2 * PAGE)
    with engines(yard, shared, *pair) as both, shared.mapped(SHARED, page), shared.mapped(SHARED + PAGE, target):
        for number, engine in enumerate(both):
            run_ok(engine, accel.Operation(accel.COPY, src=SHARED, dst=SHARED + PAGE * (1 + number), nbytes=PAGE))
        sums = [run_ok(engine, checksum(SHARED + PAGE, 2 * PAGE)).result for engine in both]

    assert target.memory == 2 * content
    assert sums == [zlib.crc32(2 * content)] * 2


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_both_reach_the_last_page_they_have_in_common_and_vfio_maps_nothing_beyond(
    yard: Yard, container: MakeContainer, page: vfio.Buffer, pair: tuple[str, str]
) -> None:
    shared, stop = container(*pair), yard.usable(*pair)[-1][1] + 1
    with engines(yard, shared, *pair) as both:
        before = yard.seen(*pair)
        for iova, nbytes in ((stop, PAGE), (stop - PAGE, 2 * PAGE), (1 << 52, PAGE)):
            with pytest.raises(OSError, match="Invalid argument"):
                shared.map(iova, vfio.Buffer(nbytes), BOTH)
        after = yard.seen(*pair)
        with shared.mapped(stop - PAGE, page):
            sums = [run_ok(engine, checksum(stop - PAGE)).result for engine in both]

    assert after == before  # Linux does not even ask
    assert sums == [zlib.crc32(page.memory)] * 2


@pytest.mark.parametrize(("wider", "operation"), [("middle0", accel.CHECKSUM), ("wide0", accel.FILL)])
def test_dma_beyond_its_own_aperture_faults_where_an_endpoint_of_a_wider_unit_works(
    yard: Yard, container: MakeContainer, page: vfio.Buffer, kernel_log: KernelLog, wider: str, operation: int
) -> None:
    work = accel.Operation(operation, src=BEYOND, dst=BEYOND, nbytes=PAGE, arg=0x5A5A5A5A5A5A5A5A)
    access = accel.WRITE if operation == accel.FILL else accel.READ
    alone, other, bdf = container("narrow0"), container(wider), yard.stock.bdf("narrow0")
    with engines(yard, alone, "narrow0") as (near,), engines(yard, other, wider) as (far,), other.mapped(BEYOND, page):
        since, before = yard.unit("narrow0").next_event(), (beyond(yard, "narrow0"), beyond(yard, wider))

        run_ok(far, work)
        said = run_refused(kernel_log, near, bdf, work, (BEYOND, access))["kernel"]

        after = beyond(yard, "narrow0"), beyond(yard, wider)
    assert faults(yard, since) == [("narrow", endpoint_id(bdf), "outside-input-range", BEYOND)]
    assert after == ((before[0][0] + 1, before[0][1] + 1), before[1])
    assert f"virtio_iommu {virtio_of(yard, 'narrow')}: page fault from EP " in said


def virtio_of(yard: Yard, unit: str) -> str:
    """The virtio device of a unit, as the kernel's log calls it."""
    (name,) = [entry.name for entry in (PCI / "devices" / yard.stock.bdf(unit)).glob("virtio*")]
    return name


def test_in_one_container_each_units_fault_has_its_own_reason(
    yard: Yard, container: MakeContainer, kernel_log: KernelLog
) -> None:
    shared, names = container("narrow0", "wide0"), ("narrow0", "wide0")
    with engines(yard, shared, *names) as both:
        since = yard.unit("narrow0").next_event()
        for name, engine in zip(names, both, strict=True):
            run_refused(kernel_log, engine, yard.stock.bdf(name), checksum(BEYOND), (BEYOND, accel.READ))

    assert faults(yard, since) == [
        ("narrow", 0x100, "outside-input-range", BEYOND), ("wide", 0x400, "not-mapped", BEYOND),
    ]  # fmt: skip


def test_dma_across_the_end_of_the_aperture_faults_at_the_first_byte_beyond(
    yard: Yard, container: MakeContainer, kernel_log: KernelLog
) -> None:
    alone, other, bdf = container("narrow0"), container("middle0"), yard.stock.bdf("narrow0")
    pages, start = vfio.Buffer(2 * PAGE), NARROW_STOP - PAGE
    with engines(yard, alone, "narrow0") as (near,), engines(yard, other, "middle0") as (far,):
        alone.map(start, pages, BOTH, nbytes=PAGE)
        other.map(start, pages, BOTH)

        run_ok(far, checksum(start, 2 * PAGE))
        run_refused(kernel_log, near, bdf, checksum(start, 2 * PAGE), (NARROW_STOP, accel.READ))


FAR_UP = {
    "middle0": [MIDDLE_STOP - PAGE],
    "wide0": [MIDDLE_STOP, 1 << 56, 1 << 63, TOP - 2 * PAGE],
    "most0": [TOP - 2 * PAGE],
    "high0": [SHARED, NARROW_STOP - PAGE],
}


@pytest.mark.parametrize("name", FAR_UP)
def test_addresses_far_up_are_mapped_used_and_unmapped(
    yard: Yard, container: MakeContainer, page: vfio.Buffer, name: str
) -> None:
    alone, bdf = container(name), yard.stock.bdf(name)
    with running_engine(alone, bdf, yard.usable(name)[-1][0] + 0x1_0000) as engine:
        for iova in FAR_UP[name]:
            with alone.mapped(iova, page):
                summed = run_ok(engine, checksum(iova))
            after = engine.run(checksum(iova))

            assert summed.result == zlib.crc32(page.memory)
            assert (after.status, after.fault_iova) == (accel.TRANSLATION_FAULT, iova)


def test_an_endpoint_that_leaves_the_container_reaches_its_memory_no_more(
    yard: Yard, container: MakeContainer, page: vfio.Buffer
) -> None:
    shared, bdf = container("narrow0", "middle0"), yard.stock.bdf("middle0")
    with engines(yard, shared, "narrow0") as (stays,), shared.mapped(SHARED, page):
        with running_engine(shared, bdf, RINGS[1]) as goes:
            run_ok(goes, checksum(SHARED))
            with pytest.raises(OSError, match="Device or resource busy"):  # while its function is open
                shared.remove(yard.groups["middle0"])
        shared.remove(yard.groups["middle0"])
        domain = yard.domain("middle0")
        summed = run_ok(stays, checksum(SHARED))

    assert (domain.bypass, domain.mappings) == (False, 0)
    assert summed.result == zlib.crc32(page.memory)
