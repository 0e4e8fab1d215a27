"""Endpoints that come and go while the VM runs: the configuration, the machine, the sockets, the trace, all in step.

Everything is synchronous, so no command sees a half of it. What is made and what it takes to undo that:

    a place in the configuration   checked by every rule of a file; free again when the endpoint goes
    the machine's endpoint         its unit knows it; detached, and its mappings end with its domain
    a socket and a server task     the path goes at once, the task ends by itself

A socket that QEMU is connected to is never closed: QEMU aborts at its next RAM remap. So QEMU lets go first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vdev.assemble import Machine, Unit
from vdev.config import Config, EndpointConfig, endpoint_named, parse_bdf, with_endpoint, without_endpoint
from vdev.errors import ConfigError
from vdev.functions.vhost import VhostCarrier
from vdev.iommu.events import EndpointAdded, EndpointRemoved
from vdev.trace.recorder import Trace
from vdev.trace.records import EndpointName
from vdev.transports.function_server import VmContext
from vdev.transports.scheduler import Scheduler
from vdev.transports.vfio_user import VfioUserServer
from vdev.transports.vhost_user import VhostUserServer

Server = VfioUserServer | VhostUserServer


@dataclass(slots=True)
class Surroundings:
    """What is shared with everything else in the process."""

    machine: Machine
    scheduler: Scheduler
    vm: VmContext
    emit: Callable[[object], None]
    directory: Path  # of the sockets


@dataclass(slots=True)
class _Work:
    """The tasks of the servers, once there is a group for them."""

    group: asyncio.TaskGroup | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Endpoints:
    """The servers of all functions. `config` is the configuration as it is now: endpoints in places, and free slots."""

    def __init__(self, config: Config, around: Surroundings) -> None:
        """A server for each function of the machine, which does not listen yet."""
        self.config = config
        self.has_slots = bool(config.slots)  # without any, no endpoint can leave either: QEMU would die of it
        self.servers: dict[str, Server] = {}
        self.trace: Trace | None = None  # set by the app, which makes it of the servers
        self._around = around
        self._plugged: set[str] = set()  # those that came by `add`
        self._work = _Work()
        for name, function in around.machine.functions.items():
            path = around.directory / f"{name}.sock"
            if isinstance(function, VhostCarrier):
                self.servers[name] = VhostUserServer(function, path, around.vm)
            else:
                self.servers[name] = VfioUserServer(function, path, around.vm)
        for endpoint in config.endpoints:
            self._connect(endpoint, self.servers[endpoint.name])

    def listen(self) -> None:
        """Make all sockets. ConfigError."""
        for server in self.servers.values():
            server.listen()

    def start(self, group: asyncio.TaskGroup) -> None:
        """Serve in tasks of `group`, those that come later, too."""
        self._work.group = group
        for server in self.servers.values():
            self._serve(server)

    def stop(self) -> None:
        """End the tasks."""
        self._work.group = None
        for task in self._work.tasks:
            task.cancel()

    def close(self) -> None:
        """Remove all sockets."""
        for server in self.servers.values():
            server.close()

    def add(self, given: Mapping[str, object]) -> EndpointConfig:
        """An endpoint that listens for QEMU in a free slot; `given` has keys of an endpoint of a configuration.

        Raises ConfigError, and then nothing has changed.
        """
        changed, endpoint = with_endpoint(self.config, given)
        function = self._around.machine.add_endpoint(endpoint)
        server = VfioUserServer(function, self._around.directory / f"{endpoint.name}.sock", self._around.vm)
        try:
            server.listen()
        except ConfigError:
            self._around.machine.remove_endpoint(endpoint.name)
            raise
        self.config = changed
        self._plugged.add(endpoint.name)
        self.servers[endpoint.name] = server
        self._connect(endpoint, server)
        if self.trace is not None:
            server.trace = self.trace.source
            self.trace.learn(EndpointName(endpoint.name, parse_bdf(endpoint.bdf), endpoint.unit))
        self._around.emit(EndpointAdded(endpoint.unit, parse_bdf(endpoint.bdf), endpoint.name))
        self._serve(server)
        return endpoint

    def remove(self, name: str) -> None:
        """Detach and forget endpoint `name`; its place is a free slot.

        Raises ConfigError for one that is not there, in no slot, or connected to QEMU.
        """
        endpoint = endpoint_named(self.config, name)
        if not self.has_slots:
            raise ConfigError(name, "is in no slot", "give the configuration slots, then what it has can be unplugged")
        changed = without_endpoint(self.config, name)
        server = self.servers[name]
        if server.connection is not None:
            server.connection.poll()  # QEMU may be gone already
            cure = "use endpoint-unplug, or device_del and wait for DEVICE_DELETED"
            raise ConfigError(name, f"QEMU (pid {server.connection.peer.pid}) is connected to it", cure)
        self._around.scheduler.forget(self.unit_of(endpoint).endpoints[name])
        self._around.machine.remove_endpoint(name)
        del self.servers[name]
        server.close()
        self.config = changed
        self._plugged.discard(name)
        self._around.emit(EndpointRemoved(endpoint.unit, parse_bdf(endpoint.bdf), name))

    def unit_of(self, endpoint: EndpointConfig) -> Unit:
        """The unit it is behind."""
        return self._around.machine.units[endpoint.unit]

    def came_later(self, name: str) -> bool:
        """Whether endpoint `name` came by `add`, and not with the configuration."""
        return name in self._plugged

    def socket_of(self, name: str) -> Path:
        """The path of a function's socket."""
        return self.servers[name].path

    def _connect(self, endpoint: EndpointConfig, server: Server) -> None:
        """A worker that crashed is a bug of ours; a reset makes its state new, so it may run again."""
        unit = self.unit_of(endpoint)
        function = unit.endpoints[endpoint.name]
        function.was_reset = partial(self._around.scheduler.forgive, function)
        server.connected = partial(unit.stages.connection, parse_bdf(endpoint.bdf))

    def _serve(self, server: Server) -> None:
        if self._work.group is None:
            return
        task = self._work.group.create_task(server.serve(), name=f"serve {server.path.name}")
        self._work.tasks.add(task)
        task.add_done_callback(self._work.tasks.discard)
