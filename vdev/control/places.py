"""Where running VMs are: their runtime directories, for commands that were told none."""

from __future__ import annotations

import os
from pathlib import Path

from vdev.errors import ConfigError

CONTROL = "control.sock"  # of vdev
MONITOR = "monitor.sock"  # of QEMU and vdev, served by the bridge


def running_vms() -> list[Path]:
    """The directories in the usual places that have a control socket we may write to."""
    places = {Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp"), Path("/tmp")}
    found = {path for place in places for path in place.glob(f"vdev-*/{CONTROL}") if os.access(path, os.W_OK)}
    return sorted(path.parent for path in found)


def the_running_vm(asking: str) -> Path:
    """The one directory; ConfigError with key `asking` when there is none or there are several."""
    found = running_vms()
    if len(found) != 1:
        shown = ", ".join(map(str, found)) or "none"
        raise ConfigError(asking, f"{len(found)} running VMs were found: {shown}", "give a runtime directory")
    return found[0]
