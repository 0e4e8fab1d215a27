"""The guest's checks, on the host, against a fake device: honest ones pass, flawed ones are found out."""

from __future__ import annotations

import ast
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import guest_tests.payload
from guest_tests.payload import accel, guest, main
from guest_tests.payload.checks import CHECKS, Check
from guest_tests.payload.lab import CheckFailed, Finding, Lab, endpoint_id
from tests.support.fake_vfio import FakeLog, fake_lab

NEED_A_KERNEL = {"driver-bound", "own-group", "opens-through-vfio", "several", "hwrng", "gives-back"}
BY_NAME = {check.name: check for check in CHECKS}


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.name not in NEED_A_KERNEL])
def test_a_check_passes_on_an_honest_device(name: str) -> None:
    record = main.run_check(BY_NAME[name], fake_lab())

    assert record["ok"], record["detail"]
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("flaw", "name"),
    [
        ("corrupts", "copy"),
        ("corrupts", "fill-compare-checksum"),
        ("corrupts", "two-mappings"),
        ("corrupts", "device-memory"),
        ("keeps-mappings", "refused-after-unmap"),
        ("keeps-mappings", "end-of-mapping"),
        ("keeps-mappings", "remap"),
        ("ignores-permissions", "read-only-mapping"),
        ("ignores-permissions", "write-only-mapping"),
        ("names-the-start", "end-of-mapping"),
        ("silent-kernel", "refused-after-unmap"),
        ("silent-kernel", "outside-any-mapping"),
        ("no-interrupt", "interrupt"),
        ("reset-forgets", "reset"),
        ("ignores-bus-master", "bus-master"),
    ],
)
def test_a_check_finds_the_flaw_it_exists_for(flaw: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guest_tests.payload.checks_device.INTERRUPT_TIMEOUT_MS", 50)

    record = main.run_check(BY_NAME[name], fake_lab(flaw))

    assert not record["ok"]
    assert record["detail"]


def test_every_check_has_its_own_name_and_title() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert len({check.title for check in CHECKS}) == len(CHECKS)


def test_a_check_without_an_opened_device_says_it_was_not_run() -> None:
    record = main.run_check(BY_NAME["copy"], Lab(FakeLog()))

    assert not record["ok"]
    assert record["detail"].startswith("not run")


def test_a_device_that_never_completes_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "TIMEOUT_S", 0.05)
    lab = fake_lab()
    lab.device.set_command(off=4)  # no bus mastering: the fake does nothing

    record = main.run_check(BY_NAME["copy"], lab)

    assert not record["ok"]
    assert "no completion" in record["detail"]


class _Recorder(guest.Channel):
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def test_done_is_sent_even_when_a_check_breaks_unforeseen() -> None:
    def broken(lab: Lab) -> Finding:
        raise KeyError("nobody foresaw this")

    channel = _Recorder()
    with pytest.raises(KeyError):
        main.run_all(channel, fake_lab(), [BY_NAME["copy"], Check("broken", "Broken", broken)])

    assert channel.sent[-1] == {"done": True, "ok": False, "checks": 1, "passed": 1}


def test_done_is_not_ok_when_one_check_failed() -> None:
    def failing(lab: Lab) -> Finding:
        raise CheckFailed("wrong")

    channel = _Recorder()
    ok = main.run_all(channel, fake_lab(), [Check("failing", "Failing", failing), BY_NAME["copy"]])

    assert not ok
    assert channel.sent[-1] == {"done": True, "ok": False, "checks": 2, "passed": 1}
    assert [message["check"] for message in channel.sent if "check" in message] == ["failing", "copy"]


def test_channel_sends_and_receives_json_lines() -> None:
    ours, theirs = socket.socketpair()
    channel = _channel_on(ours.detach())
    with theirs:
        channel.send({"hello": 1})
        theirs.sendall(b'{"bye": 1}\n{"next"')

        assert theirs.recv(100) == b'{"hello":1}\n'
        assert channel.receive(1.0) == {"bye": 1}
        assert channel.receive(0.01) is None
    os.close(channel._fd)


def _channel_on(fd: int) -> guest.Channel:
    channel = guest.Channel.__new__(guest.Channel)
    channel._fd = fd
    channel._pending = b""
    return channel


def test_a_kernel_log_record_is_split_into_time_and_text() -> None:
    record = b"3,812,5123456,-;virtio_iommu virtio0: page fault from EP 256 at 0x1000 [W]\n SUBSYSTEM=virtio\n"

    assert guest.parse_kmsg(record) == (5.123456, "virtio_iommu virtio0: page fault from EP 256 at 0x1000 [W]")


def test_endpoint_ids_are_packed_bdfs() -> None:
    assert endpoint_id("0000:01:00.0") == 0x100
    assert endpoint_id("0000:00:1f.3") == 0x1F << 3 | 3


UNDER_PYTEST = {
    "agent.py", "collecting.py", "fault_fixtures.py", "fixtures.py", "host.py", "session.py", "stock_fixtures.py",
}  # fmt: skip


def test_the_payload_imports_only_the_standard_library_and_its_siblings() -> None:
    allowed = {
        *("__future__", "base64", "bisect", "collections", "contextlib", "ctypes", "dataclasses", "enum"),
        *("faulthandler", "fcntl", "functools", "hashlib", "importlib", "json", "mmap", "os", "pathlib", "platform"),
        *("random", "select", "signal", "struct", "sys", "threading", "time", "traceback", "types", "typing"),
        *("warnings", "zlib"),
    }
    payload = Path(guest_tests.payload.__path__[0])
    found = set()
    for path in payload.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.split(".")[0] for name in names}
            found |= roots - {"pytest"} if path.name in UNDER_PYTEST else roots
    assert found <= allowed


def test_a_run_of_no_checks_is_not_ok() -> None:
    channel = _Recorder()

    assert not main.run_all(channel, fake_lab(), [])
    assert channel.sent == [{"done": True, "ok": False, "checks": 0, "passed": 0}]
