"""Units of different granules: a page of the guest's, a single byte, and more than a page."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterator

import pytest
from spaces import PAGE_SIZES, MakeContainer, Yard, draw_from

from guest_tests.payload import accel, checks_hwrng, guest, vfio
from guest_tests.payload.checks_open import bind_to_vfio
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, run_ok, running_engine
from guest_tests.payload.stock import PCI, Machine, driver_of, group_of, newest_kernel, seeded_stream

RINGS = {"narrow0": 0x0100_0000, "bytes0": 0x0200_0000}
SHARED = 1 << 32
BOTH = vfio.READ | vfio.WRITE
TOO_COARSE = "granule 0x10000 larger than system page size 0x1000"


def test_vfio_reports_multiples_of_the_page_for_a_unit_that_takes_single_bytes(container: MakeContainer) -> None:
    assert container("bytes0").address_space().page_sizes == PAGE_SIZES


def test_units_of_a_byte_and_of_a_page_share_a_container_and_its_mappings(yard: Yard, container: MakeContainer) -> None:
    shared, page = container("bytes0", "narrow0"), vfio.Buffer(PAGE)
    page.memory[:] = bytes(range(256)) * (PAGE // 256)
    sums = []
    with shared.mapped(SHARED, page):
        for name, ring in RINGS.items():
            with running_engine(shared, yard.stock.bdf(name), ring) as engine:
                sums.append(run_ok(engine, accel.Operation(accel.CHECKSUM, src=SHARED, nbytes=PAGE)).result)

    assert sums == [zlib.crc32(page.memory)] * 2


def test_vfio_maps_no_part_of_a_page_whatever_the_granule(container: MakeContainer) -> None:
    alone, page = container("bytes0"), vfio.Buffer(PAGE)

    with pytest.raises(OSError, match="Invalid argument"):
        alone.map(SHARED, page, BOTH, nbytes=PAGE // 2)


@pytest.fixture
def coarse(stock: Machine) -> Iterator[str]:
    """The address of the endpoint whose unit has a granule of 64 KiB; whatever a test does with it, nobody has it
    afterwards."""
    bdf = stock.bdf("coarse0")
    yield bdf
    guest.unbind_driver(bdf)


def test_linux_puts_no_endpoint_behind_a_unit_whose_granule_is_more_than_a_page(
    yard: Yard, kernel_log: KernelLog, coarse: str
) -> None:
    unit, said = yard.unit("coarse0"), kernel_log.mark() if not newest_kernel() else 0
    requests = unit.requests()

    problem = 0
    try:
        bind_to_vfio_whatever_comes_of_it(coarse)
    except OSError as error:
        problem = error.errno or 0

    assert problem in ((0, errno.EINVAL) if newest_kernel() else (0,))  # soon after boot newer ones put it off
    assert (driver_of(coarse), group_of(coarse)) == (None, None)
    # Newer kernels give up at boot, with the first endpoint of the unit.
    assert kernel_log.find(TOO_COARSE if newest_kernel() else f"{coarse}: {TOO_COARSE}", since=said)
    after = unit.requests()
    assert (after["ATTACH"], after["PROBE"] - requests["PROBE"]) == (0, 0 if newest_kernel() else 1)


def bind_to_vfio_whatever_comes_of_it(bdf: str) -> None:
    """As at any other endpoint. Raises OSError."""
    (PCI / "devices" / bdf / "driver_override").write_text("vfio-pci")
    (PCI / "drivers_probe").write_text(bdf)


def test_a_stock_driver_takes_such_an_endpoint_all_the_same_and_its_dma_passes_untranslated(
    yard: Yard, stock: Machine
) -> None:
    """As long as the unit lets unattached endpoints bypass: `bypass: off` is for such units."""
    bdf, unit = stock.bdf("coarse-rng"), yard.unit("coarse-rng")

    drawn = draw_from(yard, "coarse-rng")

    stream = seeded_stream(stock.seed("coarse-rng"), unit.function("coarse-rng")["bytes"])
    assert drawn[: checks_hwrng.BUFFER_NBYTES] in stream
    assert (driver_of(bdf), group_of(bdf), unit.domain_of(bdf)) == ("virtio-pci", None, None)
    assert (unit.requests()["MAP"], unit.refused()) == (0, {})


def test_only_6_12_warns_with_a_trace_of_the_stack(kernel_log: KernelLog, yard: Yard, coarse: str) -> None:
    with_trace = kernel_log.find("WARNING: ", "iommu_setup_default_domain")

    assert bool(with_trace) == (not newest_kernel())
    assert not kernel_log.find("BUG: ")


def test_the_endpoints_of_the_other_units_are_as_they_were(yard: Yard, container: MakeContainer, coarse: str) -> None:
    bind_to_vfio(yard.stock.bdf("narrow0"))

    assert container("narrow0", "bytes0").address_space().ranges == yard.usable("narrow0")
