"""`qmp-bridge attach`: a QEMU and a vdev that somebody else started, real ones, and all that can be wrong with them."""

from __future__ import annotations

import contextlib
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.monitor_lab import client
from tests.support.real_qemu import real_qemu
from tests.support.serve_process import ONE_UNIT, ServeProcess

WAIT_S = 30.0
COMMAND = [sys.executable, "-m", "qmp_bridge", "attach"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServeProcess]:
    process = ServeProcess(ONE_UNIT, tmp_path / "vdev")
    yield process
    process.kill()


def options(serve: ServeProcess, qmp: object) -> list[str]:
    return ["--qmp", str(qmp), "--vdev", serve.ready["control"]]


@contextlib.contextmanager
def attached(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An `attach` that serves."""
    with log.open("w") as said:
        process = subprocess.Popen([*COMMAND, *arguments], stderr=said)
    try:
        deadline = time.monotonic() + WAIT_S
        while "the monitor is" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def refused(arguments: list[str]) -> str:
    """What an `attach` says that cannot be; it ends with status 2."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


def becomes(serve: ServeProcess, frozen: bool) -> None:
    deadline = time.monotonic() + WAIT_S
    while ("frozen" in serve.ask("query-status")) != frozen:
        assert time.monotonic() < deadline, f"not frozen={frozen}"
        time.sleep(0.02)


async def test_vdev_follows_the_vm_whoever_stops_it_from_its_present_state_on(
    serve: ServeProcess, tmp_path: Path
) -> None:
    with (
        real_qemu(tmp_path, "qmp", "other") as paths,
        attached(options(serve, paths["qmp"]), tmp_path / "log"),
    ):
        becomes(serve, True)  # it was started with -S
        async with client(paths["other"]) as somebody:
            await somebody.ask("cont")
            becomes(serve, False)
            await somebody.ask("stop")
            becomes(serve, True)


async def test_one_socket_has_qemus_and_vdevs_commands_and_the_guard(serve: ServeProcess, tmp_path: Path) -> None:
    with real_qemu(tmp_path, "qmp") as paths, attached(options(serve, paths["qmp"]), tmp_path / "log"):
        async with client(str(tmp_path / "vdev" / "monitor.sock")) as person:
            assert (await person.ask("query-status"))["return"]["running"] is False
            assert (await person.ask("__org.vdev_query-status"))["return"]["vm"]
            assert "vdev refuses migrate" in (await person.ask("migrate", uri="exec:cat"))["error"]["desc"]
            assert await person.ask("cont") == {"return": {}}
            assert "frozen" not in serve.ask("query-status")
            assert await person.ask("stop") == {"return": {}}
            assert "frozen" in serve.ask("query-status")


def test_the_socket_is_its_owners_and_gone_after_a_signal(serve: ServeProcess, tmp_path: Path) -> None:
    path = tmp_path / "mine.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    arguments = ["--listen", str(path)]
    with (
        real_qemu(tmp_path, "qmp") as paths,
        attached([*options(serve, paths["qmp"]), *arguments], tmp_path / "log") as process,
    ):
        mode = stat.S_IMODE(path.stat().st_mode)
        second = refused([*options(serve, paths["qmp"]), *arguments])
        still_there = path.exists()
        process.send_signal(signal.SIGTERM)
        status = process.wait(WAIT_S)
    assert mode == 0o600
    assert "something is there already" in second
    assert still_there
    assert status == 128 + signal.SIGTERM
    assert not path.exists()


def test_a_monitor_that_somebody_uses_is_recognised(serve: ServeProcess, tmp_path: Path) -> None:
    with real_qemu(tmp_path, "qmp") as paths, socket.socket(socket.AF_UNIX) as somebody:
        somebody.connect(paths["qmp"])
        somebody.recv(1)
        said = refused(options(serve, paths["qmp"]))
    assert "is somebody connected to it? QEMU serves one client of a monitor at a time" in said


def test_what_is_no_qmp_monitor_is_named_with_what_it_is(serve: ServeProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "No such file or directory" in refused(options(serve, tmp_path / "nothing"))
    assert "is no socket" in refused(options(serve, tmp_path / "file"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
        assert "Connection refused" in refused(options(serve, tmp_path / "dead.sock"))
    human = ("-chardev", f"socket,id=human,path={tmp_path}/human.sock,server=on,wait=off", "-monitor", "chardev:human")
    with real_qemu(tmp_path, "qmp", arguments=("-machine", "none", *human)):
        assert "does not speak QMP" in refused(options(serve, tmp_path / "human.sock"))


def test_what_is_no_vdev_is_named(serve: ServeProcess, tmp_path: Path) -> None:
    with real_qemu(tmp_path, "qmp") as paths:
        nothing = refused(["--qmp", paths["qmp"], "--vdev", str(tmp_path / "nothing")])
        swapped = refused(["--qmp", serve.ready["control"], "--vdev", paths["qmp"]])
    assert "--vdev: " in nothing
    assert "No such file or directory" in nothing
    assert "--vdev: " in swapped
