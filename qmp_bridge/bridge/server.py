"""The bridge as a server: accepts clients, keeps the connection to QEMU, follows vdev."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmp_bridge.bridge import listener
from qmp_bridge.bridge.bridge import Bridge, Say
from qmp_bridge.bridge.own_commands import Handler, OwnCommands
from qmp_bridge.bridge.session import Session
from qmp_bridge.bridge.upstream import NoMonitor, Upstream, connect
from qmp_bridge.bridge.vdev_link import VdevLink
from qmp_bridge.control_client import ControlClient
from qmp_bridge.run_state import RunState
from vdev.qapi.schema import schema

MAX_CLIENTS = 64
CONNECT_SECONDS = 10.0  # QEMU's greeting comes at once, unless somebody else is connected
RETRY_SECONDS = 0.5  # between looks for a QEMU that is gone; after an accept that failed
CLOSE_SECONDS = 2.0  # for what clients have not read when QEMU is gone
MAX_LINES = 20  # that clients can cause us to say in one minute


@dataclass(frozen=True)
class Setup:
    """Where everything is. `keep`: wait for QEMU's return instead of ending with it, and outlive vdev."""

    listen: str
    qemu: str
    vdev: str
    keep: bool = False
    what: str = "runtime directory"  # for errors about `listen`: what to correct
    handlers: Mapping[str, Handler] = field(default_factory=dict)


class BridgeServer:
    """Listens from the constructor on, serves in `run`, and is gone after `close`."""

    def __init__(self, setup: Setup, say: Say) -> None:
        """Raises ConfigError when there can be no such socket."""
        self._setup = setup
        self._say = _Limited(say)
        self._listener = listener.listen(setup.listen, setup.what)
        self._greeting: Mapping[str, Any] = {}
        self._bridge: Bridge | None = None
        self._link = VdevLink(setup.vdev, schema().prefix, self._tell)

    def close(self) -> None:
        """Stop listening and remove the socket. Idempotent."""
        if self._listener.fileno() >= 0:
            self._listener.close()
            Path(self._setup.listen).unlink(missing_ok=True)

    async def run(self, run_state: RunState | None = None) -> None:
        """Serve until cancelled, or until QEMU is gone unless `keep`. `run_state`: who has vdev follow QEMU's STOP and
        RESUME; without one it is done here.

        Raises NoMonitor when there is no monitor to begin with; VmDied (unless `keep`) when vdev does not follow.
        """
        upstream = await connect(self._setup.qemu, self._on_event, CONNECT_SECONDS)
        try:
            async with asyncio.TaskGroup() as tasks:
                state = run_state or self._own_run_state(tasks)
                own = OwnCommands(self._setup.handlers, self._link.ask)
                self._bridge = Bridge(own, state, tasks, fatal=not self._setup.keep)
                helpers = [tasks.create_task(self._accept(tasks)), tasks.create_task(self._link.run())]
                await self._serve(upstream)
                for helper in helpers:
                    helper.cancel()
        finally:
            upstream.close()
            self.close()
