"""A connection's guest RAM without a connection."""

from __future__ import annotations

import os

from vdev.memory import RegionTable
from vdev.transports.ram import ConnectionRam, RamFiles
from vdev.wire import vfio_user as wire


class RamScene:
    """A connection's view of RAM whose QEMU is this process."""

    def __init__(self, files: RamFiles | None = None, pid: int | None = None) -> None:
        self.files = RamFiles() if files is None else files
        self.table = RegionTable()
        self.ram = ConnectionRam(self.files, self.table, os.getpid() if pid is None else pid)

    def map(self, gpa: int, nbytes: int, fd: int | None = None, offset: int = 0, flags: int = 3) -> None:
        self.ram.map(wire.DmaMap(32, flags, offset, gpa, nbytes), fd)

    def unmap(self, gpa: int, nbytes: int, flags: int = 0) -> None:
        self.ram.unmap(wire.DmaUnmap(24, flags, gpa, nbytes))
