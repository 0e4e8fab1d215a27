"""qmp_bridge.snapshot: how a move of a guest's state ends, as QEMU tells it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from qmp_bridge import snapshot
from qmp_bridge.errors import VmDied
from qmp_bridge.monitor import LoggedQmp


class Telling:
    """A monitor whose query-migrate answers are these, the last one for ever."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = list(answers)

    async def execute(self, command: str) -> dict[str, Any]:
        assert command == "query-migrate"
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def moved(*answers: dict[str, Any]) -> None:
    await snapshot._moved(cast("LoggedQmp", Telling(*answers)), "saved")


async def test_a_move_ends_when_qemu_says_that_it_is_completed() -> None:
    await moved({"status": "setup"}, {"status": "active"}, {"status": "completed"})


async def test_a_failed_move_is_told_with_the_reason_that_comes_after_the_state() -> None:
    failed = {"status": "failed"}

    with pytest.raises(VmDied, match="the guest could not be saved: No space left on device"):
        await moved({"status": "active"}, failed, failed, {**failed, "error-desc": "No space left on device"})


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_move_that_fails_without_a_reason_is_told_without_one(status: str) -> None:
    with pytest.raises(VmDied, match="the guest could not be saved: QEMU does not say why"):
        await moved({"status": status})
