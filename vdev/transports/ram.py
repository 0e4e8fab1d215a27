"""Guest RAM that came as file descriptors: one shared mapping per inode and VM, one region table per connection.

A file is mapped once, whole, however many connections name it and however often. A mapping is never closed
explicitly: views of it may live in rings; it goes when the last reference does. mmap keeps its own duplicate of
the fd, so the caller's is closed at once.

SIGBUS kills us when a mapped file shrinks, and no check of ours can be in time: whoever has the file may truncate it
between the check and the access. Only a memfd sealed against shrinking (QEMU's default) rules it out, and a seal
cannot be taken off again; so what is not sealed is not used unless the user says so. A host that runs out of memory
or huge pages while a page is first touched kills QEMU in the same way.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import stat
from dataclasses import dataclass
from typing import Any

from vdev.errors import MemoryAccessError, MessageError, VdevError
from vdev.limited_log import LimitedLog
from vdev.memory import GPA_SPACE, Region, RegionTable
from vdev.wire import vfio_user as wire

log = logging.getLogger(__name__)

MAX_COMPLAINTS = 64  # files remembered as complained of, per VM
MAX_NAME_NCHARS = 100  # of a file, in the log
MAX_FILES = 256  # mappings per VM, each of which keeps an fd; more RAM files than that are not DMA-able
MAX_MAPPED_NBYTES = 1 << 43  # of a VM's files; sparse ones could use up our address space, and with it every allocation
_KNOWN_DMA_FLAGS = sum(wire.DmaFlags)  # an int: inverting a flag enumeration drops the unknown bits
_CURE = "use memory-backend-memfd with share=on"
_ALLOW = "or accept with 'vm.unsealed_ram: allow' that this process dies when the file shrinks"

FileKey = tuple[int, int, bool]  # st_dev, st_ino, mapped writable


class UnusableRam(VdevError):
    """Never leaves `ConnectionRam`: this fd's memory must not be used for DMA; says why and what to do."""


@dataclass(slots=True, eq=False)
class RamFile:
    """One mapped inode. `refs` counts the regions over it; `shared` is None when QEMU's maps could not tell."""

    key: FileKey
    view: memoryview
    sealed: bool
    shared: bool | None
    refs: int = 0


class RamFiles:
    """All RAM files of one VM, by inode. With `require_sealed`, a file that may shrink is not used at all."""

    def __init__(self, *, require_sealed: bool = False, limited_log: LimitedLog | None = None) -> None:
        self.require_sealed = require_sealed
        self._files: dict[FileKey, RamFile] = {}
        self._live = 0  # mappings with a reference, those that a grown file replaced included
        self._mapped_nbytes = 0  # by them
        self._complained: set[str] = set()
        self._main: RamFile | None = None  # what some connection has at GPA 0
        self._limited_log = LimitedLog() if limited_log is None else limited_log

    def __len__(self) -> int:
        return len(self._files)

    def acquire(self, fd: int, stop: int, pid: int) -> RamFile:
        """The mapping of `fd`'s file, which must reach to offset `stop`; one reference more.

        `fd` stays the caller's. `pid` is QEMU's (0: unknown). Raises MessageError when the file is too short for
        what the client claims, UnusableRam when it must not be used for DMA.
        """
        # Seals come first: only a memfd has them, and asking any other file anything may block (FUSE, NFS).
        if self.require_sealed and not _seals(fd) & fcntl.F_SEAL_SHRINK:
            raise UnusableRam(f"it is not sealed against shrinking: {_CURE}, {_ALLOW}")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableRam("the fd is not a regular file or memfd")
        if stop > status.st_size:
            raise MessageError(errno.EINVAL, f"the file has {status.st_size:#x} bytes, the map ends at {stop:#x}")
        writable = _is_writable(fd)
        key = (status.st_dev, status.st_ino, writable)
        known = self._files.get(key)
        # A file that has grown gets a second mapping; the first lives on under the regions made from it.
        if known is None or len(known.view) < stop:
            if self._live >= MAX_FILES:
                raise UnusableRam(f"the VM has more than {MAX_FILES} RAM files")
            if self._mapped_nbytes + status.st_size > MAX_MAPPED_NBYTES:
                raise UnusableRam(f"a file of {status.st_size:#x} bytes takes the VM past {MAX_MAPPED_NBYTES:#x}")
            sealed, shared = self._inspect(fd, status, pid)
            view = _map_whole(fd, status.st_size, writable=writable)
            known = self._files[key] = RamFile(key, view, sealed, shared)
            self._live += 1
            self._mapped_nbytes += status.st_size
        known.refs += 1
        return known

    def release(self, file: RamFile) -> None:
        """One reference less; with the last, the file is forgotten (and unmapped once no view is left)."""
        file.refs -= 1
        if file.refs:
            return
        self._live -= 1
        self._mapped_nbytes -= len(file.view)
        if self._files.get(file.key) is file:
            del self._files[file.key]
        if self._main is file:
            self._main = None

    def is_main(self, file: RamFile) -> bool:
        """Whether `file` is what lies at GPA 0 in this VM; the first to be asked about is."""
        if self._main is None:
            self._main = file
        return self._main.key[:2] == file.key[:2]

    def complain(self, fd: int, level: int, text: str) -> None:
        """Log `text`, normally once per file: QEMU maps one many times."""
        name = _name_of(fd)
        if name not in self._complained:
            if len(self._complained) >= MAX_COMPLAINTS:
                self._complained.clear()
            self._complained.add(name)
            self._limited_log.log(log, level, ("guest RAM", "unusable or unsealed"), f"guest RAM ({name}): {text}")

    def complain_of_missing_fd(self) -> None:
        """Log that main RAM has no fd."""
        text = f"guest RAM came without a file descriptor, so no DMA can reach it: {_CURE}"
        self._limited_log.log(log, logging.ERROR, ("guest RAM", "no descriptor"), text)

    def describe(self) -> list[dict[str, Any]]:
        """Plain data for queries, one entry per mapped file."""
        return [
            {
                "inode": file.key[1],
                "nbytes": len(file.view),
                "writable": file.key[2],
                "sealed": file.sealed,
                "shared": {True: "yes", False: "no", None: "unknown"}[file.shared],
                "regions": file.refs,
            }
            for file in self._files.values()
        ]

    def _inspect(self, fd: int, status: os.stat_result, pid: int) -> tuple[bool, bool | None]:
        """(sealed against shrinking, shared with QEMU); UnusableRam where policy forbids the file."""
        shared = is_shared(pid, status.st_dev, status.st_ino)
        if shared is False:
            raise UnusableRam(f"QEMU maps it privately, so DMA would go to a copy: {_CURE}")
        sealed = bool(_seals(fd) & fcntl.F_SEAL_SHRINK)
        if not sealed:
            self.complain(fd, logging.WARNING, f"not sealed; if the file shrinks, this process dies: {_CURE}")
        return sealed, shared


class ConnectionRam:
    """What DMA_MAP and DMA_UNMAP of one connection do to its function's region table."""

    def __init__(self, files: RamFiles, table: RegionTable, pid: int, *, same_as_others: bool = False) -> None:
        """`same_as_others` demands that main RAM is the file the VM's other connections have there."""
        self._files = files
        self._table = table
        self._pid = pid
        self._same_as_others = same_as_others
        self._owners: dict[int, RamFile] = {}  # region's GPA -> the file it holds a reference to
        self._warned_fdless = False

    def map(self, request: wire.DmaMap, fd: int | None) -> None:
        """Add a region; `fd` stays the caller's. MessageError when the request makes no sense.

        Memory we must not use becomes a region without view instead of an error: QEMU aborts over
        some refused DMA_MAPs, and the guest is fine as long as nobody does DMA there.
        """
        self._check(request)
        readable, writable = bool(request.flags & wire.DmaFlags.READ), bool(request.flags & wire.DmaFlags.WRITE)
        file = self._file(request, fd)
        view = None
        if file is not None:
            view = file.view[request.offset : request.offset + request.nbytes]
            if not writable:
                view = view.toreadonly()
            writable = not view.readonly
        try:
            self._table.add(Region(request.iova, request.nbytes, view, readable, writable))
        except MemoryAccessError as error:
            if file is not None:
                self._files.release(file)
            raise MessageError(errno.EEXIST, str(error)) from error
        if file is not None:
            self._owners[request.iova] = file

    def unmap(self, request: wire.DmaUnmap) -> None:
        """Remove the regions of a range, or all of them; MessageError (nothing changed) otherwise."""
        if request.flags & ~(wire.UNMAP_ALL | wire.UNMAP_DIRTY_BITMAP):
            raise MessageError(errno.EINVAL, f"DMA_UNMAP with unknown flags {request.flags:#x}")
        if request.flags & wire.UNMAP_DIRTY_BITMAP:
            raise MessageError(errno.ENOTSUP, "dirty page tracking is not there")
        if request.flags & wire.UNMAP_ALL:
            if request.iova or request.nbytes:
                raise MessageError(errno.EINVAL, "unmap-all names a range")
            self.clear()
            return
        if not request.nbytes or request.iova + request.nbytes > GPA_SPACE:
            raise MessageError(errno.EINVAL, f"DMA_UNMAP of {request.nbytes:#x} bytes at {request.iova:#x}")
        try:
            removed = self._table.remove(request.iova, request.nbytes)
        except MemoryAccessError as error:
            raise MessageError(errno.EINVAL, str(error)) from error
        if not removed:
            raise MessageError(errno.ENOENT, f"nothing is mapped in {request.iova:#x}+{request.nbytes:#x}")
        for region in removed:
            self._release(region.gpa)

    def clear(self) -> None:
        """Remove every region."""
        self._table.clear()
        for gpa in list(self._owners):
            self._release(gpa)

    def describe(self) -> dict[str, int]:
        """Plain data for queries."""
        regions = self._table.regions()
        return {
            "regions": len(regions),
            "dma_able_nbytes": sum(region.nbytes for region in regions if region.view is not None),
            "unreachable_nbytes": sum(region.nbytes for region in regions if region.view is None),
        }

    def _release(self, gpa: int) -> None:
        file = self._owners.pop(gpa, None)
        if file is not None:
            self._files.release(file)

    def _check(self, request: wire.DmaMap) -> None:
        if request.argsz < request.layout.size or request.flags & ~_KNOWN_DMA_FLAGS:
            raise MessageError(errno.EINVAL, f"DMA_MAP with argsz {request.argsz}, flags {request.flags:#x}")
        if not request.nbytes or request.iova + request.nbytes > GPA_SPACE or request.offset >= GPA_SPACE >> 1:
            raise MessageError(errno.EINVAL, f"DMA_MAP of {request.nbytes:#x} bytes at {request.iova:#x}")
        if len(self._table) >= wire.MAX_DMA_MAPS:
            raise MessageError(errno.ENOSPC, f"more than {wire.MAX_DMA_MAPS} DMA maps")

    def _file(self, request: wire.DmaMap, fd: int | None) -> RamFile | None:
        """A reference to the mapping behind `fd`, None for memory that cannot or must not be reached."""
        if fd is None:
            # Firmware, ROM and VGA memory never have an fd; memory at 0 is the machine's main RAM.
            if request.iova == 0 and not self._warned_fdless:
                self._warned_fdless = True
                self._files.complain_of_missing_fd()
            return None
        try:
            file = self._files.acquire(fd, request.offset + request.nbytes, self._pid)
            if request.iova == 0 and not self._files.is_main(file) and self._same_as_others:
                self._files.release(file)
                raise UnusableRam("it is not the RAM that this VM's other functions have: one QEMU, one RAM backend")
            return file
        except UnusableRam as error:
            self._files.complain(fd, logging.ERROR, f"no DMA will reach it: {error}")
            return None


def is_shared(pid: int, device: int, inode: int) -> bool | None:
    """Whether process `pid` maps the file MAP_SHARED; None when it does not map it or we may not look."""
    if pid <= 0:
        return None
    wanted = (f"{os.major(device):02x}:{os.minor(device):02x}".encode(), str(inode).encode())
    found: bool | None = None
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            for line in maps:
                fields = line.split(None, 5)
                if len(fields) >= 5 and (fields[3], fields[4]) == wanted:
                    if fields[1].endswith(b"s"):
                        return True
                    found = False
    except OSError:
        return None
    return found


def _is_writable(fd: int) -> bool:
    """Whether a shared writable mapping of `fd` is possible."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        return False
    future_write = getattr(fcntl, "F_SEAL_FUTURE_WRITE", 0x10)
    return not _seals(fd) & (fcntl.F_SEAL_WRITE | future_write)


def _seals(fd: int) -> int:
    """Seals of a memfd; 0 for files that cannot have any."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return 0


def _name_of(fd: int) -> str:
    """What the log calls a file. A memfd's inode; of anything else the name, since asking it might block."""
    name = os.readlink(f"/proc/self/fd/{fd}").encode("unicode_escape").decode()[:MAX_NAME_NCHARS]
    return f"{name}, inode {os.fstat(fd).st_ino}" if name.startswith("/memfd:") else name


def _map_whole(fd: int, nbytes: int, *, writable: bool) -> memoryview:
    """A shared mapping of the first `nbytes` of `fd`; UnusableRam when the kernel will not."""
    try:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return memoryview(mmap.mmap(fd, nbytes, access=access))
    except (OSError, ValueError, OverflowError) as error:
        raise UnusableRam(f"cannot be mapped: {error}") from error
