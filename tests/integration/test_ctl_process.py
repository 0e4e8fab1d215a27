"""`vdev ctl` as people run it, against a real `vdev serve`."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.serve_process import ONE_UNIT, ServeProcess, serving
from vdev.control import places
from vdev.control.places import running_vms
from vdev.ctl.run import run

CTL = [sys.executable, "-m", "vdev", "ctl"]
WAIT_S = 20.0


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(ONE_UNIT, tmp_path_factory.mktemp("run") / "vdev-test") as served:
        yield served


def ctl(process: ServeProcess, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*CTL, "--runtime-dir", str(process.directory), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_a_reply_is_text_or_json(process: ServeProcess) -> None:
    shown, raw = ctl(process, "query-status"), ctl(process, "query-status", "--json")

    assert (shown.returncode, raw.returncode) == (0, 0)
    assert f"  accel0    {process.path('accel0')} " in shown.stdout
    functions: list[dict[str, Any]] = json.loads(raw.stdout)["functions"]
    assert {function["function"] for function in functions} == {"iommu0", "accel0"}


def test_the_one_vm_that_runs_is_found(
    process: ServeProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(process.directory.parent))
    found = running_vms()
    monkeypatch.setattr(places, "running_vms", lambda: [process.directory])  # others may be below /tmp

    status = run(["query-status", "--json"])

    assert process.directory in found
    assert status == 0
    assert json.loads(capsys.readouterr().out)["vm"] == "vm"


def test_a_command_that_changes_something_says_nothing_or_what_it_returns(process: ServeProcess) -> None:
    note, frozen, thawed = ctl(process, "trace-note", "--text", "x"), ctl(process, "freeze"), ctl(process, "thaw")

    assert (note.returncode, note.stdout) == (0, "")
    assert "by:      a control client" in frozen.stdout
    assert (thawed.returncode, thawed.stdout) == (0, "")


def test_a_refusal_has_status_1_and_its_reason(process: ServeProcess) -> None:
    refused = ctl(process, "query-trace", "--types", "NOTHING")

    assert (refused.returncode, refused.stdout) == (1, "")
    assert "types: there is no 'NOTHING'" in refused.stderr


def test_events_are_lines_as_they_happen(process: ServeProcess) -> None:
    command = [*CTL, "--runtime-dir", str(process.directory), "events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None
        # Until it follows, events pass it by: so there are some until the first arrives.
        line = ""
        for _ in range(200):
            process.ask("set-bypass", bypass=False, unit="iommu0")
            process.ask("set-bypass", bypass=True, unit="iommu0")
            if select.select([popen.stdout], [], [], 0.1)[0]:
                line = popen.stdout.readline()
                break
        popen.send_signal(signal.SIGINT)
        _, errors = popen.communicate(timeout=WAIT_S)

    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6} BYPASS_CHANGED unit=iommu0 bypass=(yes|no)\n", line)
    assert (popen.returncode, errors) == (0, "")


def test_a_stream_ends_quietly_with_ctrl_c(process: ServeProcess) -> None:
    command = [*CTL, "--runtime-dir", str(process.directory), "trace-follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline().startswith(b"vdev_trace:")
        popen.send_signal(signal.SIGINT)
        _, errors = popen.communicate(timeout=WAIT_S)

    assert (popen.returncode, errors) == (0, b"")


def test_a_reader_that_has_enough_is_no_error(process: ServeProcess) -> None:
    command = [*CTL, "--runtime-dir", str(process.directory), "query-iommu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        popen.stdout.close()
        _, errors = popen.communicate(timeout=WAIT_S)

    assert (popen.returncode, errors) == (0, b"")
