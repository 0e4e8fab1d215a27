"""Which socket `vdev ctl` asks, and what it says when there is none or the wrong one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_monitor import RESUME, FakeMonitor, monitor
from vdev.ctl import client
from vdev.ctl.run import ANSWER_S, run, timeout_of
from vdev.errors import ConfigError, VdevError
from vdev.qapi.schema import schema

SLOT = {"bdf": "02:00.0", "unit": "iommu0", "port": "port2"}


def answer(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a bridge: query-slots, endpoint-unplug, and nothing else."""
    if request["execute"] == "__org.vdev_query-slots":
        return [{"return": [SLOT], "id": request["id"]}]
    if request["execute"] == "__org.vdev_endpoint-unplug":
        return [{"error": {"class": "GenericError", "desc": "name: there is no such endpoint"}, "id": request["id"]}]
    desc = f"The command {request['execute']} has not been found"
    return [{"error": {"class": "CommandNotFound", "desc": desc}, "id": request["id"]}]


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[FakeMonitor]:
    with monitor(tmp_path / "monitor.sock", answer) as fake:
        yield fake


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """Somebody who takes connections and says nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield


def test_the_bridge_is_asked_with_the_prefix(
    bridge: FakeMonitor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(["--runtime-dir", str(tmp_path), "query-slots"])

    assert status == 0
    assert capsys.readouterr().out == "bdf      unit    port\n02:00.0  iommu0  port2\n"
    assert [request["execute"] for request in bridge.seen] == ["qmp_capabilities", "__org.vdev_query-slots"]


def test_json_is_the_reply_as_it_came(bridge: FakeMonitor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["query-slots", "--json", "--socket", str(tmp_path / "monitor.sock")])

    assert json.loads(capsys.readouterr().out) == [SLOT]


def test_arguments_arrive_as_the_schema_has_them(bridge: FakeMonitor, tmp_path: Path) -> None:
    words = ["endpoint-unplug", "--name", "accel1", "--timeout", "1.5", "--runtime-dir", str(tmp_path)]

    with pytest.raises(VdevError, match="there is no such endpoint"):
        run(words)

    assert bridge.seen[-1]["arguments"] == {"name": "accel1", "timeout": 1.5}


def test_a_monitor_that_does_not_know_our_commands_is_told_from_a_bridge(bridge: FakeMonitor, tmp_path: Path) -> None:
    with pytest.raises(VdevError, match=r"QEMU's alone: The command __org\.vdev_query-status has not"):
        run(["--runtime-dir", str(tmp_path), "query-status"])


def test_events_of_the_bridge_are_followed_and_qemus_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"event": "__org.vdev_QEMU_LOST", "timestamp": {"seconds": 0, "microseconds": 0}, "data": {"reason": "x"}}

    with monitor(tmp_path / "monitor.sock", answer, farewell=[RESUME, told, RESUME]):
        status = run(["--runtime-dir", str(tmp_path), "events"])

    assert status == 0
    assert capsys.readouterr().out.split(" ", 1)[1] == "QEMU_LOST reason=x\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["endpoint-plug", "--name", "x"], "endpoint-plug: needs QEMU's monitor as well.*qmp-bridge attach"),
        (["endpoint-unplug", "--name", "x"], "endpoint-unplug: needs QEMU's monitor"),
    ],
)
def test_a_command_that_needs_a_bridge_says_so_without_one(tmp_path: Path, words: list[str], problem: str) -> None:
    with listening(tmp_path / "control.sock"), pytest.raises(VdevError, match=problem):
        run(["--runtime-dir", str(tmp_path), *words])


def test_a_command_of_the_control_socket_is_not_sent_to_a_monitor(tmp_path: Path) -> None:
    with pytest.raises(VdevError, match=r"query-iommu: is not on QMP \(give --socket"):
        run(["--socket", str(tmp_path / "qmp.sock"), "query-iommu"])


def test_nobody_there_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"control.sock: nobody listens there: No such file"):
        run(["--runtime-dir", str(tmp_path), "query-status"])


def test_without_a_directory_there_must_be_one_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "vdev-a", tmp_path / "vdev-b"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for place in places:
        place.mkdir()
        (place / "control.sock").touch()

    with pytest.raises(ConfigError, match=f"running VMs were found: .*{places[0]}, {places[1]}"):
        run(["query-status"])


def test_who_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GREETING_S", 0.05)

    with listening(tmp_path / "monitor.sock"), pytest.raises(VdevError, match="no answer in time"):
        run(["--runtime-dir", str(tmp_path), "query-slots"])


def test_who_is_no_monitor_is_not_asked(tmp_path: Path) -> None:
    with (
        monitor(tmp_path / "monitor.sock", answer, greeting=b"SSH-2.0-OpenSSH_9.2\r\n"),
        pytest.raises(VdevError, match=r"does not speak JSON, but 'SSH-2\.0"),
    ):
        run(["--runtime-dir", str(tmp_path), "query-slots"])


def test_an_answer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_MESSAGE_NBYTES", 1 << 20)

    with (
        monitor(tmp_path / "monitor.sock", answer, greeting=b"{" + b'"a": 1,\n' * (1 << 18)),
        pytest.raises(VdevError, match="an answer of more than 1 MiB"),
    ):
        run(["--runtime-dir", str(tmp_path), "query-slots"])


def test_a_command_that_waits_for_the_guest_is_waited_for() -> None:
    plug, status = schema().commands["endpoint-plug"], schema().commands["query-status"]

    assert timeout_of(plug, {"timeout": 600}) == ANSWER_S + 600
    assert timeout_of(plug, {}) > ANSWER_S
    assert timeout_of(status, {}) == ANSWER_S
