"""Functions that change hands: from the kernel's DMA domain to a VFIO domain and back, again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from guest_tests.payload import guest, vfio
from guest_tests.payload.guest import KernelLog
from guest_tests.payload.lab import PAGE, RING_IOVA, SOURCE_IOVA, Lab, copy
from guest_tests.payload.stock import (
    Machine,
    Unit,
    driver_of,
    expect_random_bytes_of,
    give_back,
    group_of,
    rng_current,
)
from guest_tests.payload.stock_fixtures import opened_lab

NTIMES = 3


@pytest.fixture
def rng(stock: Machine) -> Iterator[str]:
    """The rng's address; whatever a test does with it, virtio-pci has it afterwards."""
    bdf = stock.bdf("rng0")
    yield bdf
    if driver_of(bdf) != "virtio-pci":
        give_back(bdf)


def test_the_rng_goes_to_vfio_and_back_and_draws_right_each_time(stock: Machine, unit: Unit, rng: str) -> None:
    home = unit.domain_of(rng)
    assert home is not None

    for _ in range(NTIMES):
        guest.bind_driver(rng, "vfio-pci")
        assert rng_current() == "none"
        group = group_of(rng)
        assert group is not None
        buffer = vfio.Buffer(PAGE)
        with contextlib.closing(vfio.Container(group.number)) as container, container.mapped(SOURCE_IOVA, buffer):
            away = unit.domain_of(rng)
            assert away is not None
            assert (away.id != home.id, away.bypass, away.mappings) == (True, False, 1)
            assert away.endpoints == (guest.endpoint_id(rng),)
        give_back(rng)
        expect_random_bytes_of(unit, stock, "rng0")
        assert unit.domain_of(rng) == home


def test_an_rng_that_nobody_drives_keeps_its_domain_and_has_nothing_mapped(unit: Unit, rng: str) -> None:
    home = unit.domain_of(rng)
    assert home is not None

    guest.unbind_driver(rng)
    left = unit.domain_of(rng)
    give_back(rng)

    assert left is not None
    assert (left.id, left.bypass, left.mappings) == (home.id, home.bypass, 0)
    assert unit.domain_of(rng) == home


def test_the_accelerator_is_opened_and_closed_and_copies_each_time(
    stock: Machine, unit: Unit, kernel_log: KernelLog
) -> None:
    ndomains = set()
    for _ in range(NTIMES):
        with opened_lab(kernel_log) as lab:
            content = lab.randomise_source()
            with lab.both_mapped():
                lab.run_ok(copy())
            assert lab.target.memory == content
        ndomains.add(len(unit.settled()["domains"]))

    assert len(ndomains) == 1


def test_a_closed_container_leaves_nothing_mapped_though_nobody_unmapped_it(
    stock: Machine, unit: Unit, kernel_log: KernelLog
) -> None:
    bdf = stock.bdf("accel0")
    with opened_lab(kernel_log) as lab:
        before = unit.domain_of(bdf)
        buffer = vfio.Buffer(16 * PAGE)
        for page in range(16):
            lab.container.map(SOURCE_IOVA + 2 * page * PAGE, buffer, vfio.READ, offset=page * PAGE, nbytes=PAGE)
        full = unit.domain_of(bdf)
    after, ids = unit.domain_of(bdf), [domain["id"] for domain in unit.state()["domains"]]

    assert before is not None
    assert full is not None
    assert after is not None
    assert (full.id, full.mappings) == (before.id, before.mappings + 16)
    assert full.id not in ids
    assert (after.bypass, after.mappings) == (stock.mode == "passthrough", 0)


def test_a_container_that_is_opened_again_has_nothing_of_the_one_before(unit: Unit, lab: Lab) -> None:
    domain = unit.domain_of(lab.bdf)

    assert domain is not None
    assert (domain.bypass, domain.endpoints) == (False, (guest.endpoint_id(lab.bdf),))
    assert domain.mappings in (1, lab.ring.nbytes // PAGE)  # the ring; two pages of it may lie beside each other
    lab.container.unmap(RING_IOVA, lab.ring.nbytes)
    emptied = unit.domain_of(lab.bdf)
    lab.container.map(RING_IOVA, lab.ring, vfio.READ | vfio.WRITE)
    assert emptied is not None
    assert emptied.mappings == 0
