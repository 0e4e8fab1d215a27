"""Another process than the test's that speaks to a served machine: python -m tests.support.serve_peer MODE DIRECTORY.

`knock` tries to connect to the accelerator and prints "admitted" or "refused"; `stay` connects, prints "staying" and
does. `hold` plays a whole QEMU and guest: both functions connected, RAM mapped, the endpoint attached and mapped, a
fill of 1 GiB under way; it prints "holding" and stays until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.serve_guest import Ram
from tests.support.serve_scene import Scene
from tests.support.vfio_client import ClientDead, VfioClient


async def knock(directory: Path) -> None:
    client = await VfioClient.connect(directory / "accel0.sock")
    try:
        await client.negotiate()
        say("admitted")
    except (ClientDead, ConnectionError):  # closed before or after we could send
        say("refused")
    finally:
        client.close()


async def stay(directory: Path) -> None:
    client = await VfioClient.connect(directory / "accel0.sock")
    await client.negotiate()
    say("staying")
    await asyncio.Event().wait()


async def hold(directory: Path) -> None:
    async with AsyncExitStack() as stack:
        scene = await Scene.enter(stack, directory, stack.enter_context(Ram()))
        await scene.attach()
        await scene.start_long_fill()
        say("holding")
        await asyncio.Event().wait()


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run({"knock": knock, "stay": stay, "hold": hold}[sys.argv[1]](Path(sys.argv[2])))
