"""The contenders of the benchmark differ in their IOMMU and the devices behind it, and in nothing else."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.guest.counts import FULL, QUICK, SCALES, SMALLEST, Scale
from benchmarks.guest.machines import CONTENDERS, Contender, machine
from benchmarks.guest.rounds import fits, turns
from benchmarks.guest.vm import bench_options, measure
from guest_tests.payload.bench_timing import Count, median, sampled_us
from qmp_bridge.errors import VmDied
from qmp_bridge.plan import Parts, make_plan
from vdev.config.checks import check_config

PARTS = Parts(qemu=("qemu",), env={}, version="11.1.3", kernel="/k", initrd="/i", accel="tcg")
QEMUS = [contender for contender in CONTENDERS if not contender.ours]
BY_NAME = {contender.name: contender for contender in CONTENDERS}


def arguments(contender: Contender, cpus: int = 1) -> list[str]:
    return make_plan(machine(contender, cpus), PARTS, bench_options(), Path("/run/x")).qemu


def values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(argv) if name == option]


@pytest.mark.parametrize("option", ["-machine", "-m", "-object", "-cpu", "-accel", "-smp", "-kernel", "-initrd"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_every_contender_has_the_same_machine(option: str, cpus: int) -> None:
    found = {tuple(values(arguments(contender, cpus), option)) for contender in CONTENDERS}

    assert len(found) == 1
    assert found != {()}


def test_every_guest_has_the_same_command_line_and_strict_unmapping() -> None:
    found = {tuple(values(arguments(contender), "-append")) for contender in CONTENDERS}

    ((append,),) = found
    assert {"iommu.strict=1", "iommu.passthrough=0", "vdev.payload=bench"} <= set(append.split())


@pytest.mark.parametrize("contender", QEMUS, ids=lambda contender: contender.name)
def test_qemus_own_iommu_gets_no_table_of_ours(contender: Contender) -> None:
    argv = arguments(contender)

    assert "-acpitable" not in argv
    assert not any("vfio-user" in word or "vhost-user" in word for word in argv)


@pytest.mark.parametrize("contender", QEMUS, ids=lambda contender: contender.name)
def test_qemus_devices_are_behind_its_iommu_where_ours_would_be(contender: Contender) -> None:
    devices = values(arguments(contender), "-device")

    assert contender.device in devices
    assert "edu,bus=port1,addr=00.0" in devices
    assert "virtio-rng-pci,bus=port2,addr=00.0,disable-legacy=on,iommu_platform=on" in devices


def test_intels_iommu_is_in_caching_mode() -> None:
    assert "caching-mode=on" in BY_NAME["intel-iommu"].device


@pytest.mark.parametrize("contender", [one for one in CONTENDERS if one.ours], ids=lambda contender: contender.name)
def test_vdevs_machines_are_valid_and_attached_as_they_say(contender: Contender) -> None:
    config = machine(contender, 2)

    check_config(config)
    assert [unit.attach for unit in config.units] == [contender.attach] * 2
    assert "-acpitable" in arguments(contender)


def test_every_round_has_everybody_once_and_begins_with_another() -> None:
    found = list(turns(Scale("x", 4, QUICK)))

    by_round = [[turn for turn in found if turn.round == number] for number in (1, 2, 3, 4)]
    assert all(len({(turn.contender.name, turn.cpus) for turn in one}) == len(one) == 8 for one in by_round)
    assert {one[0].contender.name for one in by_round} == set(BY_NAME)


def test_a_scale_may_name_its_contenders() -> None:
    found = list(turns(Scale("x", 1, QUICK, cpus=(1,), contenders=("intel-iommu",))))

    assert [turn.contender.name for turn in found] == ["intel-iommu"]


def test_a_quick_look_leaves_out_a_round_that_would_not_end_in_time() -> None:
    quick = SCALES["quick"]

    assert fits(quick, 2, 100.0)
    assert not fits(quick, 2, 120.0)
    assert fits(SCALES["full"], 5, 10_000.0)


def test_the_full_scale_is_five_rounds_and_all_scales_know_the_same_phases() -> None:
    assert SCALES["full"].rounds == 5
    assert FULL.keys() == QUICK.keys() == SMALLEST.keys()


def test_the_guest_times_equal_batches_after_a_warm_up() -> None:
    batches: list[int] = []

    samples = sampled_us(Count(3, 7), batches.append)

    assert batches == [7, 7, 7, 7]
    assert len(samples) == 3


@pytest.mark.parametrize(("values", "middle"), [([3.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 2.0, 3.0], 2.5), ([7.0], 7.0)])
def test_the_guests_median_is_the_middle(values: list[float], middle: float) -> None:
    assert median(values) == middle


def test_a_qemu_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    contender = BY_NAME["virtio-iommu-pci"]
    parts = Parts(
        qemu=("/bin/sh", "-c", "echo no such device >&2; exit 1"), env={}, version="11", kernel="/k", initrd="/i",
        accel="tcg",
    )  # fmt: skip

    with pytest.raises(VmDied, match="QEMU exited with status 1; it last said: no such device") as caught:
        asyncio.run(measure(contender, machine(contender, 1), parts, bench_options(tmp_path), SMALLEST))

    assert caught.value.logs is not None
    assert (caught.value.logs / "commands.txt").is_file()
