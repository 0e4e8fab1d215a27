"""`qmp-bridge attach`: the bridge for a QEMU that somebody else started, beside a `vdev serve`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qmp_bridge.bridge.server import BridgeServer, Setup
from qmp_bridge.bridge.upstream import NoMonitor
from qmp_bridge.control_client import ControlClient
from qmp_bridge.errors import Refused, VmDied
from vdev.errors import ConfigError

VDEV_SECONDS = 10.0  # for the first answer
UNGUARDED = (
    "guarded is what goes through this socket: another monitor of this QEMU, -incoming and -loadvm are not"
    " (docs/guards.md)"
)


@dataclass(frozen=True)
class Attachment:
    """What the command line says. `listen` is by default `monitor.sock` beside vdev's socket."""

    qmp: Path
    vdev: Path
    listen: Path | None = None

    @property
    def monitor(self) -> Path:
        """Where clients connect."""
        return self.listen or self.vdev.parent / "monitor.sock"


async def attach(attachment: Attachment, say: Callable[[str], None]) -> None:
    """Serve until cancelled. Raises ConfigError when something is not as it has to be, naming the option."""
    _check_socket("--qmp", attachment.qmp, "what -qmp or a chardev of QEMU's names")
    _check_socket("--vdev", attachment.vdev, 'what `vdev serve` names as "control" when it is ready')
    await _check_vdev(attachment.vdev)
    setup = Setup(str(attachment.monitor), str(attachment.qmp), str(attachment.vdev), keep=True, what="--listen")
    server = BridgeServer(setup, say)
    try:
        try:
            await server.connect()
        except NoMonitor as error:
            raise ConfigError("--qmp", str(error)) from error
        say(f"the monitor is {attachment.monitor}")
        say(UNGUARDED)
        await server.run()
    finally:
        server.close()


def _check_socket(option: str, path: Path, cure: str) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(option, f"{path}: {error.strerror}", f"it is {cure}") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(option, f"{path} is no socket", f"it is {cure}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigError(option, f"{path}: you may not connect to it", "run this as the user who started it")


async def _check_vdev(path: Path) -> None:
    control = ControlClient(str(path))
    try:
        status = await control.ask("query-status", {}, VDEV_SECONDS)
        if not isinstance(status, dict) or "vm" not in status:
            raise ConfigError("--vdev", f"{path} is not vdev's control socket", "are --qmp and --vdev swapped?")
    except (VmDied, Refused) as error:
        raise ConfigError("--vdev", f"{path}: {error}", "is it the control socket of a running `vdev serve`?") from None
    finally:
        control.close()
