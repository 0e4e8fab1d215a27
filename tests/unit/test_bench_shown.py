"""The table and the picture of results."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks.plot import scale, svg
from benchmarks.results import Sample
from benchmarks.rows import ROWS
from benchmarks.table import lines
from benchmarks.text import number
from tests.support.bench import results, samples

VALUES = {"vdev-vfio-user": [20.0, 200.0, 30.0], "virtio-iommu-pci": [10.0, 100.0, 10.0]}
CIRCLE = "{http://www.w3.org/2000/svg}circle"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0312, "0.03"), (9.996, "10.0"), (42.11, "42.1"), (99.97, "100"), (16287.4, "16287")]
)
def test_numbers_have_three_digits_that_count(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_table_has_medians_with_their_spread_and_paired_ratios() -> None:
    shown = "\n".join(lines(results(samples("page", VALUES))))

    assert "30.0 [20.0..200]" in shown
    assert "2.00 [2.00..3.00]" in shown
    assert "vfio-user / virtio-iommu" in shown


def test_the_table_says_where_the_numbers_come_from() -> None:
    shown = "\n".join(lines(results(samples("page", VALUES))))

    for words in ("A fine CPU, 2 cores", "Linux 6.1", "QEMU 11.1.3, tcg, Linux 6.12", "iommu.strict=1", "commit abc"):
        assert words in shown


def test_the_table_tells_one_vcpu_from_two() -> None:
    shown = list(lines(results(samples("page", VALUES) + samples("page", VALUES, cpus=2))))

    assert sum(line.startswith("Guest with one vCPU") for line in shown) == 2
    assert sum(line.startswith("Guest with 2 vCPUs, both busy") for line in shown) == 2


def test_a_vm_that_failed_is_in_the_table_with_its_reason() -> None:
    failed = Sample(round=2, contender="intel-iommu", cpus=1, load=0, problem="QEMU exited with status 1")

    shown = "\n".join(lines(results([failed])))

    assert "FAILED, round 2, QEMU intel-iommu, one vCPU: QEMU exited with status 1" in shown


def test_doorbells_are_a_share_of_the_requests() -> None:
    found = [
        msgspec.structs.replace(sample, facts={"requests": 400, "doorbells": 2})
        for sample in samples("page", {"vdev-vfio-user": [20.0]})
    ]

    assert "in percent: vfio-user 0.50" in "\n".join(lines(results(found)))


def test_the_picture_is_well_formed_and_has_a_dot_for_each_round() -> None:
    picture = ElementTree.fromstring(svg(results(samples("page", VALUES))))

    assert len(list(picture.iter(CIRCLE))) == 6


def test_the_picture_has_a_panel_for_each_row_but_the_identity_reads() -> None:
    picture = svg(results(samples("page", VALUES)))

    missing = [row.name for row in ROWS if f">{row.title}<" not in picture]
    assert missing == ["identity"]


@pytest.mark.parametrize(("highest", "expected"), [(6.4, (2, 8)), (0.9, (0.5, 1.0)), (103.9, (50, 150)), (0, (1, 1))])
def test_an_axis_ends_at_a_round_number_at_or_above_the_highest(highest: float, expected: tuple[float, float]) -> None:
    assert scale(highest) == pytest.approx(expected)
