"""A disk without room: the launcher's logs end, and nothing else does."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import Message

from qmp_bridge.console import Console
from qmp_bridge.errors import VmDied
from qmp_bridge.monitor import KEPT_CHARACTERS, NKEPT, LoggedQmp
from qmp_bridge.plan import Options, Parts, make_plan
from qmp_bridge.run_directory import RunDirectory
from qmp_bridge.up import RunningVm, _logs_kept_on_failure
from vdev.config import parse_config
from vdev.errors import ConfigError

QUERY = Message({"execute": "query-status"})
SHUTDOWN = Message({"event": "SHUTDOWN", "data": {"reason": "guest-panic"}})


@pytest.mark.parametrize("log", ["/dev/full", "/nowhere/qmp.log"])
async def test_messages_are_remembered_where_no_log_can_be_written(log: str) -> None:
    qmp = LoggedQmp("any", Path(log))

    qmp._cb_outbound(QUERY)
    qmp._cb_inbound(SHUTDOWN)
    await qmp.close()

    remembered = "".join(qmp.tail(9))
    assert remembered.index(bytes(QUERY).decode().strip()) < remembered.index(bytes(SHUTDOWN).decode().strip())
    assert qmp.shutdown_reason == "guest-panic"


async def test_a_log_with_room_has_a_line_for_each_message(tmp_path: Path) -> None:
    qmp = LoggedQmp("any", tmp_path / "qmp.log")
    qmp._cb_outbound(QUERY)
    await qmp.close()
    assert (tmp_path / "qmp.log").read_text().count("\n") == 1


async def test_what_is_remembered_is_bounded() -> None:
    qmp = LoggedQmp("any", Path("/dev/null"))
    for _ in range(NKEPT + 5):
        qmp._cb_outbound(Message({"execute": "x" * 1000}))

    assert (len(qmp.tail(10**6)), len(qmp.tail(1)[0])) == (NKEPT, KEPT_CHARACTERS)
    assert qmp.tail(10, since=NKEPT + 3) == qmp.tail(2)
    assert qmp.tail(10, since=qmp.nmessages) == qmp.tail(0) == []
    await qmp.close()


def test_the_consoles_tail_begins_where_it_is_told_to() -> None:
    console = Console()
    console.feed(b"one\ntwo\n")
    mark = console.nlines
    assert console.tail(9, mark) == []
    console.feed(b"three\nfo")
    assert console.tail(9, mark) == ["three", "fo"]
    assert console.tail(1, mark) == ["fo"]


def _refuse(source: Path, target: Path) -> None:
    target.mkdir()
    (target / "half").touch()
    raise shutil.Error([(str(source), str(target), "[Errno 28] No space left on device")])


def test_logs_that_do_not_fit_leave_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "move", _refuse)
    run = RunDirectory(tmp_path)

    with pytest.raises(OSError, match="No space left on device"):
        run.keep_logs(tmp_path / "kept", "vm")

    assert list((tmp_path / "kept").iterdir()) == []


def test_a_run_directory_without_room_for_logs_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(ConfigError, match="No space left on device"):
        RunDirectory(tmp_path)
    assert os.listdir(tmp_path) == []


def _vm(run: RunDirectory, options: Options) -> RunningVm:
    config = parse_config("{vm: {name: any}, units: [{name: iommu0}]}", "x")
    parts = Parts(("/q",), {}, "11", "/k", "/i", "tcg")
    return RunningVm(config, options, make_plan(config, parts, options, run.path), run.logs)


def _die(vm: RunningVm, run: RunDirectory) -> None:
    with _logs_kept_on_failure(vm, run):
        raise VmDied("the guest panicked")


def test_logs_that_cannot_be_kept_do_not_hide_what_the_vm_died_of(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").touch()
    run = RunDirectory(tmp_path)
    vm = _vm(run, Options(logs=tmp_path / "file" / "logs", say=said.append))

    with pytest.raises(VmDied, match="the guest panicked") as caught:
        _die(vm, run)

    assert caught.value.logs is None
    assert caught.value.logs_problem.startswith(f"the logs could not be kept in {tmp_path}/file/logs: [Errno 20]")
    assert said == [caught.value.logs_problem]


def test_where_there_is_room_the_logs_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    vm = _vm(run, Options(logs=tmp_path / "kept"))

    with pytest.raises(VmDied) as caught:
        _die(vm, run)

    assert caught.value.logs is not None
    assert (caught.value.logs.parent, caught.value.logs_problem) == (tmp_path / "kept", "")
