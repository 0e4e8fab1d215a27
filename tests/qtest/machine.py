"""A QEMU without a CPU that runs: the test is its firmware and its driver, through the qtest socket."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from guest_tests.payload.direct.memory import HUGE_NBYTES, PAGE_NBYTES, DmaPool
from tests.qtest.function import QtestFunction
from tests.qtest.protocol import Lines, QtestError, out_command, read_command, write_command
from vdev.parts.qemu import Qemu, find_qemu

RAM_MIB = 64
START_S = 30.0
REPLY_S = 20.0
_ECAM = 0xB0000000
_MCH_PCIEXBAR = 0x80000060  # of the host bridge, as port 0xcf8 wants it
_BARS = range(0xC0000000, 0xFE000000)  # where this machine has neither RAM nor chipset
_ZEROS = hashlib.sha256(bytes(PAGE_NBYTES)).digest()
_FIRST_PAGE = 4 << 20  # of RAM for DMA; below it the PC has its holes


class Ram:
    """The guest's RAM, a memfd of QEMU's, mapped here too: huge pages of it for DMA."""

    def __init__(self, pid: int, nbytes: int = RAM_MIB << 20, first_page: int = _FIRST_PAGE) -> None:
        """Find it among the files of process `pid`; pages go from `first_page` on. Raises FileNotFoundError."""
        files = Path(f"/proc/{pid}/fd")
        for file in files.iterdir():
            if "memory-backend-memfd" in os.readlink(file):
                self._fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
                break
        else:
            raise FileNotFoundError("QEMU has no memfd")
        self._map = mmap.mmap(self._fd, nbytes)
        self._nbytes = nbytes
        self._next = first_page

    def digests(self) -> list[bytes]:
        """A hash of each page, as it is now. What nobody ever wrote to has no memory, and takes no time."""
        digests = [_ZEROS] * (self._nbytes // PAGE_NBYTES)
        stop = 0
        while (start := self._next_data(stop)) < self._nbytes:
            stop = os.lseek(self._fd, start, os.SEEK_HOLE)
            for at in range(start, stop, PAGE_NBYTES):
                digests[at // PAGE_NBYTES] = hashlib.sha256(os.pread(self._fd, PAGE_NBYTES, at)).digest()
        return digests

    def _next_data(self, start: int) -> int:
        try:
            return os.lseek(self._fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self._nbytes

    def take(self) -> tuple[int, memoryview]:
        """2 MiB that nobody has yet."""
        gpa, self._next = self._next, self._next + HUGE_NBYTES
        return gpa, memoryview(self._map)[gpa : gpa + HUGE_NBYTES]

    def close(self) -> None:
        """The file; the mapping goes with the process."""
        os.close(self._fd)


class QtestMachine:
    """Accesses to a running QEMU; `pool` is RAM for DMA."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._socket = connection
        self._lines = Lines()
        self._next_bar = _BARS.start
        self.ask(out_command(0xCF8, _MCH_PCIEXBAR))
        self.ask(out_command(0xCFC, _ECAM | 1))
        self.ram = Ram(pid)  # after the first reply: QEMU connects before it makes its RAM
        self.pool = DmaPool(self.ram)

    def ask(self, command: bytes) -> str:
        """The reply to one command. Raises QtestError, EOFError when QEMU ended, TimeoutError."""
        self._socket.sendall(command)
        while not (replies := self._lines.feed(self._received())):
            pass
        if len(replies) != 1:
            raise QtestError(f"{len(replies)} replies to {command!r}")
        return replies[0]

    def _received(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise EOFError("QEMU closed the qtest socket")
        return data

    def read(self, address: int, nbytes: int) -> int:
        """One read of memory, RAM or registers."""
        return int(self.ask(read_command(address, nbytes)), 0)

    def write(self, address: int, nbytes: int, value: int) -> None:
        """One write of memory, RAM or registers."""
        self.ask(write_command(address, nbytes, value))

    def store(self, address: int, data: bytes) -> None:
        """Put `data`, a multiple of eight bytes, into memory."""
        for at in range(0, len(data), 8):
            self.write(address + at, 8, int.from_bytes(data[at : at + 8], "little"))

    def config_address(self, endpoint: int) -> int:
        """Where the configuration space of a function is."""
        return _ECAM + (endpoint << 12)

    def place(self, nbytes: int) -> int:
        """An address for a BAR of `nbytes`."""
        at = -(-self._next_bar // nbytes) * nbytes
        self._next_bar = at + max(nbytes, 4096)
        assert self._next_bar <= _BARS.stop, "no room for another BAR"
        return at

    def function(self, bdf: str) -> QtestFunction:
        """The function at `bdf` of the root bus, its BARs placed, memory and bus master on."""
        return QtestFunction(self, bdf)


_found: list[Qemu] = []


def qemu() -> Qemu:
    """The QEMU of the project's other tests."""
    if not _found:
        _found.append(find_qemu(None, lambda line: None))
    return _found[0]


@contextmanager
def qtest_machine(directory: Path, arguments: Sequence[str]) -> Iterator[QtestMachine]:
    """A q35 with shared RAM and these devices. AssertionError with QEMU's words when it does not start."""
    path = str(directory / "qtest.sock")
    ram = f"memory-backend-memfd,id=ram,size={RAM_MIB}M,share=on"
    words = [*qemu().argv_prefix, "-machine", "q35,memory-backend=ram", "-m", f"{RAM_MIB}M", "-object", ram]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "qtest"]
    words += ["-qtest", f"unix:{path}", "-qtest-log", "none", *arguments]
    with socket.socket(socket.AF_UNIX) as listener, (directory / "qemu.stderr").open("w") as log:
        listener.bind(path)
        listener.listen()
        listener.settimeout(START_S)
        process = subprocess.Popen(words, env={**os.environ, **qemu().env}, stdin=subprocess.DEVNULL, stderr=log)
        try:
            try:
                connection, _ = listener.accept()
                connection.settimeout(REPLY_S)
                with connection:
                    yield QtestMachine(connection, process.pid)
            except (EOFError, ConnectionError, TimeoutError) as error:
                raise AssertionError((directory / "qemu.stderr").read_text()) from error
        finally:
            process.kill()
            process.wait()
            Path(path).unlink(missing_ok=True)
