"""What is measured: a QEMU with monitors, and a bridge with its vdev in front of one of them. Processes, ended here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vdev.errors import VdevError
from vdev.parts.qemu import Qemu

START_S = 30.0
CONFIG = "units:\n  - name: iommu0\nendpoints:\n  - name: accel0\n"


class StageError(VdevError):
    """A process of ours did not come up."""


@contextmanager
def running(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The process for the length of the block; `log` gets its stderr, a pipe its stdout."""
    with log.open("ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **(env or {})})
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def qemu(found: Qemu, monitors: Sequence[Path], machine: Sequence[str] = ("-machine", "none")) -> Iterator[int]:
    """A QEMU without a guest that listens on all of `monitors`; its process id."""
    command = [*found.argv_prefix, *machine, "-nodefaults", "-display", "none"]
    for path in monitors:
        command += ["-qmp", f"unix:{path},server=on,wait=off"]
    log = monitors[0].with_name("qemu.log")
    with running(command, log, dict(found.env)) as process:
        deadline = time.monotonic() + START_S
        while not all(path.is_socket() for path in monitors):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StageError(f"QEMU does not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.01)
        yield process.pid


@contextmanager
def bridge(directory: Path, upstream: Path) -> Iterator[tuple[Path, int]]:
    """A bridge in front of the monitor `upstream`, and a vdev for it; where it listens and its process id."""
    config, monitor = directory / "vdev.yaml", directory / "bridge.sock"
    config.write_text(CONFIG, encoding="utf-8")
    vdev = [sys.executable, "-m", "vdev", "serve", str(config), "--runtime-dir", str(directory)]
    control = directory / "control.sock"
    ours = [sys.executable, "-m", "benchmarks.bridge.attached", str(monitor), str(upstream), str(control)]
    with ExitStack() as stack:
        for command, name in ((vdev, "vdev"), (ours, "bridge")):
            log = directory / f"{name}.log"
            process = stack.enter_context(running(command, log))
            assert process.stdout is not None
            if not process.stdout.readline():
                raise StageError(f"the {name} does not start: {log.read_text(errors='replace')[-500:]}")
        yield monitor, process.pid
