"""A real QEMU without a guest, for tests of its monitors: there in a fraction of a second, stopped and idle."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from vdev.parts.qemu import Qemu, find_qemu

START_S = 30.0
MACHINE = ("-machine", "q35", "-m", "64", "-device", "pcie-root-port,id=root1,bus=pcie.0,chassis=1,addr=2")


@cache
def _found() -> Qemu:
    return find_qemu(None, lambda line: None)


@contextmanager
def real_qemu(directory: Path, *monitors: str, arguments: Sequence[str] = MACHINE) -> Iterator[dict[str, str]]:
    """A QEMU with these QMP monitors; the paths of their sockets by name."""
    qemu = _found()
    paths = {name: str(directory / f"{name}.sock") for name in monitors}
    words = [*qemu.argv_prefix, *arguments, "-display", "none", "-nodefaults", "-S"]
    for name, path in paths.items():
        words += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
        words += ["-mon", f"chardev={name},mode=control"]
    with (directory / "qemu.stderr").open("w") as log:
        process = subprocess.Popen(words, env={**os.environ, **qemu.env}, stdin=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not all(Path(path).exists() for path in paths.values()):
            assert process.poll() is None, (directory / "qemu.stderr").read_text()
            assert time.monotonic() < deadline, "QEMU makes no sockets"
            time.sleep(0.01)
        yield paths
    finally:
        process.kill()
        process.wait()
        for path in paths.values():
            Path(path).unlink(missing_ok=True)
