"""One PCI function driven through sysfs, with no kernel driver: configuration space, capabilities, BARs, reset.

Configuration accesses go through the kernel's `config` file, which makes one access of the width asked for as long as
it is naturally aligned. Anything else is refused here, so that a test knows what it sends.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType

from .. import guest
from ..bar import Bar, Registers
from .errors import NotNegotiated

VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
CLASS_CODE = 0x08  # with the revision in the low byte
SUBSYSTEM = 0x2C
CAPABILITIES = 0x34
EXTENDED = 0x100

COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_INTX_OFF = 1 << 10
STATUS_CAPABILITIES = 1 << 4

CAP_VENDOR = 0x09
CAP_PCIE = 0x10
CAP_MSIX = 0x11
EXT_AER, EXT_ATS, EXT_PRI, EXT_PASID = 0x01, 0x0F, 0x13, 0x1B

PASID_CAPABILITY, PASID_CONTROL = 0x04, 0x06  # of the PASID capability
PASID_ENABLE, PASID_EXECUTE, PASID_PRIVILEGED = 1, 2, 4  # of both, but for ENABLE
_PASID_WIDTH_SHIFT, _PASID_WIDTH_MASK = 8, 0x1F

_DEVCAP, _DEVCTL = 0x04, 0x08  # of the PCI Express capability
_DEVCAP_FLR = 1 << 28
_DEVCTL_FLR = 1 << 15
_FLR_S = 0.1  # PCI Express: how long software leaves a function alone after a function-level reset
_HEADER_NBYTES = 64
_MAX_CAPABILITIES = 48  # that many fit a configuration space without overlap; more is a loop


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability: its id, where it starts in configuration space, and which of the two lists it is in."""

    id: int
    offset: int
    is_extended: bool = False


class Function:
    """What drivers need of a PCI function. Subclasses do three things: `_config_read`, `_config_write`, `bar`.

    `PciFunction` is the real one; tests have theirs.
    """

    bdf: str

    def read_config(self, offset: int, nbytes: int) -> int:
        """One aligned read of 1, 2 or 4 bytes. Raises ValueError for any other, OSError."""
        check_config_access(offset, nbytes)
        return int.from_bytes(self._config_read(offset, nbytes), "little")

    def write_config(self, offset: int, nbytes: int, value: int) -> None:
        """One aligned write of 1, 2 or 4 bytes. Raises ValueError for any other, OSError."""
        check_config_access(offset, nbytes)
        self._config_write(offset, value.to_bytes(nbytes, "little"))

    def capabilities(self) -> list[Capability]:
        """Both lists, in their order, as first read; a list that loops ends with its first repetition."""
        return self._capabilities

    @cached_property
    def _capabilities(self) -> list[Capability]:
        return [*self._standard(), *self._extended()]

    def capability(self, id: int, *, extended: bool = False) -> Capability:
        """The first capability with this id. Raises NotNegotiated when there is none."""
        for found in self.capabilities():
            if (found.id, found.is_extended) == (id, extended):
                return found
        kind = "extended capability" if extended else "capability"
        raise NotNegotiated(f"{self.bdf} has no {kind} {id:#04x}")

    @property
    def vendor_id(self) -> int:
        """Vendor id."""
        return self.read_config(VENDOR_ID, 2)

    @property
    def device_id(self) -> int:
        """Device id."""
        return self.read_config(DEVICE_ID, 2)

    @property
    def class_code(self) -> int:
        """Class, subclass and programming interface, 24 bits."""
        return self.read_config(CLASS_CODE, 4) >> 8

    @property
    def endpoint(self) -> int:
        """The number an IOMMU knows the function by."""
        return guest.endpoint_id(self.bdf)

    @property
    def command(self) -> int:
        """The command register."""
        return self.read_config(COMMAND, 2)

    def set_command(self, *, on: int = 0, off: int = 0) -> int:
        """Switch command bits by one 16-bit write; returns what the register then holds."""
        self.write_config(COMMAND, 2, (self.command | on) & ~off)
        return self.command

    @property
    def pasid_bits(self) -> int:
        """The width its PASID capability gives. Raises NotNegotiated where there is none."""
        at = self.capability(EXT_PASID, extended=True).offset + PASID_CAPABILITY
        return self.read_config(at, 2) >> _PASID_WIDTH_SHIFT & _PASID_WIDTH_MASK

    def enable_pasids(self, control: int = PASID_ENABLE) -> int:
        """Set the control register of the PASID capability, 0 switches it off; returns what it then holds.

        PASID_EXECUTE and PASID_PRIVILEGED stay only where the capability has them. Raises NotNegotiated.
        """
        at = self.capability(EXT_PASID, extended=True).offset + PASID_CONTROL
        self.write_config(at, 2, control)
        return self.read_config(at, 2)

    def bus_master(self, enabled: bool) -> None:
        """Let the function do DMA, or not."""
        bit = COMMAND_BUS_MASTER
        self.set_command(on=bit if enabled else 0, off=0 if enabled else bit)

    def awake(self) -> None:
        """Memory and bus master on, as a function that was taken has them, whatever a test made of them."""
        self.set_command(on=COMMAND_MEMORY | COMMAND_BUS_MASTER)

    def has_flr(self) -> bool:
        """Whether a PCI Express capability offers function-level reset."""
        try:
            pcie = self.capability(CAP_PCIE)
        except NotNegotiated:
            return False
        return bool(self.read_config(pcie.offset + _DEVCAP, 4) & _DEVCAP_FLR)

    def flr(self, recovery_s: float = _FLR_S) -> None:
        """Function-level reset, then the header (BARs, command) as it was. Everything else has power-on values.

        `recovery_s` is how long the function is left alone; ours do not need it. Raises NotNegotiated without the
        capability.
        """
        if not self.has_flr():
            raise NotNegotiated(f"{self.bdf} has no function-level reset")
        header = [self.read_config(at, 4) for at in range(0, _HEADER_NBYTES, 4)]
        control = self.capability(CAP_PCIE).offset + _DEVCTL
        self.write_config(control, 2, self.read_config(control, 2) | _DEVCTL_FLR)
        time.sleep(recovery_s)
        for number in range(_HEADER_NBYTES // 4 - 1, -1, -1):  # BARs before the command register
            if self.read_config(4 * number, 4) != header[number]:
                self.write_config(4 * number, 4, header[number])

    def _standard(self) -> list[Capability]:
        if not self.read_config(STATUS, 2) & STATUS_CAPABILITIES:
            return []
        found: dict[int, Capability] = {}
        at = self.read_config(CAPABILITIES, 1) & ~3
        while at and at not in found and len(found) < _MAX_CAPABILITIES:
            id, following = self.read_config(at, 1), self.read_config(at + 1, 1)
            found[at] = Capability(id, at)
            at = following & ~3
        return list(found.values())

    def _extended(self) -> list[Capability]:
        found: dict[int, Capability] = {}
        at = EXTENDED
        while at >= EXTENDED and at not in found:
            try:
                header = self.read_config(at, 4)
            except (OSError, EOFError):  # a conventional PCI function has 256 bytes
                break
            if header in (0, 0xFFFFFFFF):
                break
            found[at] = Capability(header & 0xFFFF, at, is_extended=True)
            at = header >> 20 & ~3
        return list(found.values())

    def bar(self, index: int) -> Registers:
        """BAR `index`, mapped."""
        raise NotImplementedError

    def _config_read(self, offset: int, nbytes: int) -> bytes:
        raise NotImplementedError

    def _config_write(self, offset: int, data: bytes) -> None:
        raise NotImplementedError


def check_config_access(offset: int, nbytes: int) -> None:
    """Raise ValueError unless it can be one access."""
    if nbytes not in (1, 2, 4) or offset < 0 or offset % nbytes:
        raise ValueError(f"{nbytes} bytes at {offset:#x} of configuration space are not one aligned access")


class PciFunction(Function):
    """Function `bdf` ("0000:00:10.0"), taken from whatever driver had it, with memory and bus master on.

    `release`, or leaving a `with` block, unmaps the BARs, restores the command register (but leaves DMA off) and
    gives the function back to the driver that had it.
    """

    def __init__(self, bdf: str) -> None:
        """Take the function. Raises OSError."""
        self.bdf = bdf
        self.path = guest.SYS / "bus/pci/devices" / bdf
        self.driver_before = guest.link_name(self.path / "driver")
        self._bars: dict[int, Bar] = {}
        self._fd = os.open(self.path / "config", os.O_RDWR | os.O_CLOEXEC)
        try:
            # A BAR cannot be mapped while a driver holds it, and a driver would use the device beside us.
            guest.unbind_driver(bdf)
            (self.path / "enable").write_text("1")
            self.command_before = self.read_config(COMMAND, 2)
            self.set_command(on=COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_OFF)
        except BaseException:
            os.close(self._fd)
            raise

    def bar(self, index: int) -> Bar:
        """BAR `index`, mapped once. Raises OSError (EINVAL: a driver holds the function)."""
        if index not in self._bars:
            fd = os.open(self.path / f"resource{index}", os.O_RDWR | os.O_CLOEXEC)
            try:
                nbytes = os.fstat(fd).st_size
                self._bars[index] = Bar(mmap.mmap(fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
            finally:
                os.close(fd)
        return self._bars[index]

    def release(self) -> None:
        """Give the function back, as it was. Twice is once."""
        if self._fd < 0:
            return
        while self._bars:
            self._bars.popitem()[1].close()
        with suppress(OSError):  # the device may be gone, which is no reason to keep the rest
            self.write_config(COMMAND, 2, self.command_before & ~COMMAND_BUS_MASTER)
            (self.path / "enable").write_text("0")
        os.close(self._fd)
        self._fd = -1
        if self.driver_before is not None:
            with suppress(OSError):
                guest.bind_driver(self.bdf, self.driver_before)
                (self.path / "driver_override").write_text("\n")

    def _config_read(self, offset: int, nbytes: int) -> bytes:
        data = os.pread(self._fd, nbytes, offset)
        if len(data) != nbytes:
            raise EOFError(f"configuration space of {self.bdf} ends before {offset:#x}")
        return data

    def _config_write(self, offset: int, data: bytes) -> None:
        os.pwrite(self._fd, data, offset)

    def __enter__(self) -> PciFunction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"PciFunction({self.bdf})"
