"""The guest kernel's VFIO interface (type1 v2 container, group, PCI device), numbers and layouts written out.

Source: the kernel's userspace API header <linux/vfio.h>. Every structure begins with argsz, its own length.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from . import guest
from .bar import Bar as Bar

VFIO_API_VERSION = 0
VFIO_TYPE1V2_IOMMU = 3


def _io(number: int) -> int:
    """_IO(';', 100 + number): VFIO's ioctls encode neither size nor direction."""
    return (ord(";") << 8) | (100 + number)


GET_API_VERSION = _io(0)
CHECK_EXTENSION = _io(1)
SET_IOMMU = _io(2)
GROUP_GET_STATUS = _io(3)
GROUP_SET_CONTAINER = _io(4)
GROUP_UNSET_CONTAINER = _io(5)
GROUP_GET_DEVICE_FD = _io(6)
DEVICE_GET_INFO = _io(7)
DEVICE_GET_REGION_INFO = _io(8)
DEVICE_GET_IRQ_INFO = _io(9)
DEVICE_SET_IRQS = _io(10)
DEVICE_RESET = _io(11)
IOMMU_GET_INFO = _io(12)
IOMMU_MAP_DMA = _io(13)
IOMMU_UNMAP_DMA = _io(14)

GROUP_STATUS = Struct("<II")  # argsz, flags
DEVICE_INFO = Struct("<IIIIII")  # argsz, flags, num_regions, num_irqs, cap_offset, pad
REGION_INFO = Struct("<IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
IRQ_INFO = Struct("<IIII")  # argsz, flags, index, count
IRQ_SET = Struct("<IIIII")  # argsz, flags, index, start, count; then count int32 eventfds
DMA_MAP = Struct("<IIQQQ")  # argsz, flags, vaddr, iova, size
DMA_UNMAP = Struct("<IIQQ")  # argsz, flags, iova, size
IOMMU_INFO = Struct("<IIQII")  # argsz, flags, iova_pgsizes, cap_offset, pad; then capabilities
CAPABILITY = Struct("<HHI")  # id, version, offset of the next one from the start of the answer, or 0
CAPABILITY_IOVA_RANGE = 1  # then u32 nr_iovas, u32 reserved, and the ranges
IOVA_RANGES_OFFSET = 16
IOVA_RANGE = Struct("<QQ")  # start, end (inclusive)

GROUP_VIABLE = 1
DEVICE_CAN_RESET = 1
REGION_CAN_MMAP = 4
IRQ_DATA_NONE = 1
IRQ_DATA_EVENTFD = 4
IRQ_ACTION_TRIGGER = 32
CONFIG_REGION = 7
MSIX_IRQ = 2

READ = 1  # DMA_MAP flags: what the device may do
WRITE = 2

PCI_COMMAND = 4  # offset in config space, u16
COMMAND_MEMORY = 2
COMMAND_BUS_MASTER = 4


class Buffer:
    """Page-aligned memory of this process for DMA, `nbytes` long; `memory` reads and writes it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._mmap = mmap.mmap(-1, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        self.memory = memoryview(self._mmap)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))

    def fill(self, value: int) -> None:
        """Set every byte to `value`."""
        self.memory[:] = bytes([value]) * self.nbytes


@dataclass(frozen=True)
class Region:
    """Where a region of the device lies in the device file."""

    flags: int
    nbytes: int
    offset: int


@dataclass(frozen=True)
class AddressSpace:
    """What a container can map: a bit for each page size, and ranges of IOVA by rising address, both ends in them."""

    page_sizes: int
    ranges: tuple[tuple[int, int], ...]


class Container:
    """One VFIO container holding a group or several: the I/O address space DMA of their devices goes through."""

    def __init__(self, *groups: int) -> None:
        """Open the container, put IOMMU groups in it, choose the type1 v2 model. Raises OSError."""
        self._fds = contextlib.ExitStack()
        self._groups: dict[int, int] = {}  # number: its file
        try:
            self.fd = self._open("/dev/vfio/vfio")
            if fcntl.ioctl(self.fd, GET_API_VERSION) != VFIO_API_VERSION:
                raise OSError("VFIO speaks another API version")
            if not fcntl.ioctl(self.fd, CHECK_EXTENSION, VFIO_TYPE1V2_IOMMU):
                raise OSError("VFIO has no type1 v2 IOMMU model")
            for group in groups:
                self.add(group)
        except OSError:
            self.close()
            raise

    def add(self, group: int) -> None:
        """Put IOMMU group `group` in as well. Raises OSError, and then the group is free again."""
        with contextlib.ExitStack() as undo:
            fd = os.open(f"/dev/vfio/{group}", os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
            fcntl.ioctl(fd, GROUP_GET_STATUS, status)
            if not GROUP_STATUS.unpack(status)[1] & GROUP_VIABLE:
                raise OSError(f"IOMMU group {group} is not viable: another driver holds a device of it")
            fcntl.ioctl(fd, GROUP_SET_CONTAINER, self.fd.to_bytes(4, "little"))
            if not self._groups:
                fcntl.ioctl(self.fd, SET_IOMMU, VFIO_TYPE1V2_IOMMU)
            undo.pop_all()
        self._groups[group] = fd

    def remove(self, group: int) -> None:
        """Take IOMMU group `group` out; its devices must be closed. With the last one goes all that is mapped."""
        fcntl.ioctl(self._groups[group], GROUP_UNSET_CONTAINER)
        os.close(self._groups.pop(group))

    def device_fd(self, bdf: str) -> int:
        """Open function `bdf` of one of the groups. Raises OSError."""
        group = guest.link_name(guest.SYS / "bus/pci/devices" / bdf / "iommu_group")
        if group is None or int(group) not in self._groups:
            raise OSError(f"{bdf} is in IOMMU group {group}, which is not in this container")
        fd: int = fcntl.ioctl(self._groups[int(group)], GROUP_GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"))
        return fd

    def address_space(self) -> AddressSpace:
        """What can be mapped (VFIO_IOMMU_GET_INFO). Raises OSError."""
        asked = bytearray(IOMMU_INFO.pack(IOMMU_INFO.size, 0, 0, 0, 0))
        fcntl.ioctl(self.fd, IOMMU_GET_INFO, asked)
        (needed, *_) = IOMMU_INFO.unpack(asked)
        raw = bytearray(IOMMU_INFO.pack(needed, 0, 0, 0, 0).ljust(needed, b"\0"))
        fcntl.ioctl(self.fd, IOMMU_GET_INFO, raw)
        _, _, page_sizes, at, _ = IOMMU_INFO.unpack_from(raw)
        ranges: tuple[tuple[int, int], ...] = ()
        while at:
            kind, _, following = CAPABILITY.unpack_from(raw, at)
            if kind == CAPABILITY_IOVA_RANGE:
                count = int.from_bytes(raw[at + CAPABILITY.size : at + CAPABILITY.size + 4], "little")
                first = at + IOVA_RANGES_OFFSET
                ranges = tuple(IOVA_RANGE.iter_unpack(raw[first : first + count * IOVA_RANGE.size]))
            at = following
        return AddressSpace(page_sizes, ranges)

    def _open(self, path: str) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._fds.callback(os.close, fd)
        return fd

    def map(self, iova: int, buffer: Buffer, access: int, *, offset: int = 0, nbytes: int | None = None) -> None:
        """Let the device reach `nbytes` of `buffer` from `offset` on (by default all) at `iova`. Raises OSError."""
        length = buffer.nbytes - offset if nbytes is None else nbytes
        request = DMA_MAP.pack(DMA_MAP.size, access, buffer.address + offset, iova, length)
        fcntl.ioctl(self.fd, IOMMU_MAP_DMA, request)

    def unmap(self, iova: int, nbytes: int) -> None:
        """Take [iova, iova + nbytes) away from the device; it must hold exactly whole mappings. Raises OSError."""
        request = bytearray(DMA_UNMAP.pack(DMA_UNMAP.size, 0, iova, nbytes))
        fcntl.ioctl(self.fd, IOMMU_UNMAP_DMA, request)
        if DMA_UNMAP.unpack(request)[3] != nbytes:
            raise OSError(f"VFIO unmapped {DMA_UNMAP.unpack(request)[3]} of {nbytes} bytes at {iova:#x}")

    @contextlib.contextmanager
    def mapped(self, iova: int, buffer: Buffer, access: int = READ | WRITE) -> Iterator[None]:
        """Map the whole of `buffer` for the length of the block."""
        self.map(iova, buffer, access)
        try:
            yield
        finally:
            self.unmap(iova, buffer.nbytes)

    def close(self) -> None:
        """Close groups and container; the kernel drops what is still mapped."""
        while self._groups:
            os.close(self._groups.popitem()[1])
        self._fds.close()


class Device:
    """One PCI function opened through VFIO."""

    def __init__(self, container: Container, bdf: str) -> None:
        """Open function `bdf` ("0000:01:00.0") of one of the container's groups. Raises OSError."""
        self.bdf = bdf
        self.fd = container.device_fd(bdf)
        info = bytearray(DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0, 0, 0))
        fcntl.ioctl(self.fd, DEVICE_GET_INFO, info)
        _, self.flags, self.nregions, self.nirqs, _, _ = DEVICE_INFO.unpack(info)
        self._config = self.region(CONFIG_REGION)

    def region(self, index: int) -> Region:
        """Describe region `index` (0-5 the BARs, 7 config space)."""
        raw = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        fcntl.ioctl(self.fd, DEVICE_GET_REGION_INFO, raw)
        _, flags, _, _, nbytes, offset = REGION_INFO.unpack(raw)
        return Region(flags, nbytes, offset)

    def bar(self, index: int) -> Bar:
        """Map BAR `index`. Memory decoding must be on before the first access. Raises OSError."""
        region = self.region(index)
        if not region.flags & REGION_CAN_MMAP:
            raise OSError(f"BAR{index} cannot be mapped (flags {region.flags:#x}, {region.nbytes} bytes)")
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        return Bar(mmap.mmap(self.fd, region.nbytes, mmap.MAP_SHARED, protection, offset=region.offset))

    def command(self) -> int:
        """The PCI command register."""
        return int.from_bytes(os.pread(self.fd, 2, self._config.offset + PCI_COMMAND), "little")

    def set_command(self, *, on: int = 0, off: int = 0) -> int:
        """Switch command bits and return what the register then holds."""
        value = (self.command() | on) & ~off
        os.pwrite(self.fd, value.to_bytes(2, "little"), self._config.offset + PCI_COMMAND)
        return self.command()

    def nvectors(self) -> int:
        """How many MSI-X vectors the function has."""
        raw = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, MSIX_IRQ, 0))
        fcntl.ioctl(self.fd, DEVICE_GET_IRQ_INFO, raw)
        return int(IRQ_INFO.unpack(raw)[3])

    def enable_msix(self, eventfds: list[int]) -> None:
        """Vector n writes to eventfds[n] from now on. Raises OSError."""
        data = b"".join(fd.to_bytes(4, "little") for fd in eventfds)
        header = IRQ_SET.pack(
            IRQ_SET.size + len(data), IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER, MSIX_IRQ, 0, len(eventfds)
        )
        fcntl.ioctl(self.fd, DEVICE_SET_IRQS, header + data)

    def disable_msix(self) -> None:
        """Take all vectors down."""
        header = IRQ_SET.pack(IRQ_SET.size, IRQ_DATA_NONE | IRQ_ACTION_TRIGGER, MSIX_IRQ, 0, 0)
        fcntl.ioctl(self.fd, DEVICE_SET_IRQS, header)

    def can_reset(self) -> bool:
        """Whether the kernel knows a way to reset this function alone."""
        return bool(self.flags & DEVICE_CAN_RESET)

    def reset(self) -> None:
        """Function reset. The kernel keeps the config space across it. Raises OSError."""
        fcntl.ioctl(self.fd, DEVICE_RESET)

    def close(self) -> None:
        """Close the function; the kernel switches bus mastering off."""
        os.close(self.fd)
