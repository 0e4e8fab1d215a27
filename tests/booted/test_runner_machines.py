"""Machines that do not come up, files that are wrong, modules that cannot be imported: said once, and nothing waits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.suite_lab import MACHINE, ONE, Ended, run, write

pytestmark = [pytest.mark.guest, pytest.mark.timeout(450)]

MACHINES = f"""\
machines:
  - {{name: no-kernel, config: {MACHINE}, kernels: [/nowhere/bzImage]}}
  - {{name: panics, config: {MACHINE}, append: rdinit=/nothing root=/dev/nothing}}
  - {{name: refused, config: {MACHINE.replace("name: lab", "name: lab, extra_args: [-nonsense]")}}}
  - {{name: good, config: {MACHINE}}}
"""
THREE = "".join(f"def test_{n}():\n    pass\n\n" for n in ("one", "two", "three"))
BROKEN = "import nothing_there\n\ndef test_never():\n    pass\n"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    where = tmp_path_factory.mktemp("machines")
    write(where, {"s/guest-suite.yaml": MACHINES, "s/test_a.py": THREE})
    return run(where, "s", "-v")


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ("no-kernel-vfio-user-bzImage", "vm.kernel: /nowhere/bzImage does not exist"),
        ("panics-vfio-user", "the guest died of a Kernel panic - not syncing: VFS: Unable to mount root fs"),
        ("refused-vfio-user", "vm.extra_args"),
    ],
)
def test_a_machine_that_does_not_come_up_is_an_error_of_its_tests_and_tried_once(
    machines: Ended, machine: str, reason: str
) -> None:
    first = machines.failure(f"ERROR at setup of test_one[{machine}]").strip()
    second = machines.failure(f"ERROR at setup of test_two[{machine}]").strip()

    assert first.startswith(f"{machine} did not come up: ")
    assert reason in first.splitlines()[0]
    assert second.startswith(f"{machine} did not come up before: ")
    assert len(second.splitlines()) == 1


def test_a_kernel_that_panics_is_shown_with_its_console(machines: Ended) -> None:
    said = machines.failure("ERROR at setup of test_one[panics-vfio-user]")
    assert "guest console, last lines" in said
    assert "Kernel panic - not syncing" in said.partition("guest console, last lines")[2]


def test_the_other_machines_run_all_the_same(machines: Ended) -> None:
    passed = [name for name, outcome in machines.outcomes().items() if outcome == "PASSED"]
    assert passed == [f"test_{n}[good-vfio-user]" for n in ("one", "two", "three")]
    assert machines.counted() == "3 passed, 9 errors"
    assert (machines.status, machines.left) == (1, [])


def test_a_wrong_suite_file_is_refused_with_key_rule_and_cure(tmp_path: Path) -> None:
    wrong = ONE.replace("config:", "atach: [vfio-user], config:")
    write(tmp_path / "s", {"guest-suite.yaml": wrong, "test_a.py": THREE})

    ended = run(tmp_path, "s")

    problem = "machines[0].atach: there is no such key (did you mean attach?)"
    assert f"{tmp_path}/s/guest-suite.yaml: {problem}" in ended.output
    assert (ended.status, ended.left) == (pytest.ExitCode.INTERRUPTED, [])


def test_what_cannot_be_collected_is_shown_as_the_guest_sees_it(tmp_path: Path) -> None:
    files = {"test_broken.py": BROKEN, "test_good.py": THREE, "other.py": THREE}
    write(tmp_path / "s", {"guest-suite.yaml": ONE, **files})

    ended = run(tmp_path, *(f"s/{name}" for name in files), "--collect-only", "-q")

    assert "ModuleNotFoundError: No module named 'nothing_there'" in ended.failure("ERROR collecting s/test_broken.py")
    assert "guest tests are in files called test_*.py or *_test.py" in ended.failure("ERROR collecting s/other.py")
    assert "s/test_good.py::test_one[vfio-user]" in ended.output
    assert (ended.status, ended.left) == (pytest.ExitCode.INTERRUPTED, [])


def test_collecting_shows_the_tree_and_starts_no_guest(tmp_path: Path) -> None:
    tests = "class TestIt:\n    def test_one(self):\n        pass\n"
    write(tmp_path / "s", {"guest-suite.yaml": ONE, "test_a.py": tests})

    ended = run(tmp_path, "s", "--collect-only")

    tree = re.findall(r"^ *<(\w+ \S+)>$", ended.output, re.MULTILINE)
    assert tree[-3:] == ["GuestModule test_a.py", "GuestClass TestIt", "GuestItem test_one[vfio-user]"]
    assert "guest: booting" not in ended.output
    assert (ended.status, ended.left) == (0, [])
