"""A unit that takes all of 64 bits: how much of that stock Linux can use, and what it makes of the last page."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from spaces import PAGE_SIZES, TOP, MakeContainer, Yard, draw_from

from guest_tests.payload import accel, checks_hwrng, vfio
from guest_tests.payload.lab import PAGE, run_ok, running_engine
from guest_tests.payload.stock import Machine, newest_kernel, seeded_stream

RING = 0x0100_0000
LAST_PAGE = TOP - PAGE
BOTH = vfio.READ | vfio.WRITE
NBUFFERS = checks_hwrng.NBYTES // checks_hwrng.BUFFER_NBYTES


def test_the_device_reaches_the_last_byte_of_64_bits(yard: Yard, container: MakeContainer) -> None:
    alone, page = container("wide0"), vfio.Buffer(PAGE)
    with running_engine(alone, yard.stock.bdf("wide0"), RING) as engine:
        alone.map(LAST_PAGE, page, BOTH)  # not unmapped: see below
        run_ok(engine, accel.Operation(accel.FILL, dst=LAST_PAGE, nbytes=PAGE, arg=0x3333333333333333))
        summed = run_ok(engine, accel.Operation(accel.CHECKSUM, src=TOP - 1, nbytes=1))

    assert page.memory == b"\x33" * PAGE
    assert summed.result == zlib.crc32(b"\x33")


def test_vfio_cannot_unmap_the_last_page_in_6_12_and_loses_its_memory(yard: Yard, container: MakeContainer) -> None:
    """Start and size of the last page make 0. Mended in newer kernels."""
    alone = container("wide0")
    before, page = locked_kib(), vfio.Buffer(PAGE)
    alone.map(LAST_PAGE, page, BOTH)

    if newest_kernel():
        alone.unmap(LAST_PAGE, PAGE)
        assert locked_kib() == before
        return
    with pytest.raises(OSError, match="unmapped 0 of 4096 bytes"):
        alone.unmap(LAST_PAGE, PAGE)
    mapped = yard.domain("wide0").mappings
    alone.close()

    assert (mapped, yard.domain("wide0").mappings) == (1, 0)  # the container's domain is gone
    assert locked_kib() == before + 4


def locked_kib() -> int:
    """How much memory of this process VFIO has pinned."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmLck"].split()[0])


def test_without_the_last_page_a_range_of_64_bits_has_no_such_trouble(yard: Yard, container: MakeContainer) -> None:
    alone, page, before = container("most0"), vfio.Buffer(PAGE), locked_kib()

    with pytest.raises(OSError, match="Invalid argument"):
        alone.map(LAST_PAGE, page, BOTH)
    alone.map(LAST_PAGE - PAGE, page, BOTH)
    alone.unmap(LAST_PAGE - PAGE, PAGE)

    assert alone.address_space() == vfio.AddressSpace(PAGE_SIZES, yard.usable("most0"))
    assert locked_kib() == before


@pytest.mark.parametrize("name", ["wide-rng", "most-rng", "high-rng"])
def test_the_dma_api_hands_out_the_aperture_from_its_last_page_down(stock: Machine, yard: Yard, name: str) -> None:
    """The kernel was told to (`iommu.forcedac=1`); else it asks for 32 bits first."""
    first, last = stock.input_range(name)
    unit = yard.unit(name)

    drawn = draw_from(yard, name)

    addresses = {int(record["fields"]["virt_start"], 16) for record in unit.trace("MAP", name, 4 * NBUFFERS)}
    assert max(addresses) == last + 1 - PAGE
    assert min(addresses) >= max(first, last - (1 << 20))
    assert all(drawn[at : at + 64] in seeded_stream(stock.seed(name), unit.function(name)["bytes"]) for at in (0, 64))
