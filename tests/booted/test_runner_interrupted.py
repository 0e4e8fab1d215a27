"""Ctrl-C and other signals while guests boot or run tests: a clean end, and nothing left."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.suite_lab import ONE, Running, running, write

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

STEPS = """\
async def tell(vm):
    (vm.suite / "told").touch()
"""
TESTS = """\
import time

def test_takes_long(host):
    host.step("tell")
    time.sleep(25)
"""
WAIT_SECONDS = 300.0


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A directory with a suite whose one test says when it runs, and then takes long."""
    return write(tmp_path, {"s/guest-suite.yaml": ONE, "s/test_a.py": TESTS, "s/host_steps.py": STEPS})


def until_it_runs(pytest_run: Running, suite: Path) -> None:
    wait_for(pytest_run, suite / "s", "told")


def wait_for(pytest_run: Running, directory: Path, pattern: str) -> None:
    """Wait for a file that is not empty, or named exactly `pattern`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(path.name == pattern or path.stat().st_size for path in directory.glob(pattern)):
        assert pytest_run.process.poll() is None, pytest_run.text
        assert time.monotonic() < deadline, pytest_run.text
        time.sleep(0.05)


def test_ctrl_c_in_the_middle_of_a_test_ends_everything(suite: Path) -> None:
    with running(suite, "s", "-v") as pytest_run:
        until_it_runs(pytest_run, suite)
        pytest_run.signal(signal.SIGINT)
        ended = pytest_run.ended()

    assert ended.status == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in ended.output
    assert "INTERNALERROR" not in ended.output
    assert ended.left == []


def test_ctrl_c_during_a_boot_ends_everything(suite: Path) -> None:
    with running(suite, "s", "-v", "--guest-cold") as pytest_run:
        wait_for(pytest_run, pytest_run.runtime, "vdev-*/logs/console.log")
        pytest_run.signal(signal.SIGINT)
        ended = pytest_run.ended()

    assert ended.status == pytest.ExitCode.INTERRUPTED
    assert "INTERNALERROR" not in ended.output
    assert ended.left == []


def test_sigterm_ends_everything_in_order(suite: Path) -> None:
    with running(suite, "s", "-v") as pytest_run:
        until_it_runs(pytest_run, suite)
        pytest_run.signal(signal.SIGTERM)
        ended = pytest_run.ended()

    assert ended.status == 128 + signal.SIGTERM
    assert "ended by SIGTERM" in ended.output
    assert ended.left == []


def test_sigkill_leaves_no_process(suite: Path) -> None:
    with running(suite, "s", "-v") as pytest_run:
        until_it_runs(pytest_run, suite)
        pytest_run.signal(signal.SIGKILL)
        ended = pytest_run.ended()

    assert ended.status == -signal.SIGKILL
    assert ended.processes == []
