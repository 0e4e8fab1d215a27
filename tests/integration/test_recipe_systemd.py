"""The systemd unit in docs/recipes: its own lines, run as systemd would run them."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.serve_process import ONE_UNIT

UNIT = Path(__file__).parents[2] / "docs" / "recipes" / "systemd" / "vdev@.service"
WAIT_S = 20.0


def service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


def exec_start(name: str) -> list[str]:
    """The ExecStart words for instance `name`, with the interpreter of these tests for the installed program."""
    program, *words = shlex.split(service()["ExecStart"].replace("%i", name))
    assert program == "/opt/vdev/bin/vdev"
    return [sys.executable, "-m", "vdev", *words]


def test_the_units_command_says_ready_and_stopping(tmp_path: Path) -> None:
    config = tmp_path / "vm1.yaml"
    config.write_text(ONE_UNIT)
    command = [word.replace("/etc/vdev/", f"{tmp_path}/") for word in exec_start("vm1")]
    runtime = tmp_path / service()["RuntimeDirectory"].replace("%i", "vm1")
    runtime.mkdir(parents=True, mode=int(service()["RuntimeDirectoryMode"], 8))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(WAIT_S)
        env = {**os.environ, "RUNTIME_DIRECTORY": str(runtime), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                ready = systemd.recv(1000)
                there = sorted(path.name for path in runtime.iterdir())
                process.send_signal(signal.SIGTERM)
                stopping = systemd.recv(1000)
                out, _ = process.communicate(timeout=WAIT_S)
            finally:
                process.kill()

    assert ready == b"READY=1\nSTATUS=serving vm"
    assert there == ["accel0.sock", "control.sock", "iommu0.sock", "viot.bin"]
    assert json.loads(out)["ready"] is True
    assert stopping == b"STOPPING=1"
    assert process.returncode == 0
    assert list(runtime.iterdir()) == []


def test_the_units_lines_are_those_vdev_can_live_with() -> None:
    lines = service()
    assert (lines["Type"], lines["RestrictAddressFamilies"]) == ("notify", "AF_UNIX")
    # Each of these breaks it: where users and pids are mapped or hidden, nobody can prove who they are.
    assert not {"PrivateUsers", "PrivatePIDs", "DynamicUser", "RootDirectory"} & set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this host")
def test_systemd_takes_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "vdev@.service"
    unit.write_text(UNIT.read_text().replace("/opt/vdev/bin/vdev", sys.executable))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip

    said = [line for line in done.stderr.splitlines() if "vdev@" in line and "not found" not in line]
    assert said == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this host")
def test_a_line_systemd_does_not_know_would_be_seen(tmp_path: Path) -> None:
    unit = tmp_path / "vdev@.service"
    unit.write_text(UNIT.read_text().replace("PrivateTmp=yes", "PrivateTemp=yes"))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip

    assert any("PrivateTemp" in line and "vdev@" in line for line in done.stderr.splitlines())
