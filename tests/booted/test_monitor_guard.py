"""The guarded monitor in front of a real QEMU: what the guard relies on is QEMU's own behaviour."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from guest_tests.boot import Control
from qmp_bridge.guard import QMP, REASONS
from qmp_bridge.plan import Options
from qmp_bridge.up import RunningVm, bring_up
from tests.booted.conftest import CONFIG
from vdev.config import load_config

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

REFUSED = [name for name, rule in QMP.items() if rule in REASONS]
PIPELINED = (
    b"{'execute': 'qmp_capabilities', 'id': 'first', \n 'arguments': {'enable': []}}"
    b"{'execute': 'query-status', 'id': 1}"
    + b"".join(b"{'execute':'%s','id':'%s'}" % (name.encode(), name.encode()) for name in REFUSED)
    + b"{'execute': 'human-monitor-command', 'id': {'a': [2.5]}, 'arguments': {'command-line': ' savevm x'}}"
    b"{'execute': 'human-monitor-command', 'id': 'help', 'arguments': {'command-line': 'info status'}}"
    b"{'execute': 'nonsense', 'id': [\"it's\", 'q\"']} {'execute': @ }\n"
    b"{N{'execute': 'migrate', 'id': 'inside', 'arguments': {'uri': 'exec:cat >/dev/null'}}}"
    b"{'execute': 'stop', 'id': '\\ud800'}"
    b"{'execute': 'query-name', 'id': 'last'}"
)


def converse(path: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Send everything at once; the replies by their ids, in the order they came, the last one included; and what the
    errors without an id say."""
    replies: dict[str, dict[str, Any]] = {}
    nameless: list[str] = []
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as lines:
        sock.settimeout(60)
        sock.connect(path)
        sock.sendall(PIPELINED)
        while '"last"' not in replies:
            message = json.loads(lines.readline())
            if "QMP" not in message and "event" not in message:
                replies[json.dumps(message.get("id"))] = message
                nameless += [] if "id" in message else [message["error"]["desc"]]
    return replies, nameless


async def _stop_reset_and_continue(vm: RunningVm, qmp: QMPClient) -> list[tuple[bool, bool]]:
    """(QEMU runs, the backend is frozen) after each of stop, system_reset and cont."""
    seen = []
    async with Control.connected(vm.control_path) as control:
        for command in ("stop", "system_reset", "cont"):
            await qmp.execute(command)
            status = await qmp.execute("query-status")
            assert isinstance(status, dict)
            seen.append((status["running"], "frozen" in await control.execute("query-status")))
    return seen


async def _pass_a_file_descriptor(qmp: QMPClient) -> object:
    read, write = os.pipe()
    try:
        qmp.send_fd_scm(read)
        return await qmp.execute("getfd", {"fdname": "pipe"})
    finally:
        os.close(read)
        os.close(write)


async def test_a_real_qemu_behind_the_guard() -> None:
    async with bring_up(load_config(CONFIG), Options(config_path=CONFIG, payload=None)) as vm:
        replies, nameless = await asyncio.to_thread(converse, vm.monitor_path)
        async with Control.connected(vm.control_path) as control:
            frozen_by_what_qemu_could_not_read = "frozen" in await control.execute("query-status")
        qmp = QMPClient("user")
        await qmp.connect(vm.monitor_path)
        try:
            taken = await _pass_a_file_descriptor(qmp)
            await qmp.execute("set-action", {"reboot": "reset"})  # -no-reboot would end QEMU instead
            states = await _stop_reset_and_continue(vm, qmp)
            with pytest.raises(ExecuteError, match="vdev refuses migrate: QEMU neither"):
                await qmp.execute("migrate", {"uri": "exec:cat >/dev/null"})
        finally:
            await qmp.disconnect()
        with pytest.raises(ExecuteError, match="vdev refuses savevm: QEMU neither"):
            await vm.qmp.execute("human-monitor-command", {"command-line": "savevm x"})

    ids = ["first", 1, *REFUSED, {"a": [2.5]}, "help", ["it's", 'q"'], None, "inside", "last"]
    assert list(replies) == [json.dumps(own) for own in ids]
    for name in REFUSED:
        assert replies[f'"{name}"']["error"]["class"] == "GenericError"
        assert replies[f'"{name}"']["error"]["desc"].startswith(f"vdev refuses {name}: ")
    assert replies['{"a": [2.5]}']["error"]["desc"].startswith("vdev refuses savevm: ")
    assert replies['"help"']["return"].startswith("VM status: ")
    assert "nonsense" in replies['["it\'s", "q\\""]']["error"]["desc"]
    assert replies['"inside"']["error"]["desc"].startswith("vdev refuses migrate: ")  # where QEMU finds it as well
    complaints = [desc.partition(": ")[2].partition(",")[0] for desc in nameless]  # QEMU may have several about one @
    assert complaints[0] == "JSON parse error"
    assert complaints[-1] == "JSON parse error"
    assert not frozen_by_what_qemu_could_not_read
    assert taken == {}
    assert states == [(False, True), (False, True), (True, False)]
