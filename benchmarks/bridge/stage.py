"""What is measured: a QEMU with monitors, and a bridge with its vdev in front of one of them. Processes, ended here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vdev.errors import VdevError
from vdev.parts.qemu import Qemu

START_S = 30.0
CONFIG = "units:\n  - name: iommu0\nendpoints:\n  - name: accel0\n"


class StageError(VdevError):
    """A process of ours did not come up."""


@contextmanager
def running(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The process for the length of the block; `log` gets what it says."""
    with log.open("ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def qemu(found: Qemu, monitors: Sequence[Path], machine: Sequence[str] = ("-machine", "none")) -> Iterator[int]:
    """A QEMU without a guest that listens on all of `monitors`; its process id. Raises StageError."""
    command = [*found.argv_prefix, *machine, "-nodefaults", "-display", "none"]
    for path in monitors:
        command += ["-qmp", f"unix:{path},server=on,wait=off"]
    log = monitors[0].with_name("qemu.log")
    with running(command, log, {**os.environ, **found.env}) as process:
        _wait(process, log, lambda: all(path.is_socket() for path in monitors))
        yield process.pid


@contextmanager
def bridge(directory: Path, upstream: Path) -> Iterator[tuple[Path, int]]:
    """A bridge in front of the monitor `upstream`, and a vdev for it; where it listens and its process id.

    bridge.log is what the bridge says. Raises StageError.
    """
    config, monitor, control = (directory / name for name in ("vdev.yaml", "bridge.sock", "control.sock"))
    config.write_text(CONFIG, encoding="utf-8")
    vdev = [sys.executable, "-m", "vdev", "serve", str(config), "--runtime-dir", str(directory)]
    attach = [sys.executable, "-m", "qmp_bridge", "attach", "--qmp", str(upstream), "--vdev", str(control)]
    vdev_log, log = directory / "vdev.log", directory / "bridge.log"
    with running(vdev, vdev_log) as first:
        _wait(first, vdev_log, control.is_socket)
        with running([*attach, "--listen", str(monitor)], log) as process:
            _wait(process, log, lambda: "the monitor is" in log.read_text(errors="replace"))
            yield monitor, process.pid


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise StageError(f"{log.stem} does not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.01)
