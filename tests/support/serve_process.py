"""A real `vdev serve` process: started from a configuration's text, asked through its control socket, looked into
through /proc, ended by its handle."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdev.config import Config, parse_config

READY_S = 20.0
WAIT_S = 5.0

ONE_UNIT = """
units:
  - name: iommu0
endpoints:
  - name: accel0
"""

TWO_UNITS = """
units:
  - {name: iommu0, bdf: 00:10.0}
  - {name: iommu1, bdf: 00:11.0}
endpoints:
  - {name: accel0, unit: iommu0, bdf: 01:00.0}
  - {name: accel1, unit: iommu1, bdf: 02:00.0}
"""

# Open to any process, with a function of each kind to attack beside the second unit, which the worker uses.
ATTACKED = """
vm: {identity: unchecked}
units:
  - {name: iommu0, bdf: 00:10.0}
  - {name: iommu1, bdf: 00:11.0}
  - {name: iommu2, bdf: 00:12.0, attach: vhost-user}
endpoints:
  - {name: accel0, unit: iommu0, bdf: 01:00.0}
  - {name: accel1, unit: iommu1, bdf: 02:00.0}
  - {name: accel2, unit: iommu2, bdf: 03:00.0}
"""


class ServeProcess:
    """The process and its sockets. `ready` is the line it announced itself with."""

    def __init__(self, text: str, directory: Path) -> None:
        """Start it in `directory`, which must not exist, and wait until it listens. RuntimeError when it does not."""
        directory.mkdir(mode=0o700)
        self.directory = directory
        self.config: Config = parse_config(text, "test.yaml")
        (directory / "test.yaml").write_text(text)
        self.log = directory / "log"
        command = [sys.executable, "-m", "vdev", "serve", str(directory / "test.yaml"), "--runtime-dir", str(directory)]
        self._control = socket.socket(socket.AF_UNIX)
        self._control.settimeout(WAIT_S)
        self._answers = self._control.makefile("rb")
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            self.ready: dict[str, Any] = self._read_ready()
            # One for life: a control connection that is just ending would disturb who counts fds.
            self._control.connect(self.ready["control"])
        except BaseException:
            self.kill()
            raise

    def _read_ready(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"vdev serve did not start:\n{self.log.read_text()}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def path(self, name: str) -> Path:
        """The socket of function `name`."""
        return Path(self.ready["sockets"][name])

    def ask(self, command: str, **arguments: object) -> Any:
        """The answer of one command on the control socket. RuntimeError for an error."""
        self._control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["return"]

    def unit(self, name: str = "iommu0") -> dict[str, Any]:
        """What query-iommu says about one unit."""
        found: dict[str, Any] = next(unit for unit in self.ask("query-iommu") if unit["unit"] == name)
        return found

    def function(self, name: str) -> dict[str, Any]:
        """What query-status says about the socket of one function."""
        functions = self.ask("query-status")["functions"]
        found: dict[str, Any] = next(function for function in functions if function["function"] == name)
        return found

    def events(self, *kinds: str, since: int = 0) -> list[dict[str, Any]]:
        """Events with sequence number `since` or later."""
        found: list[dict[str, Any]] = self.ask("query-events", since=since, kinds=list(kinds))
        return found

    def next_event(self) -> int:
        """The sequence number the next event will have, or less."""
        events = self.events()
        return int(events[-1]["seq"]) + 1 if events else 0

    def open_fds(self) -> list[str]:
        """What the process has open, with names; sockets and pipes without their numbers."""
        found = []
        for entry in os.listdir(f"/proc/{self.popen.pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                found.append(os.readlink(f"/proc/{self.popen.pid}/fd/{entry}").split("[")[0])
        return sorted(found)

    def ram_maps(self) -> list[str]:
        """The process's mappings of guest RAM."""
        lines = Path(f"/proc/{self.popen.pid}/maps").read_text().splitlines()
        return [line for line in lines if "guest-ram" in line]

    def idle(self) -> None:
        """Wait until no connection is left; TimeoutError after 5 s."""
        deadline = time.monotonic() + WAIT_S
        while self.ask("query-status")["process"]["connections"]:
            if time.monotonic() > deadline:
                raise TimeoutError("connections stay open")
            time.sleep(0.005)

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.popen.terminate()
        try:
            return self.popen.wait(WAIT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """Make sure that it is gone."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for file in (self.popen.stdout, self._answers, self._control):
            if file is not None:
                file.close()


@contextlib.contextmanager
def serving(text: str, directory: Path) -> Iterator[ServeProcess]:
    """A running process for the length of the block."""
    process = ServeProcess(text, directory)
    try:
        yield process
    finally:
        process.kill()
