"""Statistics of the benchmarks, and what the rows are made of."""

from __future__ import annotations

import pytest

from benchmarks.results import Sample
from benchmarks.rows import row_values
from benchmarks.summary import Spread, in_process_ratio, paired_ratio, spread, summary
from tests.support.bench import results, samples

OURS, THEIRS = "vdev-vfio-user", "virtio-iommu-pci"
PHASES = {
    "page": {"us": 90.0},
    "large": {"us": 25000.0},
    "dma": {"us": 200.0, "maps": 2.0},
    "identity": {"us": 100.0, "maps": 0.0},
}


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0, 3)


def test_there_is_no_spread_of_nothing() -> None:
    assert Spread.of([]) is None


def test_a_ratio_is_of_the_same_round() -> None:
    # The machine was ten times slower in round 2, for both: that must not show.
    found = results(samples("page", {OURS: [20.0, 200.0, 30.0], THEIRS: [10.0, 100.0, 10.0]}))

    assert paired_ratio(found, "page", 1, OURS, THEIRS) == Spread(2.0, 2.0, 3.0, 3)


def test_a_round_that_failed_counts_in_no_ratio() -> None:
    found = results(samples("page", {OURS: [20.0, 30.0]}))
    found.samples += [
        Sample(round=1, contender=THEIRS, cpus=1, load=0, problem="QEMU exited"),
        Sample(round=2, contender=THEIRS, cpus=1, load=0, values={"page": 10.0}),
    ]

    assert paired_ratio(found, "page", 1, OURS, THEIRS) == Spread(3.0, 3.0, 3.0, 1)


def test_there_is_no_ratio_to_a_difference_that_came_out_as_nothing() -> None:
    found = results(samples("dma-pair", {OURS: [20.0, 30.0], THEIRS: [-1.0, 0.0]}))

    assert paired_ratio(found, "dma-pair", 1, OURS, THEIRS) is None


def test_samples_with_other_vcpus_are_another_row() -> None:
    found = results(samples("page", {OURS: [20.0]}) + samples("page", {OURS: [80.0]}, cpus=2))

    assert spread(found, "page", OURS, 2) == Spread(80.0, 80.0, 80.0, 1)


def test_an_in_process_ratio_is_of_medians() -> None:
    rows = results().in_process

    assert in_process_ratio(rows, rows[1]) == 10.0
    assert in_process_ratio(rows, rows[0]) is None


def test_the_summary_has_the_ratios_of_vdev_and_none_of_qemu() -> None:
    found = summary(results(samples("page", {OURS: [20.0], THEIRS: [10.0]})), [THEIRS])

    ratios = {entry["contender"]: entry["ratios"] for entry in found}
    assert ratios[OURS][THEIRS]["median"] == 2.0
    assert ratios[THEIRS] == {}


def test_times_are_in_the_units_of_their_rows() -> None:
    values = row_values(6.5, PHASES)

    assert (values["page"], values["large"], values["boot"]) == (90.0, 25.0, 6.5)


def test_the_dma_api_is_counted_by_mappings_and_priced_by_difference() -> None:
    values = row_values(6.5, PHASES)

    assert values["dma-rate"] == pytest.approx(2 / 200e-6)
    assert values["dma-pair"] == pytest.approx((200 - 100) / 2)


def test_without_mappings_there_is_no_price_of_one() -> None:
    values = row_values(6.5, PHASES | {"dma": {"us": 200.0, "maps": 0.0}})

    assert "dma-pair" not in values
    assert values["dma-rate"] == 0.0
