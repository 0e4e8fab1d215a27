"""Tests that lose their guest or end their own process: each fails with its cause and evidence, all others go on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.suite_lab import BOTH, Ended, junit, run, write

pytestmark = [pytest.mark.guest, pytest.mark.timeout(450)]

STEPS = """\
import asyncio

async def kill_qemu(vm):
    vm.vm._qemu._popen.kill()

async def kill_backend(vm):
    vm.vm._backend._popen.kill()

async def stop(vm):
    await vm.qmp("stop")

async def sleep(vm):
    await asyncio.sleep(100)
"""
TESTS = """\
import os, time
import pytest

def sysrq(letter):
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write(letter)
    time.sleep(20)

@pytest.mark.timeout(2)
def test_hangs():
    time.sleep(100)

@pytest.mark.timeout(2)
def test_spins():
    while True:
        pass

@pytest.mark.timeout(2)
def test_is_stopped(host):
    host.step("stop")
    time.sleep(100)

@pytest.mark.timeout(1)
def test_waits_for_the_host(host):
    host.step("sleep")

def test_panics():
    sysrq("c")

def test_passes_between():
    pass

def test_reboots():
    sysrq("b")

def test_powers_off():
    sysrq("o")

def test_kills_qemu(host):
    host.step("kill_qemu")
    time.sleep(20)

def test_kills_the_backend(host):
    host.step("kill_backend")
    time.sleep(20)

def test_sends_garbage(host):
    os.write(host._channel._fd, b"garbage\\n")
    time.sleep(20)

def test_sends_nonsense(host):
    host._channel.send({"report": {"outcome": "failed"}})
    time.sleep(20)

def test_passes_last():
    pass
"""
OWN_PROCESS = """\
import ctypes, os, subprocess, sys, time
import pytest

def test_leaves():
    os._exit(3)

def test_crashes():
    ctypes.string_at(1)

def test_exits():
    sys.exit(4)

def test_ends_pytest():
    pytest.exit("enough of this", 7)

def test_is_interrupted():
    raise KeyboardInterrupt

def test_reports_nonsense(host):
    host._channel.send({"report": {"outcome": "failed", "when": "call"}})

def test_says_what_is_no_report(host):
    host._channel.send({"report": {"outcome": 1, "when": "call"}})

def test_passes_after_all(machine):
    if machine["attach"] == "vhost-user":
        time.sleep(6)  # meanwhile the other guest is lost

def test_is_lost_afterwards():
    # Once the process of the module has gone, and the host knows.
    panic = "while kill -0 %d; do sleep 0.1; done; sleep 1; echo c > /proc/sysrq-trigger"
    subprocess.Popen(["/bin/busybox", "sh", "-c", panic % os.getpid()], stderr=subprocess.DEVNULL)
"""
CAUSES = {
    "test_hangs": "test_a.py::test_hangs did not finish within its limit of 2 s",
    "test_spins": "test_a.py::test_spins did not finish within its limit of 2 s",
    "test_is_stopped": "test_a.py::test_is_stopped did not finish within its limit of 2 s",
    "test_waits_for_the_host": "test_a.py::test_waits_for_the_host did not finish within its limit of 1 s, "
    "which waited for the host to do step 'sleep'",
    "test_panics": "the guest died of a Kernel panic - not syncing",
    "test_reboots": "QEMU exited with status 0 (guest-reset, before the guest's payload was done)",
    "test_powers_off": "QEMU exited with status 0 (guest-shutdown, before the guest's payload was done)",
    "test_kills_qemu": "QEMU was ended by SIGKILL (before the guest's payload was done)",
    "test_kills_the_backend": "the backend was ended by SIGKILL; QEMU was stopped at once",
    "test_sends_garbage": "the guest's payload sent what is not JSON: b'garbage'",
    "test_sends_nonsense": "the guest said something unexpected during test_a.py::test_sends_nonsense",
}
OWN_CAUSES = {
    "test_leaves": "test_b.py::test_leaves ended the process of its module: exit status 3",
    "test_crashes": "test_b.py::test_crashes ended the process of its module: SIGSEGV",
    "test_ends_pytest": "test_b.py::test_ends_pytest ended the process of its module by pytest.exit: enough of this",
    "test_is_interrupted": "test_b.py::test_is_interrupted ended the process of its module by KeyboardInterrupt",
    "test_reports_nonsense": "the guest's report makes no sense: TypeError: it is none of a test",
    "test_says_what_is_no_report": "the guest said something unexpected during test_b.py::test_says_what_is_no_report",
}
SECTIONS = ["guest console, last lines", "QMP, last messages", "vdev trace, last records", "logs"]
ON_BOTH = "panics or passes or kills_the_backend"  # the others on the first machine only


@dataclass(frozen=True)
class Lost:
    """The one run all tests of this file look at."""

    ended: Ended
    cases: dict[str, ElementTree.Element]  # of the JUnit file
    kept: Path  # where logs of lost guests are

    def titles(self, test: str) -> list[str]:
        """The sections printed with a failed test."""
        found = re.findall(r"^-{3,} (.+?) -{3,}$", self.ended.failure(test), re.MULTILINE)
        return [title for title in found if not title.startswith("generated xml file")]


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """One run of all tests that lose their guest, and of some that do not."""
    where = tmp_path_factory.mktemp("lost")
    files = {"guest-suite.yaml": BOTH, "host_steps.py": STEPS, "test_a.py": TESTS, "test_b.py": OWN_PROCESS}
    write(where / "suite", files)
    words = ("-v", "-k", f"vfio-user or {ON_BOTH}", "--junitxml=junit.xml", "--guest-logs=kept")
    ended = run(where, "suite", *words)
    return Lost(ended, junit(where / "junit.xml"), where / "kept")


@pytest.mark.parametrize(("test", "cause"), [*CAUSES.items(), *OWN_CAUSES.items()])
def test_the_test_fails_and_its_first_line_is_the_cause(lost: Lost, test: str, cause: str) -> None:
    assert lost.ended.outcomes()[f"{test}[vfio-user]"] == "FAILED"
    assert lost.ended.cause(f"{test}[vfio-user]").startswith(cause)


@pytest.mark.parametrize("test", [*CAUSES, *OWN_CAUSES])
def test_the_evidence_is_printed_with_it(lost: Lost, test: str) -> None:
    said = lost.ended.failure(f"{test}[vfio-user]")

    assert set(lost.titles(f"{test}[vfio-user]")) <= set(SECTIONS)
    assert test in OWN_CAUSES or '-> {"execute":"query-' in said  # QMP; nobody said anything to one that lives on
    assert re.search(rf"NOTE +test: test_[ab]\.py::{test}$", said, re.MULTILINE)  # the trace, from here on


@pytest.mark.parametrize("test", CAUSES)
def test_the_logs_of_a_lost_guest_are_kept_and_named(lost: Lost, test: str) -> None:
    logs = Path(lost.ended.failure(f"{test}[vfio-user]").strip().splitlines()[-1])

    assert logs.parent == lost.kept
    assert {"console.log", "qmp.log", "trace.jsonl", "backend.log"} <= {path.name for path in logs.iterdir()}


@pytest.mark.parametrize(("test", "line"), [("test_hangs", "time.sleep(100)"), ("test_spins", "while True")])
def test_the_stacks_of_a_test_that_hangs_are_on_the_console(lost: Lost, test: str, line: str) -> None:
    number = next(at for at, text in enumerate(TESTS[TESTS.index(test) :].splitlines()) if line in text)
    number += TESTS[: TESTS.index(test)].count("\n") + 1

    found = re.search(rf'File ".*/test_a\.py", line (\d+) in {test}$', lost.ended.failure(f"{test}[vfio-user]"), re.M)

    assert found is not None
    assert number <= int(found[1]) <= number + 1


def test_the_crash_of_a_process_has_its_stack_on_the_console(lost: Lost) -> None:
    said = lost.ended.failure("test_crashes[vfio-user]")
    assert "Fatal Python error: Segmentation fault" in said
    assert re.search(r'/test_b\.py", line \d+ in test_crashes$', said, re.MULTILINE)


def test_the_console_of_an_earlier_test_is_not_shown_again(lost: Lost) -> None:
    assert "in test_crashes" not in lost.ended.failure("test_is_interrupted[vfio-user]")


def test_a_panic_is_shown_with_the_kernels_last_words(lost: Lost) -> None:
    assert "Kernel Offset:" in lost.ended.failure("test_panics[vfio-user]")
    assert "Kernel Offset:" in lost.ended.failure("test_panics[vhost-user]")


def test_the_trace_of_a_panic_goes_on_to_the_end(lost: Lost) -> None:
    assert re.search(r"iommu0 +HANGUP", lost.ended.failure("test_panics[vfio-user]"))


def test_leaving_by_an_exception_is_an_ordinary_failure(lost: Lost) -> None:
    assert "SystemExit: 4" in lost.ended.failure("test_exits[vfio-user]")


def test_all_other_tests_pass_on_both_machines(lost: Lost) -> None:
    passed = {name for name, outcome in lost.ended.outcomes().items() if outcome == "PASSED"}
    tests = ("test_passes_between", "test_passes_last", "test_passes_after_all")
    assert passed == {f"{test}[{machine}-user]" for test in tests for machine in ("vfio", "vhost")}


def test_a_guest_that_is_lost_after_its_test_is_an_error_of_that_test(lost: Lost) -> None:
    said = lost.ended.failure("ERROR at teardown of test_is_lost_afterwards[vfio-user]")
    assert lost.ended.outcomes()["test_is_lost_afterwards[vfio-user]"] == "ERROR"
    assert said.strip().startswith("the guest was lost after this test: the guest died of a Kernel panic")
    assert "sysrq_handle_crash" in said


def test_the_summary_has_each_cause_in_its_line(lost: Lost) -> None:
    summary = lost.ended.output.partition("short test summary info")[2]
    for test, cause in (CAUSES | OWN_CAUSES).items():
        assert re.search(rf"^FAILED suite/\S+::{test}\[vfio-user\] - {re.escape(cause[:40])}", summary, re.MULTILINE)


def test_junit_has_cause_evidence_and_machine(lost: Lost) -> None:
    case = lost.cases["test_panics[vhost-user]"]
    failure = case.find("failure")

    assert failure is not None
    assert failure.attrib["message"].startswith(CAUSES["test_panics"])
    assert "--- vdev trace, last records ---" in (failure.text or "")
    assert float(case.attrib["time"]) > 0
    assert [(p.attrib["name"], p.attrib["value"]) for p in case.iter("property")] == [("machine", "vhost-user")]


def test_it_ends_with_status_1_and_leaves_nothing(lost: Lost) -> None:
    assert lost.ended.status == 1
    assert lost.ended.left == []
    nfailed = len(CAUSES) + len(OWN_CAUSES) + 1 + 2
    assert lost.ended.counted() == f"{nfailed} failed, 7 passed, 17 deselected, 1 error"
