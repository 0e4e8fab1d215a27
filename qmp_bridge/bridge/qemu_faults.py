"""The part of an injected fault that only QEMU can do: vdev asks for it by an event, and is told what became of it.

vdev names a command of QEMU's human monitor, and one kind of command only is run: an AER error at a root port. A
vfio-user server has no way to send the message an error makes upstream. QEMU answers OK for the id of the endpoint as
well, and then nothing reaches the port; with the id of the port the port has the error itself and raises its interrupt.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from vdev.errors import VdevError

Ask = Callable[[str, Mapping[str, object]], Awaitable[Any]]  # command, arguments -> what it returns

EVENT = "FAULT_WANTS_QEMU"
MAX_AT_ONCE = 64  # as many as vdev waits for
MAX_SAID = 200  # characters of QEMU's words that are passed on
_ERRORS = (
    "DLP", "SDN", "POISON_TLP", "FCP", "COMP_TIME", "COMP_ABORT", "UNX_COMP", "RX_OVER", "MALF_TLP", "ECRC", "UNSUP",
    "ACSV", "MCBTLP", "ATOP_EBLOCKED", "TLP_PRF_BLOCKED",
    "RCVR", "BAD_TLP", "BAD_DLLP", "REP_ROLL", "REP_TIMER", "ADV_NONFATAL", "INTERNAL", "HL_OVERFLOW",
)  # fmt: skip
_COMMAND = re.compile(
    rf"pcie_aer_inject_error (?:-a |-c )?[A-Za-z][A-Za-z0-9._-]{{0,63}} (?:{'|'.join(_ERRORS)}|0x[0-9a-f]{{1,8}})"
)
_DONE = "OK id:"


class QemuFaults:
    """`qemu` and `vdev` execute a command and return its value; any VdevError of theirs says why not."""

    def __init__(self, qemu: Ask, vdev: Ask) -> None:
        self._qemu = qemu
        self._vdev = vdev
        self._tasks: set[asyncio.Task[None]] = set()

    def vdev_event(self, name: str, data: Mapping[str, Any]) -> None:
        """An event of vdev's, by the name it has in the schema. Those beyond what vdev can wait for are left out."""
        if name != EVENT or len(self._tasks) >= MAX_AT_ONCE:
            return
        task = asyncio.get_running_loop().create_task(self._serve(data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, data: Mapping[str, Any]) -> None:
        error = await self._run(data.get("command-line"))
        outcome: dict[str, object] = {"rule": data.get("rule"), "n": data.get("n")}
        with suppress(VdevError):  # another bridge was quicker, or vdev is gone: it says so itself
            await self._vdev("fault-qemu-done", {**outcome, **({"error": error} if error else {})})

    async def _run(self, command: object) -> str:
        """Why it was not done; empty if it was."""
        if not isinstance(command, str) or not _COMMAND.fullmatch(command):
            return f"a bridge does not run {command!r:.{MAX_SAID}}"
        try:
            said = await self._qemu("human-monitor-command", {"command-line": command})
        except VdevError as error:
            return str(error)
        text = str(said).strip()
        return "" if text.startswith(_DONE) else f"QEMU says {text!r:.{MAX_SAID}}"
