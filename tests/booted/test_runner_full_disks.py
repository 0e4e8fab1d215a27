"""Disks without room, and saved guests that are damaged: tests run on, and what failed is still explained."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.suite_lab import ONE, Ended, run, write
from vdev.parts.cache import Cache

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

TESTS = """\
import os, time

def test_passes():
    pass

def test_panics():
    with open("/dev/console", "w") as console:
        console.write("this is the end\\n")
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("c")
    time.sleep(20)

def test_passes_again():
    pass
"""
FILLING = """\
import time

def test_fills_the_runtime_directory_and_goes_on(host):
    host.step("fill")
    for _ in range(10):
        assert host.qmp("query-status")["running"]
    host.pause(0.1)

def test_panics():
    with open("/dev/console", "w") as console:
        console.write("this is the end\\n")
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("c")
    time.sleep(20)
"""
STEPS = """\
import errno

async def fill(vm):
    with (vm.vm.logs / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
"""
SUITE = {"s/guest-suite.yaml": ONE, "s/test_a.py": TESTS}
PANIC = "the guest died of a Kernel panic - not syncing"


def with_tmpfs(directory: str, size: str) -> tuple[str, ...]:
    """A command that runs another where `directory`, which it makes, is a file system of `size` of its own."""
    script = f'mkdir -p "{directory}" && mount -t tmpfs -o size={size} none "{directory}" && exec "$@"'
    return "unshare", "-Urm", "sh", "-c", script, "sh"


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Skip where nobody but root may mount."""
    done = subprocess.run([*with_tmpfs("/tmp", "64k"), "true"], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here, not even in a namespace: {done.stderr.strip()}")


def the_panic_is_explained(ended: Ended) -> None:
    said = ended.failure("test_panics[vfio-user]")
    assert ended.cause("test_panics[vfio-user]").startswith(PANIC)
    assert "this is the end" in said or "Kernel Offset:" in said
    assert '-> {"execute":"' in said
    assert "INTERNALERROR" not in ended.output


def test_logs_that_cannot_be_kept_hide_nothing(tmp_path: Path) -> None:
    write(tmp_path, SUITE | {"a-file": "so there is no directory below it"})

    ended = run(tmp_path, "s", "-v", "--guest-logs=a-file/logs")

    the_panic_is_explained(ended)
    assert "NOTE     test: test_a.py::test_panics" in ended.failure("test_panics[vfio-user]")
    assert "the logs could not be kept in a-file/logs: [Errno 20]" in ended.failure("test_panics[vfio-user]")
    assert ended.counted() == "1 failed, 2 passed"
    assert (ended.status, ended.left) == (1, [])


@pytest.mark.usefixtures("_namespaces")
def test_a_full_disk_for_logs_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path, SUITE)

    ended = run(tmp_path, "s", "-v", "--guest-logs=kept", wrapper=with_tmpfs("kept", "4k"))

    the_panic_is_explained(ended)
    assert "the logs could not be kept in kept: [Errno 28] No space left on device" in ended.output
    assert ended.counted() == "1 failed, 2 passed"
    assert (ended.status, ended.left) == (1, [])


@pytest.mark.usefixtures("_namespaces")
def test_a_runtime_directory_that_fills_up_ends_no_guest(tmp_path: Path) -> None:
    write(tmp_path, {"s/guest-suite.yaml": ONE, "s/test_a.py": FILLING, "s/host_steps.py": STEPS})

    ended = run(tmp_path, "s", "-v", wrapper=with_tmpfs("$XDG_RUNTIME_DIR", "1m"))

    assert ended.outcomes()["test_fills_the_runtime_directory_and_goes_on[vfio-user]"] == "PASSED"
    the_panic_is_explained(ended)
    assert ended.counted() == "1 failed, 1 passed"
    assert (ended.status, ended.left) == (1, [])


@pytest.mark.usefixtures("_namespaces")
def test_a_full_runtime_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    write(tmp_path, SUITE)

    ended = run(tmp_path, "s", "-v", wrapper=with_tmpfs("$XDG_RUNTIME_DIR", "4k"))

    said = ended.failure("ERROR at setup of test_passes[vfio-user]")
    assert said.strip().startswith("vfio-user did not come up: ")
    assert "No space left on device" in said
    assert ended.counted() == "3 errors"
    assert (ended.status, ended.left) == (1, [])


def a_cache(directory: Path) -> Path:
    """A cache with the parts of the real one, and no saved guest."""
    directory.mkdir()
    for path in Cache().root.iterdir():
        if path.name not in ("guest-snapshots", "guest-collected"):
            (directory / path.name).symlink_to(path)
    return directory


PASSING = {"s/guest-suite.yaml": ONE, "s/test_a.py": "def test_passes():\n    pass\n"}


def test_where_no_guest_can_be_saved_guests_are_booted(tmp_path: Path) -> None:
    write(tmp_path, SUITE)
    (a_cache(tmp_path / "cache") / "guest-snapshots").write_text("no directory")

    ended = run(tmp_path, "s", "-v", env={"VDEV_CACHE": str(tmp_path / "cache")})

    assert ended.output.count("guest: guests are booted, not restored: ") == 1
    assert ended.output.count("guest: vfio-user: booted in") == 2  # at first, and after the panic
    assert ended.counted() == "1 failed, 2 passed"
    assert (ended.status, ended.left) == (1, [])


@pytest.mark.usefixtures("_namespaces")
def test_a_cache_without_room_for_a_guest_says_so(tmp_path: Path) -> None:
    write(tmp_path, PASSING)
    cache = a_cache(tmp_path / "cache")

    ended = run(
        tmp_path, "s", "-v", env={"VDEV_CACHE": str(cache)}, wrapper=with_tmpfs(str(cache / "guest-snapshots"), "20m")
    )

    assert "guest: guests are booted, not restored: " in ended.output
    assert "No space left on device" in ended.output
    assert ended.counted() == "1 passed"
    assert (ended.status, ended.left) == (0, [])


def test_a_damaged_saved_guest_is_replaced_by_a_boot(tmp_path: Path) -> None:
    write(tmp_path, PASSING)
    cache = a_cache(tmp_path / "cache")
    first = run(tmp_path, "s", "-v", env={"VDEV_CACHE": str(cache)})
    (saved,) = (cache / "guest-snapshots").iterdir()
    with saved.open("r+b") as file:
        file.truncate(saved.stat().st_size // 2)

    ended = run(tmp_path, "s", "-v", env={"VDEV_CACHE": str(cache)})

    assert "could not be restored" not in first.output
    assert "guest: vfio-user: could not be restored, booting it: " in ended.output
    assert ended.counted() == first.counted() == "1 passed"
    assert (ended.status, ended.left) == (0, [])
    assert not saved.exists()
