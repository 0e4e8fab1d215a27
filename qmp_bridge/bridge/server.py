"""The bridge as a server: accepts clients, keeps the connection to QEMU, follows vdev."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmp_bridge.bridge import listener
from qmp_bridge.bridge.bridge import Bridge
from qmp_bridge.bridge.own_commands import OwnCommands
from qmp_bridge.bridge.qemu_faults import QemuFaults
from qmp_bridge.bridge.session import Session
from qmp_bridge.bridge.upstream import NoMonitor, QemuGone, Upstream, connect
from qmp_bridge.bridge.vdev_link import VdevLink
from qmp_bridge.control_client import ControlClient
from qmp_bridge.errors import VmDied
from qmp_bridge.hot_plug import HotPlug
from qmp_bridge.run_state import RunState
from vdev.qapi.schema import schema

MAX_CLIENTS = 64
CONNECT_SECONDS = 10.0  # QEMU's greeting comes at once, unless somebody else is connected
RETRY_SECONDS = 0.5  # between looks for a QEMU that is gone; after an accept that failed
CLOSE_SECONDS = 2.0  # for what clients have not read when QEMU is gone
MAX_LINES_A_MINUTE = 20  # that clients, and rules of a fault plan, can have us say
MAX_SAID = 300  # characters of what vdev says

Say = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """Where everything is. `keep`: wait for QEMU's return instead of ending with it, and outlive vdev.

    `what` is for errors about `listen`: whose setting it is.
    """

    listen: str
    qemu: str
    vdev: str
    keep: bool = False
    what: str = "runtime directory"


class BridgeServer:
    """Listens from the constructor on; `connect`, then `run` it; it is gone after `close`."""

    def __init__(self, setup: Setup, say: Say) -> None:
        """Raises ConfigError when there can be no such socket."""
        self._setup = setup
        self._say = _Limited(say)
        self._listener = listener.listen(setup.listen, setup.what)
        self._upstream: Upstream | None = None
        self._bridge: Bridge | None = None
        self._control = ControlClient(setup.vdev)  # of freeze and thaw alone
        self._link = VdevLink(setup.vdev, schema().prefix, self._vdev_event)
        self._hot_plug = HotPlug(self._ask_qemu, self._link.ask)
        self._qemu_faults = QemuFaults(self._ask_qemu, self._link.ask)
        self._serving: set[asyncio.Task[None]] = set()
        self._own_state: RunState | None = None  # fed from here; with the launcher's own monitor that one feeds its own

    async def connect(self, seconds: float = CONNECT_SECONDS) -> None:
        """Connect to QEMU. Raises NoMonitor."""
        self._upstream = await connect(self._setup.qemu, self._qemu_event, seconds)

    def close(self) -> None:
        """Stop listening, remove the socket, leave QEMU. Idempotent."""
        if self._listener.fileno() >= 0:
            self._listener.close()
            Path(self._setup.listen).unlink(missing_ok=True)
        if self._upstream is not None:
            self._upstream.close()
        self._control.close()

    async def run(self, run_state: RunState | None = None) -> None:
        """Serve until cancelled, or until QEMU is gone unless `keep`. `run_state` has vdev follow QEMU's STOP and
        RESUME; without one it is done here.

        Raises VmDied (unless `keep`) when vdev does not follow.
        """
        assert self._upstream is not None, "connect comes first"
        try:
            async with asyncio.TaskGroup() as tasks:
                state = run_state or self._follow_here()
                own = OwnCommands(
                    {"endpoint-plug": self._hot_plug.plug, "endpoint-unplug": self._hot_plug.unplug}, self._link.ask
                )
                self._bridge = Bridge(own, state, tasks, fatal=not self._setup.keep)
                self._bridge.connected(self._upstream)
                helpers = [tasks.create_task(self._accept(tasks)), tasks.create_task(self._link.run())]
                if self._own_state is not None:
                    helpers.append(tasks.create_task(self._keep_in_step(self._own_state)))
                await self._serve(self._upstream)
                for helper in helpers:
                    helper.cancel()
        finally:
            self.close()
            await self._hot_plug.close()
            await self._qemu_faults.close()

    async def _serve(self, upstream: Upstream) -> None:
        """Read what QEMU says, from one QEMU after the other."""
        bridge = self._bridge
        assert bridge is not None
        while True:
            reason = await upstream.run()
            bridge.disconnected(reason)
            self._hot_plug.lost("QEMU")
            bridge.tell_own("QEMU_LOST", {"reason": reason})
            if not self._setup.keep:
                break
            lost = time.monotonic()
            self._upstream = upstream = await self._reconnect()
            bridge.connected(upstream)
            if self._own_state is not None:
                bridge.tasks.create_task(self._settle(self._own_state))
            bridge.tell_own("QEMU_RETURNED", {"seconds": time.monotonic() - lost})
        for session in list(bridge.sessions):
            session.close_when_written()
        if self._serving:
            await asyncio.wait(self._serving, timeout=CLOSE_SECONDS)
        for session in list(bridge.sessions):
            session.end()

    async def _reconnect(self) -> Upstream:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            with suppress(NoMonitor):
                return await connect(self._setup.qemu, self._qemu_event, CONNECT_SECONDS)

    # clients

    async def _accept(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._say(f"monitor: cannot accept a client: {error.strerror}")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if self._admits(client):
                serving = tasks.create_task(self._client(client))
                self._serving.add(serving)
                serving.add_done_callback(self._serving.discard)
            else:
                client.close()

    def _admits(self, client: socket.socket) -> bool:
        assert self._bridge is not None
        if not listener.is_admitted(client):
            self._say(f"monitor: refused a client of user {listener.peer_uid(client)}")
        elif len(self._bridge.sessions) >= MAX_CLIENTS:
            self._say(f"monitor: refused a client: there are {MAX_CLIENTS}")
        else:
            return True
        return False

    async def _client(self, client: socket.socket) -> None:
        assert self._bridge is not None
        assert self._upstream is not None
        client.setblocking(False)
        session = Session(client, self._upstream.greeting, self._bridge, self._say)
        self._bridge.sessions.add(session)
        try:
            await session.run()
        finally:
            self._bridge.sessions.discard(session)

    # what happens elsewhere

    def _qemu_event(self, line: bytes, message: Mapping[str, Any]) -> None:
        if self._own_state is not None and message["event"] in ("STOP", "RESUME"):
            self._own_state.saw(message["event"] == "RESUME", change=True)
        self._hot_plug.qemu_event(message["event"], message.get("data", {}))
        if self._bridge is not None:
            self._bridge.tell(line)

    def _vdev_event(self, line: bytes, name: str, data: Mapping[str, Any]) -> None:
        self._hot_plug.vdev_event(name, data)
        self._qemu_faults.vdev_event(name, data)
        if name == "FAULT_INJECTED":
            self._say(f"injected: {_printable(data.get('text'))}")
        if self._bridge is not None:
            self._bridge.tell(line)

    async def _ask_qemu(self, command: str, arguments: Mapping[str, object]) -> Any:
        if self._bridge is None or self._bridge.upstream is None:
            raise QemuGone("QEMU is gone")
        return await self._bridge.upstream.execute(command, arguments)

    def _follow_here(self) -> RunState:
        self._own_state = RunState(self._control, self._query_status)
        return self._own_state

    async def _query_status(self) -> None:
        assert self._own_state is not None
        try:
            status = await self._ask_qemu("query-status", {})
        except QemuGone as error:
            raise ConnectionResetError(str(error)) from None
        self._own_state.saw(status["running"], change=False)

    async def _keep_in_step(self, state: RunState) -> None:
        """Have vdev follow QEMU, also when it was away for a while."""
        while True:
            try:
                await state.follow()
            except VmDied as error:
                self._say(f"{error}: vdev does not follow the VM's stop and cont until it answers")
                await asyncio.sleep(RETRY_SECONDS)

    async def _settle(self, state: RunState) -> None:
        with suppress(VmDied):  # `_keep_in_step` says so
            await state.settle()


def _printable(text: object) -> str:
    """What a backend says, fit for a terminal."""
    shown = str(text)[:MAX_SAID]
    return shown if shown.isprintable() else repr(shown)


class _Limited:
    """Says no more than MAX_LINES_A_MINUTE."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._began = -60.0
        self._count = 0

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self._began >= 60.0:
            self._began, self._count = now, 0
        self._count += 1
        if self._count <= MAX_LINES_A_MINUTE:
            self._say(line)
        elif self._count == MAX_LINES_A_MINUTE + 1:
            self._say("monitor: more is not told for a minute")
