"""The host as a test of the suite sees it, where there is no host: vdev's commands, answered by the machine in process.

What needs QEMU is refused. The commands go through the control socket's own server, which checks them by the schema.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from guest_tests.boot import ControlError
from guest_tests.runner.steps import HostSide, answer
from tests.support.direct import SimFunction, SimMachine
from vdev.config import Config
from vdev.control.event_log import EventLog
from vdev.control.iommu_actions import iommu_actions
from vdev.control.iommu_queries import iommu_queries
from vdev.control.server import Command, ControlServer
from vdev.errors import VdevError
from vdev.pasid_commands import pasid_commands
from vdev.wire.virtio_pci import Status


class NoQemu(VdevError):
    """A step needs QEMU, and there is none."""


class InProcessHost:
    """A machine with the host's side of it: what a guest has at the other end of its channel."""

    def __init__(self, config: Config, suite: Path) -> None:
        self._config = config
        self.events = EventLog(time.monotonic)
        self.machine = SimMachine(config, self.events.emit)
        self._socket = socket.socket(socket.AF_UNIX)  # never listens
        self._server = ControlServer(self._socket, self._commands())
        qemu = SimpleNamespace(qmp=SimpleNamespace(execute=_no_qemu))
        self._side = HostSide(qemu, self, suite)  # type: ignore[arg-type] # as much of both as it uses
        self._runner = asyncio.Runner()
        self._answer: dict[str, Any] | None = None

    def close(self) -> None:
        """Release what it holds."""
        self._runner.close()
        self._socket.close()

    # The channel of guest_tests.payload.host.Host

    def send(self, message: dict[str, Any]) -> None:
        """Do what the test asks."""
        self._answer = self._runner.run(answer(self._side, message["ask"], message["arguments"]))

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """What came of it."""
        return self._answer

    async def execute(self, command: str, **arguments: object) -> Any:
        """One command, as guest_tests.boot.Control does it. Raises ControlError."""
        line = json.dumps({"execute": command, "arguments": arguments}).encode()
        said = json.loads(self._server.answer(line))
        if "error" in said:
            raise ControlError(f"{command}: {said['error']['desc']}")
        return said["return"]

    def _commands(self) -> dict[str, Command]:
        units = self.machine.vdev.units
        return {
            "query-status": Command(self._status),
            "query-iommu": Command(lambda: [unit.describe() for unit in units.values()]),
            "query-events": Command(self.events.query),
            **iommu_queries(units),
            **iommu_actions(units),
            **self._pasid_commands(),
        }

    def _pasid_commands(self) -> dict[str, Command]:
        """Those the suite asks for; the order for another quota is carried out here, where the allocator is."""
        vdev, allocator = self.machine.vdev, self.machine.allocator
        pasids = SimpleNamespace(set=self.machine.pasids, kernel=vdev.kernel_pasids, describe_lease=_lease)
        queries = pasid_commands(vdev.units, self._config, pasids)  # type: ignore[arg-type] # as much as it uses

        def quota(quota: int) -> dict[str, int]:
            allocator.change(quota=quota)
            self.machine.run()
            return {"quota": quota, "used": self.machine.pasids.used if self.machine.pasids is not None else 0}

        return {**{name: queries[name] for name in ("query-pasid-set", "query-pasids")}, "pasid-quota": Command(quota)}

    def _status(self) -> dict[str, Any]:
        """Of query-status, the functions: whether a unit is broken is where the back end of vhost-user has it."""
        return {"functions": [_describe(name, function) for name, function in self.machine.functions.items()]}


def _describe(name: str, function: SimFunction) -> dict[str, Any]:
    status = getattr(function.device, "status", Status(0))
    return {"function": name, "connection": {"broken": bool(status & Status.DEVICE_NEEDS_RESET)}}


def _lease() -> dict[str, str]:
    return {"state": "held", "authority": "in process"}


async def _no_qemu(command: str, arguments: object) -> None:
    raise NoQemu(f"{command}: there is no QEMU in process")
