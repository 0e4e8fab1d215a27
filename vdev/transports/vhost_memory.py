"""The memory of one vhost-user connection: where each piece of guest RAM is for the guest (GPA) and for QEMU (HVA).

Ring addresses come as HVAs and are translated here; the buffers in descriptors are GPAs and need none. RAM that cannot
be used is a region without bytes, as over vfio-user: refusing it would leave QEMU's device half started.
"""

from __future__ import annotations

import errno

from vdev.errors import MessageError
from vdev.memory import GPA_SPACE
from vdev.transports.ram import ConnectionRam
from vdev.wire import vfio_user
from vdev.wire import vhost_user as wire

_READ_WRITE = int(vfio_user.DmaFlags.READ | vfio_user.DmaFlags.WRITE)


class VhostMemory:
    """The memory table; every change goes through to `ram`, where a region is what a DMA map is for vfio-user."""

    def __init__(self, ram: ConnectionRam) -> None:
        self._ram = ram
        self._regions: list[wire.MemoryRegion] = []

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, region: wire.MemoryRegion, fd: int) -> None:
        """ADD_MEM_REG; `fd` stays the caller's. MessageError, with nothing changed, when it cannot be."""
        if len(self._regions) >= wire.MAX_MEM_SLOTS:
            raise MessageError(errno.ENOSPC, f"more than {wire.MAX_MEM_SLOTS} memory regions")
        if region.hva + region.nbytes > GPA_SPACE:
            raise MessageError(errno.EINVAL, f"region of {region.nbytes:#x} bytes at HVA {region.hva:#x}")
        for other in self._regions:
            if region.hva < other.hva + other.nbytes and other.hva < region.hva + region.nbytes:
                raise MessageError(errno.EEXIST, f"HVA {region.hva:#x} is in a region already")
        nbytes = vfio_user.DmaMap.layout.size
        self._ram.map(vfio_user.DmaMap(nbytes, _READ_WRITE, region.offset, region.gpa, region.nbytes), fd)
        self._regions.append(region)

    def remove(self, region: wire.MemoryRegion) -> None:
        """REM_MEM_REG; the file offset is not looked at. MessageError when there is no such region."""
        wanted = (region.gpa, region.nbytes, region.hva)
        for position, known in enumerate(self._regions):
            if (known.gpa, known.nbytes, known.hva) == wanted:
                self._ram.unmap(vfio_user.DmaUnmap(vfio_user.DmaUnmap.layout.size, 0, region.gpa, region.nbytes))
                del self._regions[position]
                return
        raise MessageError(errno.ENOENT, f"no region of {region.nbytes:#x} bytes at {region.gpa:#x}")

    def replace(self, regions: list[wire.MemoryRegion], fds: list[int]) -> None:
        """SET_MEM_TABLE. MessageError leaves the table with the regions before the bad one."""
        self.clear()
        for region, fd in zip(regions, fds, strict=True):
            self.add(region, fd)

    def clear(self) -> None:
        """Forget all memory."""
        self._regions.clear()
        self._ram.clear()

    def gpa_of(self, hva: int) -> int:
        """The guest's address of QEMU's `hva`; MessageError outside the table."""
        for region in self._regions:
            if region.hva <= hva < region.hva + region.nbytes:
                return region.gpa + hva - region.hva
        raise MessageError(errno.EFAULT, f"HVA {hva:#x} is in no memory region")
