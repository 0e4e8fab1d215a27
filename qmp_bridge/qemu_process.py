"""The QEMU process: started by handle, asked to quit, made to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qemu.qmp import QMPClient, QMPError, Runstate

from qmp_bridge.child import Child, last_lines

QUIT_SECONDS = 2.0
NOTICE_SECONDS = 1.0  # between QEMU's hanging up on QMP and its end


def start_qemu(command: Sequence[str], env: Mapping[str, str], stderr: Path) -> Child:
    """Start QEMU; VmDied when there is nothing to start. Whether it likes its arguments shows later."""
    return Child("QEMU", command, env=env, stderr=stderr)


async def stop_qemu(child: Child, qmp: QMPClient | None) -> None:
    """End QEMU: QMP `quit`, then SIGTERM, then SIGKILL. If this is cancelled, SIGKILL at once. Idempotent."""
    try:
        if child.running and qmp is not None and qmp.runstate is Runstate.RUNNING:
            # It may hang up before it answers: only whether the process goes matters.
            with suppress(QMPError, EOFError, OSError, TimeoutError):
                async with asyncio.timeout(QUIT_SECONDS):
                    await qmp.execute("quit")
            await child.ended_within(QUIT_SECONDS)
        await child.stop(QUIT_SECONDS)
    finally:
        child.kill()


def death_of_qemu(child: Child, stderr: Path, note: str) -> str:
    """One line that says how QEMU ended; `note` is the reason of its SHUTDOWN event, or what else is known."""
    words = [line for line in last_lines(stderr, 5) if line.strip()]
    said = f"; it last said: {words[-1]}" if words else ""
    return child.describe_exit() + (f" ({note})" if note else "") + said
