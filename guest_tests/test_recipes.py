"""The recipes in docs/recipes that boot a guest, run as they are in the documentation."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from guest_tests.conftest import CONFIG, CONFIGS
from qmp_bridge.channel import Channel
from qmp_bridge.console import connect
from qmp_bridge.plan import Options, Parts, find_parts
from vdev.config import load_config
from vdev.qemu.machine import CHANNEL_PORT
from vdev.qemu.options import join_value

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

RECIPES = Path(__file__).parent.parent / "docs" / "recipes"
CONNECT_S = 30.0
BOOT_S = 240.0
END_S = 30.0


def channel_arguments(path: Path) -> list[str]:
    """QEMU arguments for the port our payload speaks on: what a launcher of one's own would add for its own ends."""
    chardev = join_value("socket", [("id", "ch"), ("path", str(path)), ("server", "on"), ("wait", "off")])
    devices = ["virtio-serial-pci,id=ser,bus=pcie.0,addr=18.0", f"virtserialport,chardev=ch,name={CHANNEL_PORT}"]
    return ["-chardev", chardev, *(word for device in devices for word in ("-device", device))]


async def run_script(config: Path, parts: Parts, rundir: Path) -> tuple[list[dict[str, object]], int, str]:
    """What the guest said, the script's status and its output. The script is ended here whatever happens."""
    env = {
        **os.environ, **parts.env, "VDEV": f"{sys.executable} -m vdev", "QEMU": " ".join(parts.qemu),
        "RUNDIR": str(rundir), "APPEND": "vdev.payload=all",
    }  # fmt: skip
    channel_path = rundir.with_name("channel.sock")
    process = await asyncio.create_subprocess_exec(
        str(RECIPES / "own-script.sh"), str(config), str(parts.kernel), str(parts.initrd),
        *channel_arguments(channel_path), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output = asyncio.create_task(process.communicate())
    try:
        channel = Channel()
        async with asyncio.timeout(BOOT_S), asyncio.TaskGroup() as group:
            reading = group.create_task(channel.run(*await connect(str(channel_path), CONNECT_S)))
            messages = [message async for message in channel.messages()]
            await channel.send({"bye": 1})
            await output
            reading.cancel()
        return messages, process.returncode or 0, output.result()[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(END_S):
                await process.wait()


@pytest.mark.parametrize("config", [CONFIG, CONFIGS / "on-root-bus.yaml"], ids=lambda path: path.stem)
def test_a_persons_own_script_boots_a_guest_that_passes_every_check(config: Path, tmp_path: Path) -> None:
    parts = find_parts(load_config(config), Options())

    messages, status, output = asyncio.run(run_script(config, parts, tmp_path / "run"))

    assert messages, output
    assert messages[-1]["done"] is True, output
    assert messages[-1]["ok"] is True, [message for message in messages if message.get("ok") is False]
    assert status == 0, output
    assert '"ready":true' in output
    assert not (tmp_path / "run").exists()
