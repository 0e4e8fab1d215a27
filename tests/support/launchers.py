"""Follows a guest that somebody else's launcher starts: a script, libvirt, virtme-ng."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmp_bridge.channel import Channel
from qmp_bridge.console import connect
from vdev.qemu.machine import CHANNEL_PORT
from vdev.qemu.options import join_value

BOOT_S = 240.0  # virtme-ng takes 50 s emulated, on processors of its own
END_S = 30.0


@dataclass(frozen=True)
class Launched:
    """What the guest said, the launcher's status and its output."""

    messages: list[dict[str, Any]]
    status: int
    output: str

    def passed(self, count: int) -> bool:
        """Whether the guest is done, with `count` checks, and all are well."""
        done: dict[str, Any] = self.messages[-1] if self.messages else {}
        return (done.get("done"), done.get("ok"), done.get("passed")) == (True, True, count)

    def __str__(self) -> str:
        failed = [message for message in self.messages if message.get("ok") is False]
        return f"{len(self.messages)} messages, failed: {failed}, status {self.status}, output:\n{self.output}"


def channel_arguments(path: Path) -> list[str]:
    """QEMU arguments for the port our payload speaks on: what a launcher of one's own would add for its own ends."""
    chardev = join_value("socket", [("id", "ch"), ("path", str(path)), ("server", "on"), ("wait", "off")])
    port = f"virtserialport,chardev=ch,bus=ser.0,name={CHANNEL_PORT}"
    devices = ["virtio-serial-pci,id=ser,bus=pcie.0,addr=18.0", port]
    return ["-chardev", chardev, *(word for device in devices for word in ("-device", device))]


async def launch(
    command: Sequence[str], channel: Path, environ: Mapping[str, str] | None = None, *, stays: bool = False
) -> Launched:
    """Run `command` until it ends, and listen to its guest on `channel` meanwhile.

    One that `stays` when its guest is done is asked to end then.

    With all it started, it is ended after BOOT_S, and whatever else happens.
    """
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output = asyncio.create_task(process.communicate())
    messages: list[dict[str, Any]] = []
    listening = asyncio.create_task(_listen(channel, messages, None if stays else output))
    try:
        await asyncio.wait([output, listening], timeout=BOOT_S, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            await listening
    finally:
        listening.cancel()
        await _end(process)
    return Launched(messages, process.returncode or 0, (await output)[0].decode(errors="replace"))


async def _listen(channel: Path, messages: list[dict[str, Any]], output: asyncio.Task[Any] | None) -> None:
    talk = Channel()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(talk.run(*await connect(str(channel), BOOT_S)))
        async for message in talk.messages():
            messages.append(message)  # noqa: PERF401 - they are looked at when this is cancelled, too
        if messages and messages[-1].get("done"):
            await talk.send({"bye": 1})
        if output is not None:
            await asyncio.wait([output])
        reading.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await process.wait()
