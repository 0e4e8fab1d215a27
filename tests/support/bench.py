"""Results of benchmarks that never ran, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.results import InProcessRow, Machine, MonitorSample, Results, Sample, Setup

MACHINE = Machine(cpu="A fine CPU", cores=2, memory_mib=4096, kernel="6.1", python="3.11.7")
SETUP = Setup(
    qemu="11.1.3", accel="tcg", accel_reason="", guest_kernel="6.12", append="iommu.strict=1", memory="1G", rounds=3,
    counts={"page": (2, 2)},
)  # fmt: skip


def samples(row: str, by_contender: Mapping[str, Sequence[float]], cpus: int = 1) -> list[Sample]:
    """One sample a round and contender, with one value in it."""
    return [
        Sample(round=number + 1, contender=name, cpus=cpus, load=0.1, values={row: value})
        for name, values in by_contender.items()
        for number, value in enumerate(values)
    ]


def results(found: Sequence[Sample] = (), machine: Machine = MACHINE, setup: Setup | None = SETUP) -> Results:
    """Results with these samples and one in-process row with its baseline."""
    rows = [InProcessRow("plain", "", [1.0, 2.0, 3.0]), InProcessRow("path", "plain", [30.0, 20.0, 10.0])]
    return Results(
        date="2026-11-25 18:00 UTC", commit="abc", modified=False, scale="full", machine=machine, load_at_start=0.1,
        in_process=rows, setup=setup, samples=list(found),
    )  # fmt: skip


def monitor_samples(
    load_name: str, by_way: Mapping[str, Sequence[float]], row: str = "status-p50"
) -> list[MonitorSample]:
    """One sample a round and way, with one value in it."""
    return [
        MonitorSample(round=number + 1, load_name=load_name, way=way, load=0.1, values={row: value})
        for way, values in by_way.items()
        for number, value in enumerate(values)
    ]
