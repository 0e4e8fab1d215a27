"""Saving and restoring a guest, with a QMP that follows a script."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from qmp_bridge import snapshot
from qmp_bridge.errors import VmDied
from qmp_bridge.monitor import LoggedQmp
from qmp_bridge.plan import Options, Parts
from qmp_bridge.snapshot import restore, save_guest
from vdev.config import parse_config
from vdev.qemu.restorable import LateUnit

UNIT = LateUnit({"id": "vdev.iommu0", "backend": {}}, {"driver": "vhost-user-device-pci", "bus": "vdev.port2"})


class ScriptedQmp:
    """Remembers every command; query-migrate answers with one entry of a script after another, the last for ever."""

    def __init__(self, *answers: dict[str, str]) -> None:
        self.executed: list[tuple[str, Any]] = []
        self._answers = list(answers)

    async def execute(self, command: str, arguments: Any = None) -> Any:
        if command == "query-migrate":
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.executed.append((command, arguments))
        return {}

    async def unguarded(self, command: str, arguments: Any) -> Any:
        self.executed.append((command, arguments))
        return {}


def as_qmp(qmp: ScriptedQmp) -> LoggedQmp:
    return cast(LoggedQmp, qmp)


async def test_state_comes_in_before_units_are_plugged_in_and_the_guest_runs() -> None:
    qmp = ScriptedQmp({}, {"status": "active"}, {"status": "completed"})

    await restore(as_qmp(qmp), Path("/saved"), [UNIT])

    assert [command for command, _ in qmp.executed] == [
        "migrate-set-capabilities", "migrate-incoming", "chardev-add", "device_add", "cont",
    ]  # fmt: skip
    assert qmp.executed[1][1] == {"uri": "file:/saved"}
    assert qmp.executed[2:4] == [("chardev-add", UNIT.chardev), ("device_add", UNIT.device)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": "failed", "error-desc": "wrong machine"}, "could not be restored: wrong machine"),
        ({"status": "failed"}, "could not be restored: QEMU does not say why"),
        ({"status": "cancelled"}, "could not be restored"),
    ],
)
async def test_state_that_qemu_refuses_is_an_error_with_its_words(answer: dict[str, str], reason: str) -> None:
    qmp = ScriptedQmp({"status": "active"}, answer)

    with pytest.raises(VmDied, match=reason):
        await restore(as_qmp(qmp), Path("/saved"), [UNIT])

    assert "cont" not in [command for command, _ in qmp.executed]


async def test_state_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MOVE_SECONDS", 0.05)
    with pytest.raises(VmDied, match="the guest was not restored within"):
        await restore(as_qmp(ScriptedQmp({"status": "active"})), Path("/saved"), [])


def test_a_file_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "saved"
    with snapshot._staged(target) as path:
        path.write_text("half")
        assert not target.exists()
        path.write_text("whole")

    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def _fail_half_way(target: Path) -> None:
    with snapshot._staged(target) as path:
        path.write_text("half")
        raise VmDied("it panicked")


def test_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(VmDied):
        _fail_half_way(tmp_path / "saved")

    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_it_is_said_before_the_guest_boots(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="exists"), snapshot._staged(tmp_path / "file" / "saved"):
        pytest.fail("it went on")


@pytest.mark.timeout(20)  # less than a socket is waited for
async def test_a_qemu_that_ends_at_once_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = parse_config("units: [{name: iommu0}]", "x")

    with pytest.raises(VmDied, match="no guest to restore could be made: QEMU exited with status 1"):
        await save_guest(config, Parts(("false",), {}, "11", "/k", "/i", "tcg"), Options(), tmp_path / "saved")

    assert os.listdir(tmp_path) == []


async def test_a_qemu_that_dies_where_there_is_no_room_is_told_with_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(snapshot, "FULL_NBYTES", 1 << 62)
    config = parse_config("units: [{name: iommu0}]", "x")

    with pytest.raises(VmDied, match=r"QEMU exited with status 1 \(No space left on device\)"):
        await save_guest(config, Parts(("false",), {}, "11", "/k", "/i", "tcg"), Options(), tmp_path / "saved")
