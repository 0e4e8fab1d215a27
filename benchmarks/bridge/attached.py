"""A bridge in front of a QEMU that runs already, as a process: `python -m benchmarks.bridge.attached LISTEN QEMU VDEV`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from qmp_bridge.bridge.server import BridgeServer, Setup


async def _serve(listen: str, qemu: str, vdev: str) -> None:
    server = BridgeServer(Setup(listen, qemu, vdev), lambda line: print(line, file=sys.stderr, flush=True))
    try:
        await server.connect()
        print("ready", flush=True)
        await server.run()
    finally:
        server.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(*sys.argv[1:]))
