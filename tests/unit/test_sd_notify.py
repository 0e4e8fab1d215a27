"""What systemd is told, over a path and over an abstract socket, and what happens when nobody listens."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdev.transports.sd_notify import READY, notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has one, and its NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@vdev-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        sock.setblocking(False)
        yield sock, address


def test_all_lines_come_in_one_message(systemd: tuple[socket.socket, str]) -> None:
    sock, address = systemd
    assert notify(address, READY, "STATUS=serving vm")
    assert sock.recv(1000) == b"READY=1\nSTATUS=serving vm"


@pytest.mark.parametrize("address", [None, ""])
def test_without_systemd_nothing_is_said(address: str | None, caplog: pytest.LogCaptureFixture) -> None:
    assert not notify(address, READY)
    assert caplog.text == ""


def test_a_socket_nobody_has_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not notify(str(tmp_path / "none"), READY)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("systemd was not told READY=1: NOTIFY_SOCKET=")


def test_an_address_of_another_family_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert not notify("vsock:2:1234", READY)
    assert "NOTIFY_SOCKET=vsock:2:1234 is neither a path nor an abstract socket" in caplog.text
