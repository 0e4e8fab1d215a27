"""`vdev serve`: one VM's machine behind its sockets, in one event loop, until stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vdev.assemble import Machine
from vdev.config import Config, config_warnings
from vdev.control.event_log import EventLog
from vdev.control.messages import NoArguments, QueryEvents, Ready
from vdev.control.server import Command, ControlServer
from vdev.control.trace_commands import trace_commands
from vdev.functions.base import Worker
from vdev.functions.vhost import VhostCarrier
from vdev.tracing import make_trace, options_of
from vdev.transports.fence import make_ordering
from vdev.transports.function_server import VmContext
from vdev.transports.listener import Listener
from vdev.transports.scheduler import Scheduler
from vdev.transports.vfio_user import VfioUserServer
from vdev.transports.vhost_user import VhostUserServer

log = logging.getLogger(__name__)

VM_LOOK_S = 1.0  # with leave_with_vm: how often to look, and how long a launcher has to stop us itself


class App:
    """Owns everything one `vdev serve` process has."""

    def __init__(self, config: Config, directory: Path, *, leave_with_vm: bool = False) -> None:
        """Build the machine; raises ConfigError. Nothing listens yet. `leave_with_vm`: stop once the VM is gone."""
        self.config = config
        self.leave_with_vm = leave_with_vm
        self.directory = directory
        self.events = EventLog(time.monotonic)
        self.scheduler = Scheduler(on_crash=self._worker_crashed)
        self.machine = Machine(
            config,
            emit=self.events.emit,
            wake=self.scheduler.wake,
            wake_at=self.scheduler.wake_at,
            ordering=make_ordering(),
        )
        for unit in self.machine.units.values():
            # A worker that crashed is a bug of ours; a reset makes its state new, so it may run again.
            unit.function.was_reset = partial(self.scheduler.forgive, unit.device)
            for endpoint in unit.endpoints.values():
                endpoint.was_reset = partial(self.scheduler.forgive, endpoint)
        self.vm = VmContext(
            identity_checked=config.vm.identity == "peer", require_sealed=config.vm.unsealed_ram == "refuse"
        )
        self.stopping = asyncio.Event()
        self.crashed: list[str] = []
        self.servers: dict[str, VfioUserServer | VhostUserServer] = {}
        for name, function in self.machine.functions.items():
            path = directory / f"{name}.sock"
            if isinstance(function, VhostCarrier):
                self.servers[name] = VhostUserServer(function, path, self.vm)
            else:
                self.servers[name] = VfioUserServer(function, path, self.vm)
        self.trace = make_trace(config, self.machine, self.events, self.servers.values())
        self._control_listener = Listener(directory / "control.sock")
        self.control = ControlServer(self._control_listener.socket, self.commands())

    def commands(self) -> dict[str, Command]:
        """The control socket's command table."""
        return {
            "query-status": Command(NoArguments, lambda _: self.status()),
            "query-iommu": Command(NoArguments, lambda _: [unit.describe() for unit in self.machine.units.values()]),
            "query-events": Command(QueryEvents, self._events_since),
            **trace_commands(self.trace),
        }

    def status(self) -> dict[str, Any]:
        """Who is connected, what the VM's identity rests on, what crashed."""
        return {
            "vm": self.config.vm.name,
            "crashed": self.crashed,
            "process": self.vm.describe(),
            "scheduler": self.scheduler.describe(),
            "functions": {name: server.describe() for name, server in self.servers.items()},
        }

    def _events_since(self, arguments: QueryEvents) -> list[dict[str, Any]]:
        return self.events.since(arguments.since, arguments.limit, frozenset(arguments.kinds))

    def _worker_crashed(self, worker: Worker, error: Exception) -> None:
        # A bug of ours. The others go on; whoever waits for this one sees it in query-status and in the log.
        self.crashed.append(f"{worker.name}: {error!r}")

    async def run(self, announce: Callable[[str], None]) -> None:
        """Listen, announce the sockets, serve until `stopping` is set."""
        for warning in config_warnings(self.config):
            log.warning("%s", warning)
        if self.config.trace is not None:
            self.trace.start(options_of(self.config.trace))
        listening = list(self.servers.values())
        for server in listening:
            server.listen()  # before the group: from inside it a ConfigError would come out wrapped
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.scheduler.run(), name="scheduler")]
            tasks += [group.create_task(server.serve(), name=f"serve {server.path.name}") for server in listening]
            if self.leave_with_vm:
                tasks.append(group.create_task(self._watch_vm(os.getppid()), name="watch the VM"))
            await self.control.start()
            announce(self._ready_line())
            await self.stopping.wait()
            self.control.close()
            for task in tasks:
                task.cancel()

    async def _watch_vm(self, parent: int) -> None:
        """Set `stopping` once the VM's process is proven gone, or `parent` is before any process came.

        Two looks in a row, so that a launcher that is there sees its QEMU end before us.
        """
        looks = 0
        while looks < 2:
            await asyncio.sleep(VM_LOOK_S)
            orphaned = os.getppid() != parent and self.vm.is_unused
            looks = looks + 1 if orphaned or self.vm.identity.is_gone() else 0
        log.warning("the VM is gone, so is its backend")
        self.stopping.set()

    def _ready_line(self) -> str:
        ready = Ready(
            True, {name: str(server.path) for name, server in self.servers.items()}, str(self._control_listener.path)
        )
        return msgspec.json.encode(ready).decode()

    def close(self) -> None:
        """Release what outlives the loop: sockets, mappings, the pidfd."""
        self.trace.close()
        for server in self.servers.values():
            server.close()
        self._control_listener.close()
        self.vm.close()


async def serve(config: Config, directory: Path, announce: Callable[[str], None], *, exit_with_vm: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; `announce` gets one line of JSON (`control.messages.Ready`) when all listen.

    `exit_with_vm`: also until the VM's process has ended, or whoever started us has before there was a VM.
    """
    app = App(config, directory, leave_with_vm=exit_with_vm)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stopping.set)
    try:
        await app.run(announce)
    finally:
        app.close()
    return 0
