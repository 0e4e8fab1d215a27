"""Suites of guest tests written for one test, run by a pytest of their own, and what that leaves behind.

The pytest that runs them has a private runtime directory: what it leaves there, and which processes still know of it,
is exact.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

RUN_SECONDS = 400.0
END_SECONDS = 60.0
GONE_SECONDS = 10.0  # what the kernel ends with its parent may take a moment
POLL_SECONDS = 0.1
# One layout for all suites of these tests: they share one saved guest.
MACHINE = """{vm: {name: lab, memory: 256M}, units: [{name: iommu0}], endpoints: [{name: accel0, bdf: "01:00.0"}]}"""
ONE = f"machines: [{{config: {MACHINE}}}]\ntimeout: 30\n"
BOTH = f"machines: [{{config: {MACHINE}, attach: [vfio-user, vhost-user]}}]\ntimeout: 30\n"


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """Write `files`, by their paths in `directory`; texts lose the indentation they share."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return directory


@dataclass
class Ended:
    """A pytest that has ended: what it printed, and what it left."""

    status: int
    output: str
    processes: list[str] = field(default_factory=list)  # command lines
    files: list[str] = field(default_factory=list)  # in the runtime directory

    @property
    def left(self) -> list[str]:
        """Processes, sockets and directories that outlived it."""
        return [*self.processes, *self.files]

    def outcomes(self) -> dict[str, str]:
        """The last word -v prints of each test, by its class and name with its machine."""
        words = "PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS"
        return dict(re.findall(rf"^\S+?\.py::(\S+) ({words})\b", self.output, re.MULTILINE))

    def counted(self) -> str:
        """The last line's numbers, such as "1 failed, 2 passed"."""
        return re.sub(r"^=+ | in [\d.]+s.*$", "", self.output.strip().splitlines()[-1])

    def failure(self, test: str) -> str:
        """What is printed of one failed test: from its title to the next."""
        parts = re.split(r"^_{3,} (.+?) _{3,}$|^={3,} .+ ={3,}$", self.output, flags=re.MULTILINE)
        return next(text for title, text in zip(parts[1::2], parts[2::2], strict=True) if title == test)

    def cause(self, test: str) -> str:
        """The first line of what is printed of it."""
        return self.failure(test).strip().splitlines()[0]


@dataclass
class Running:
    """A pytest that runs. Its output so far is in `text`."""

    process: subprocess.Popen[bytes]
    runtime: Path
    log: Path

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def until(self, words: str) -> None:
        """Wait until it has printed `words`. Raises AssertionError when it ends before, or never does."""
        deadline = time.monotonic() + RUN_SECONDS
        while words not in self.text:
            assert self.process.poll() is None, f"it ended before it said {words!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"it did not say {words!r}:\n{self.text}"
            time.sleep(POLL_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ended(self, seconds: float = END_SECONDS) -> Ended:
        """Wait for its end, and for what goes with it."""
        status = self.process.wait(seconds)
        deadline = time.monotonic() + GONE_SECONDS
        while (left := _processes_of(self.runtime)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return Ended(status, self.text, list(left.values()), sorted(path.name for path in self.runtime.iterdir()))


@contextmanager
def running(
    where: Path, *arguments: str, env: Mapping[str, str] | None = None, wrapper: tuple[str, ...] = ()
) -> Iterator[Running]:
    """`pytest *arguments` in the directory `where`, under the command `wrapper`. Nothing of it outlives the block."""
    runtime = Path(tempfile.mkdtemp(prefix="vdev-lab-", dir="/tmp"))
    log = runtime.with_name(f"{runtime.name}.log")
    command = [*wrapper, sys.executable, "-m", "pytest", "-p", "no:asyncio", "--color=no", "-rfE", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "VDEV_GUEST"))}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=where,
            env={**clean, "COLUMNS": "200", "XDG_RUNTIME_DIR": str(runtime), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield Running(process, runtime, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pid in _processes_of(runtime):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(runtime, ignore_errors=True)
        log.unlink(missing_ok=True)


def run(where: Path, *arguments: str, env: Mapping[str, str] | None = None, wrapper: tuple[str, ...] = ()) -> Ended:
    """`pytest *arguments` in the directory `where`, to its end."""
    with running(where, *arguments, env=env, wrapper=wrapper) as pytest:
        return pytest.ended(RUN_SECONDS)


def junit(path: Path) -> dict[str, ElementTree.Element]:
    """The test cases of a JUnit file by name."""
    return {case.attrib["name"]: case for case in ElementTree.parse(path).iter("testcase")}


def _processes_of(runtime: Path) -> dict[int, str]:
    """Command lines of the processes that were started with this runtime directory, by process id."""
    found = {}
    wanted = f"XDG_RUNTIME_DIR={runtime}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # gone, or somebody else's
    return found
