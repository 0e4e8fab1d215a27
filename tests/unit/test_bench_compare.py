"""Two results side by side: what may be compared, what not and why, and when a change is one."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.compare import differences, lines, verdict
from benchmarks.results import Results
from benchmarks.summary import Spread
from tests.support.bench import MACHINE, SETUP, results, samples

OLD = {"vdev-vfio-user": [80.0, 90.0, 100.0], "virtio-iommu-pci": [40.0, 45.0, 50.0]}
NEW = {"vdev-vfio-user": [40.0, 45.0, 50.0], "virtio-iommu-pci": [40.0, 45.0, 50.0]}
TIME = "VFIO map+unmap, 1 page, vdev, vfio-user, us"
RATIO = "VFIO map+unmap, 1 page, vfio-user / virtio-iommu"


def run(values: dict[str, list[float]], **changes: dict[str, object]) -> Results:
    machine = msgspec.structs.replace(MACHINE, **changes.get("machine", {}))
    setup = msgspec.structs.replace(SETUP, **changes.get("setup", {}))
    return results(samples("page", values), machine, setup)


def text(old: Results, new: Results) -> str:
    return "\n".join(lines(old, new))


def cells(shown: str, title: str) -> list[str]:
    (line,) = [line for line in shown.splitlines() if line.startswith(title)]
    return line.removeprefix(title).split()


def test_times_and_ratios_stand_side_by_side() -> None:
    shown = text(run(OLD), run(NEW))

    assert cells(shown, TIME) == ["90.0", "[80.0..100]", "45.0", "[40.0..50.0]", "2.00", "better"]
    assert cells(shown, RATIO) == ["2.00", "[2.00..2.00]", "1.00", "[1.00..1.00]", "2.00", "better"]
    assert "cannot be compared" not in shown


@pytest.mark.parametrize(
    ("field", "other", "said"),
    [("cpu", "Another", "CPU: A fine CPU / Another"), ("cores", 8, "cores: 2 / 8"), ("kernel", "7", "kernel: 6.1 / 7")],
)
def test_another_machine_rules_out_times_but_not_ratios(field: str, other: object, said: str) -> None:
    shown = text(run(OLD), run(NEW, machine={field: other}))

    assert "cannot be compared: absolute times" in shown
    assert said in shown
    assert TIME not in shown
    assert "path, us" not in shown
    assert RATIO in shown


@pytest.mark.parametrize(
    ("field", "other", "said"),
    [
        ("qemu", "12.0", "QEMU: 11.1.3 / 12.0"),
        ("guest_kernel", "7.2", "guest kernel: 6.12 / 7.2"),
        ("accel", "kvm", "accelerator: tcg / kvm"),
        ("append", "iommu.strict=0", "kernel command line: iommu.strict=1 / iommu.strict=0"),
    ],
)
def test_another_qemu_or_guest_rules_out_both(field: str, other: object, said: str) -> None:
    shown = text(run(OLD), run(NEW, setup={field: other}))

    assert "cannot be compared: ratios to QEMU" in shown
    assert said in shown
    assert TIME not in shown
    assert RATIO not in shown


def test_the_same_machine_has_no_differences() -> None:
    assert differences(run(OLD), run(NEW)) == []


def test_in_process_rows_are_compared_by_their_ratios() -> None:
    shown = text(run(OLD), run(NEW))

    assert cells(shown, "path, x plain") == ["10.0", "10.0", "1.00"]


def test_other_batches_and_a_busy_machine_are_remarked() -> None:
    new = run(NEW, setup={"counts": {"page": (1, 1)}})
    new.samples = [msgspec.structs.replace(sample, others=1.5) for sample in new.samples]

    shown = text(run(OLD), new)

    assert "take care: batches differ" in shown
    assert "take care: in the new run others kept up to 1.50 CPUs busy" in shown


def test_a_run_without_guests_says_so() -> None:
    assert "only the old run has a guest part" in text(run(OLD), results(setup=None))


@pytest.mark.parametrize(
    ("new", "better_above", "word"),
    [
        (Spread(5.0, 4.0, 6.0, 3), False, "better"),
        (Spread(5.0, 4.0, 6.0, 3), True, "worse"),
        (Spread(20.0, 16.0, 30.0, 3), False, "worse"),
        (Spread(20.0, 16.0, 30.0, 3), True, "better"),
        (Spread(9.0, 6.0, 10.0, 3), False, ""),  # one round of it is within the old spread
        (Spread(5.0, 5.0, 5.0, 1), False, ""),  # one round is no spread
    ],
)
def test_a_change_is_one_only_where_no_round_is_within_the_others_spread(
    new: Spread, better_above: bool, word: str
) -> None:
    old = Spread(12.0, 10.0, 15.0, 3)

    assert verdict(old, new, better_above=better_above) == word
