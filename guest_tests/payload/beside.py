"""The configuration space of a PCI function that a driver has, beside that driver: by sysfs."""

from __future__ import annotations

import os

from . import guest
from .direct.function import Function


class Beside(Function):
    """Function `bdf`; VFIO, for one, hides its PASID capability."""

    def __init__(self, bdf: str) -> None:
        self.bdf = bdf
        self._path = guest.SYS / "bus/pci/devices" / bdf / "config"

    def _config_read(self, offset: int, nbytes: int) -> bytes:
        with open(self._path, "rb", buffering=0) as config:
            return os.pread(config.fileno(), nbytes, offset)

    def _config_write(self, offset: int, data: bytes) -> None:
        with open(self._path, "r+b", buffering=0) as config:
            os.pwrite(config.fileno(), data, offset)
