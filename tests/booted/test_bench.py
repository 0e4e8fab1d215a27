"""`make bench` at its smallest, in real guests: every row is there for vdev and for an IOMMU of QEMU's."""

from __future__ import annotations

import pytest

from benchmarks.guest import rounds
from benchmarks.guest.counts import SMALLEST, Scale
from benchmarks.results import Sample, Setup
from benchmarks.rows import ROWS

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

NAMES = ("vdev-vfio-user", "virtio-iommu-pci")
MEASURED = {row.name for row in ROWS}


@pytest.fixture(scope="module")
def measured() -> tuple[Setup, dict[str, Sample]]:
    """What both machines had in common, and the sample of each."""
    kept: list[tuple[Setup, Sample]] = []
    scale = Scale("smallest", 1, SMALLEST, cpus=(1,), contenders=NAMES)
    rounds.run(scale, lambda line: None, lambda setup, sample: kept.append((setup, sample)))
    assert [sample.problem for _, sample in kept] == ["", ""]
    return kept[-1][0], {sample.contender: sample for _, sample in kept}


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_measured(measured: tuple[Setup, dict[str, Sample]], name: str) -> None:
    values = measured[1][name].values

    assert values.keys() == MEASURED - (set() if name.startswith("vdev") else {"pasid"})  # QEMU's have no PASIDs
    assert all(value > 0 for row, value in values.items() if row != "dma-pair")


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_is_in_the_pieces_the_rows_name(measured: tuple[Setup, dict[str, Sample]], name: str) -> None:
    assert measured[1][name].facts["runs"] == {"page": 1, "scattered": 64, "large": 128}


@pytest.mark.parametrize("name", NAMES)
def test_a_read_of_the_rng_is_one_mapping_and_none_in_the_identity_domain(
    measured: tuple[Setup, dict[str, Sample]], name: str
) -> None:
    maps = measured[1][name].facts["maps"]

    assert maps["dma"] == pytest.approx(1, abs=0.5)  # the kernel's own thread may draw, too
    assert maps["identity"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_iommu_is_the_virtio_iommu_in_its_slot(measured: tuple[Setup, dict[str, Sample]], name: str) -> None:
    assert measured[1][name].facts["iommu"] == "0000:00:10.0"


def test_vdev_handled_the_requests_of_every_phase(measured: tuple[Setup, dict[str, Sample]]) -> None:
    # MAP and UNMAP of the batches and their warm-ups: a request a page, 64 pages, 128 huge pages.
    batches, times = SMALLEST["page"]
    assert measured[1]["vdev-vfio-user"].facts["requests"] > (batches + 1) * times * 2 * (1 + 64)
    assert "requests" not in measured[1]["virtio-iommu-pci"].facts


def test_the_setup_names_what_ran(measured: tuple[Setup, dict[str, Sample]]) -> None:
    setup = measured[0]

    assert "" not in (setup.qemu, setup.accel, setup.guest_kernel)
