"""`vdev serve`: one VM's machine behind its sockets, in one event loop, until stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vdev.assemble import Machine
from vdev.authority.lease import Lease
from vdev.config import Config, FaultsConfig, config_warnings, isolation_line
from vdev.control.event_log import EventLog
from vdev.control.event_stream import Around, EventStream, events_commands
from vdev.control.iommu_actions import iommu_actions
from vdev.control.iommu_queries import iommu_queries
from vdev.control.iommu_units import endpoint_name
from vdev.control.messages import Ready
from vdev.control.qemu_wishes import QemuWishes
from vdev.control.run_state import RunState
from vdev.control.server import Command, ControlServer
from vdev.endpoint_commands import endpoint_commands
from vdev.fault_commands import fault_commands
from vdev.functions.base import Worker
from vdev.functions.vhost import VhostCarrier
from vdev.hot_plug import Endpoints, Surroundings
from vdev.injector import Around as InjectorAround
from vdev.injector import Injector
from vdev.pasid_commands import pasid_commands
from vdev.qemu.machine import VIOT_NAME, viot_table
from vdev.trace.commands import trace_commands
from vdev.tracing import make_trace, options_of
from vdev.transports.access import resolve_access
from vdev.transports.fence import make_ordering
from vdev.transports.function_server import VmContext
from vdev.transports.identity import peer_of
from vdev.transports.listener import Listener, write_beside
from vdev.transports.scheduler import Scheduler
from vdev.transports.sd_notify import READY, STOPPING, notify
from vdev.vm_pasids import PlanOrders, VmPasids, lease_for

log = logging.getLogger(__name__)

VM_LOOK_S = 1.0  # with leave_with_vm: how often to look, and how long a launcher has to stop us itself


class App:
    """Owns everything one `vdev serve` process has."""

    def __init__(
        self, config: Config, directory: Path, *, leave_with_vm: bool = False, lease: Lease | None = None
    ) -> None:
        """Build the machine; raises ConfigError. Nothing listens yet. `leave_with_vm`: stop once the VM is gone.
        `lease` is `lease_for` of the configuration: without one the VM has no PASIDs."""
        self.config = config
        self.leave_with_vm = leave_with_vm
        self.directory = directory
        self.events = EventLog(time.monotonic)
        self.scheduler = Scheduler(on_crash=self._worker_crashed)
        self.pasids = None if lease is None else VmPasids(lease, self.events.emit)
        self.machine = Machine(
            config,
            emit=self.events.emit,
            wake=self.scheduler.wake,
            wake_at=self.scheduler.wake_at,
            ordering=make_ordering(),
            pasids=None if self.pasids is None else self.pasids.set,
        )
        for unit in self.machine.units.values():
            # A worker that crashed is a bug of ours; a reset makes its state new, so it may run again.
            unit.function.was_reset = partial(self.scheduler.forgive, unit.device)
        self.access = resolve_access(config.sockets.owner, config.sockets.group, config.sockets.mode)
        self.vm = self._make_vm()
        self.wishes = QemuWishes(self.events.emit, self._is_followed, _call_later)
        self.injector = self._make_injector(config.faults)
        self.run_state = RunState(time.monotonic, self.events.emit, self._hold_everything)
        self._viot = directory / VIOT_NAME
        self._viot_written = False
        self.stopping = asyncio.Event()
        self.crashed: list[str] = []
        self.endpoints = Endpoints(
            config, Surroundings(self.machine, self.scheduler, self.vm, self.events.emit, directory)
        )
        self.servers = self.endpoints.servers  # of all functions
        self.trace = self.endpoints.trace = make_trace(config, self.machine, self.events, self.servers.values())
        self.event_stream = self._make_event_stream()
        self._control_listener = Listener(directory / "control.sock", self.access)
        self.control = ControlServer(self._control_listener.socket, self.commands(), self._admits)

    def _make_vm(self) -> VmContext:
        """What all functions share; QEMU's process is the PASIDs', too."""
        given = self.config.vm
        vm = VmContext(
            identity_checked=given.identity == "peer",
            require_sealed=given.unsealed_ram == "refuse",
            access=self.access,
        )
        vm.was_replaced = self._forget_run_state
        if self.pasids is not None and self.machine.kernel_pasids is not None:
            self.pasids.kernel = self.machine.kernel_pasids
            vm.was_bound = partial(self.pasids.bind, vm.identity)
        return vm

    def _make_injector(self, plan: FaultsConfig | None) -> Injector:
        """Fault injection, with the rules of the configuration. ConfigError if one of them is wrong."""
        lease = None if self.pasids is None else self.pasids.lease
        who = f"fault plan of {self.config.vm.name}"
        around = InjectorAround(
            emit=self.wishes.emit,
            clock_ns=time.monotonic_ns,
            wake_at=self.scheduler.wake_at,
            order=_nobody if lease is None else PlanOrders(lease, who).give,
            stall=time.sleep,  # the whole loop stands still: that is what is asked for
            die=lambda: os.kill(os.getpid(), signal.SIGKILL),
        )
        injector = Injector(self.machine, self.config, around, None if self.pasids is None else self.pasids.set)
        if plan is not None:
            injector.load(msgspec.to_builtins(plan))
        return injector

    def _is_followed(self) -> bool:
        return self.event_stream.nfollowers > 0

    def _make_event_stream(self) -> EventStream:
        def connect(follower: Callable[[object], None] | None) -> None:
            self.events.follower = follower

        return EventStream(
            Around(
                connect,
                names=partial(endpoint_name, self.machine.units),
                clock=time.monotonic,
                wall_us=lambda: time.time_ns() // 1000,
                schedule=_call_later,
            )
        )

    def commands(self) -> dict[str, Command]:
        """The control socket's command table."""
        return {
            "query-status": Command(self.status),
            "query-iommu": Command(lambda: [unit.describe() for unit in self.machine.units.values()]),
            "query-events": Command(self.events.query),
            "freeze": Command(self.run_state.freeze),
            "thaw": Command(self.run_state.thaw),
            **iommu_queries(self.machine.units),
            **iommu_actions(self.machine.units),
            **events_commands(self.event_stream),
            **endpoint_commands(self.endpoints),
            **pasid_commands(self.machine.units, self.config, self.pasids),
            **fault_commands(self.injector, self.wishes),
            **trace_commands(self.trace),
        }

    def status(self) -> dict[str, Any]:
        """Who is connected, what the VM's identity rests on, what crashed."""
        return {
            "vm": self.config.vm.name,
            "isolation": self.config.vm.isolation,
            **self.run_state.describe(),
            "crashed": self.crashed,
            "process": self.vm.describe(),
            "scheduler": self.scheduler.describe(),
            **({} if self.pasids is None else {"pasids": self.pasids.describe_lease()}),
            "functions": [server.describe() for server in self.servers.values()],
        }

    def _hold_everything(self, held: bool) -> None:
        """Nothing of ours changes guest memory or raises an interrupt, or all of it goes on. Accesses are answered."""
        if held:
            self.scheduler.pause()
        for unit in self.machine.units.values():
            unit.freezer.set("VM stopped", held)
            if isinstance(unit.function, VhostCarrier):
                unit.function.hold_config(held)
        self.vm.hold_interrupts(held)
        if not held:
            self.scheduler.resume()

    def _forget_run_state(self) -> None:
        """A stop that was the dead QEMU's must not freeze the guest of the next."""
        self.run_state.thaw("a new QEMU")

    def _admits(self, sock: socket.socket) -> bool:
        peer = peer_of(sock)
        return self.access.admits(sock, peer.uid, peer.gid)

    def _worker_crashed(self, worker: Worker, error: Exception) -> None:
        # A bug of ours. The others go on; whoever waits for this one sees it in query-status and in the log.
        self.crashed.append(f"{worker.name}: {error!r}")
        self.machine.give_up(worker)

    async def run(self, announce: Callable[[str], None]) -> None:
        """Listen, announce the sockets, serve until `stopping` is set."""
        for warning in config_warnings(self.config):
            log.warning("%s", warning)
        if self.config.trace is not None:
            self.trace.start(options_of(self.config.trace))
        self.endpoints.listen()  # before the group: from inside it a ConfigError would come out wrapped
        log.info("%s", isolation_line(self.config))
        write_beside(self._viot, viot_table(self.config), self.access)  # for whoever starts QEMU, once we are ready
        self._viot_written = True
        if self.pasids is not None and not self.vm.identity.checked:
            self.pasids.bind(self.vm.identity)  # no process will be: the set lives as long as we do
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.scheduler.run(), name="scheduler")]
            self.endpoints.start(group)
            if self.leave_with_vm:
                tasks.append(group.create_task(self._watch_vm(os.getppid()), name="watch the VM"))
            await self.control.start()
            announce(self._ready_line())
            notify(os.environ.get("NOTIFY_SOCKET"), READY, f"STATUS=serving {self.config.vm.name}")
            await self.stopping.wait()
            notify(os.environ.get("NOTIFY_SOCKET"), STOPPING)
            self.control.close()
            self.endpoints.stop()
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
        self.endpoints.close()
        if self._viot_written:
            self._viot.unlink(missing_ok=True)
        self._control_listener.close()
        self.vm.close()


def _nobody(command: str, arguments: Mapping[str, Any]) -> None:
    """There is no authority to order anything of, and no rule that would."""


def _call_later(delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, callback)


async def serve(config: Config, directory: Path, announce: Callable[[str], None], *, exit_with_vm: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; `announce` gets one line of JSON (`control.messages.Ready`) when all listen.

    `exit_with_vm`: also until the VM's process has ended, or whoever started us has before there was a VM.
    """
    lease = await lease_for(config, directory)
    try:
        return await _serve(App(config, directory, leave_with_vm=exit_with_vm, lease=lease), announce)
    finally:
        if lease is not None:
            await lease.close()


async def _serve(app: App, announce: Callable[[str], None]) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stopping.set)
    try:
        await app.run(announce)
    finally:
        app.close()
    return 0
