"""Which socket a command goes to: QEMU's monitor and ours in one where there is a bridge, else vdev's own."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from vdev.control.places import CONTROL, MONITOR, the_running_vm
from vdev.ctl.client import Client, ControlClient, QmpClient
from vdev.errors import ConfigError, VdevError
from vdev.qapi.model import Command

ATTACH = "qmp-bridge attach --qmp QEMU-SOCKET --vdev CONTROL-SOCKET makes one"


@dataclass(frozen=True, slots=True)
class Target:
    """What the command line says: a runtime directory, a socket, or neither."""

    directory: Path | None = None
    socket: Path | None = None

    def connect(self, command: Command, prefix: str) -> Client:
        """A client for `command`. ConfigError: nothing is there. VdevError: what is there cannot answer it."""
        if self.socket is not None:
            if self.socket.name == CONTROL:
                return _control(self.socket, command)
            return _monitor(self.socket, command, prefix)
        directory = the_running_vm("vdev ctl") if self.directory is None else self.directory
        monitor, control = directory / MONITOR, directory / CONTROL
        if not command.control_only or command.name == "events-follow":
            try:
                return _monitor(monitor, command, prefix)
            except ConfigError:
                pass  # no bridge, or one that has ended
        return _control(control, command)


def _monitor(path: Path, command: Command, prefix: str) -> Client:
    if command.control_only and command.name != "events-follow":  # a monitor tells its events unasked
        raise VdevError(f"{command.name}: is not on QMP (give --socket .../{CONTROL}, or the runtime directory)")
    return QmpClient(dial(path), path, prefix)


def _control(path: Path, command: Command) -> Client:
    client = ControlClient(dial(path), path)
    if command.bridge_only:
        client.close()
        raise VdevError(f"{command.name}: needs QEMU's monitor as well, and no bridge serves one here ({ATTACH})")
    return client


def dial(path: Path, cure: str = "give the runtime directory of a running vdev serve") -> socket.socket:
    """A connection. ConfigError, with the cure, where nobody listens."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        problem = f"nobody listens there: {error.strerror or error}"
        raise ConfigError(str(path), problem, cure) from None
    return sock
