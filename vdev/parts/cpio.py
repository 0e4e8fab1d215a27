"""Writes cpio archives in the newc format, as Linux unpacks an initramfs (Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_TRAILER = "TRAILER!!!"
_BLOCK_NBYTES = 512


class CpioWriter:
    """Appends entries to `out`; parents are made on the way. Owners are root, times 0: same input, same bytes."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._nbytes = 0
        self._inode = 0
        self._made: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory and its parents; a second time is no error."""
        name = path.strip("/")
        if not name or name in self._made:
            return
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._entry(path.strip("/"), stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link at `path` that reads `target`."""
        self._entry(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._entry(path.strip("/"), stat.S_IFCHR | mode, device=(major, minor))

    def tree(self, source: Path, target: str = "") -> None:
        """Everything below `source`, sorted, at `target`; permissions kept, set-id bits not."""
        for path in sorted(source.rglob("*")):
            name = str(PurePosixPath(target, path.relative_to(source)))
            info = path.lstat()
            if stat.S_ISLNK(info.st_mode):
                self.symlink(name, str(path.readlink()))
            elif stat.S_ISDIR(info.st_mode):
                self.directory(name)
            elif stat.S_ISREG(info.st_mode):
                self.file(name, path.read_bytes(), 0o755 if info.st_mode & 0o100 else 0o644)

    def close(self) -> None:
        """Write the trailer; another archive may follow it."""
        self._inode = 0
        self._write_entry(_TRAILER, 0, b"", (0, 0))
        self._write(bytes(-self._nbytes % _BLOCK_NBYTES))

    def _entry(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self.directory(str(PurePosixPath(name).parent).strip("."))
        self._made.add(name)
        self._inode += 1
        self._write_entry(name, mode, content, device)

    def _write_entry(self, name: str, mode: int, content: bytes, device: tuple[int, int]) -> None:
        raw = name.encode() + b"\0"
        nlink = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, nlink, 0, len(content), 0, 0, *device, len(raw), 0)
        self._write(b"070701" + b"".join(b"%08X" % value for value in fields) + raw)
        self._write(bytes(-self._nbytes % 4))
        self._write(content)
        self._write(bytes(-self._nbytes % 4))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._nbytes += len(data)
