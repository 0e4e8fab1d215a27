"""Creating and removing the listening UNIX socket of one function, so that only our user can reach it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from vdev.errors import ConfigError

MAX_PATH_NBYTES = 107  # sun_path, less its NUL
BACKLOG = 4
_KEY = "socket path"


class Listener:
    """Owns a listening socket and its path; the directory is 0700 and ours, the socket 0600."""

    def __init__(self, path: Path) -> None:
        """Listen on `path`; ConfigError when the path is too long, in use, or in a directory others can enter."""
        encoded = os.fsencode(path)
        if len(encoded) > MAX_PATH_NBYTES:
            raise ConfigError(
                _KEY,
                f"{path} has {len(encoded)} bytes, a UNIX socket's path has at most {MAX_PATH_NBYTES}",
                "use a shorter runtime directory or VM name",
            )
        self.path = path
        self._closed = False
        _make_private_directory(path.parent)
        _remove_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(self.socket.fileno(), 0o600)  # bind() gives the path this mode, whatever the umask
            self.socket.bind(str(path))
            self.socket.listen(BACKLOG)
            self.socket.setblocking(False)
            self._inode = os.lstat(path).st_ino
        except OSError as error:
            self.socket.close()
            raise ConfigError(_KEY, f"cannot listen on {path}: {error.strerror}") from error

    def close(self) -> None:
        """Stop listening and remove the path, if it is still ours; idempotent."""
        self.socket.close()  # an asyncio server that was given it may have done so already
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                self.path.unlink()


def _make_private_directory(directory: Path) -> None:
    """Create `directory` 0700 unless it is there; ConfigError unless it is ours and closed to others."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = os.lstat(directory)
    except OSError as error:
        raise ConfigError(_KEY, f"cannot create {directory}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(_KEY, f"{directory} is not a directory")
    if status.st_uid != os.geteuid():
        raise ConfigError(_KEY, f"{directory} belongs to user {status.st_uid}", "use a directory of your own")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(_KEY, f"{directory} has mode {mode:04o}, others can enter it", f"chmod 700 {directory}")


def _remove_stale(path: Path) -> None:
    """Remove a socket nobody listens on; ConfigError when somebody does, or when `path` is something else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(_KEY, f"{path} exists and is not a socket", "remove it or choose another path")
    # A datagram socket never gets through to a stream listener: asking this way leaves no connection behind.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        code = probe.connect_ex(str(path))
    if code != errno.ECONNREFUSED:
        raise ConfigError(_KEY, f"{path} is in use by another process", "stop it or choose another path")
    path.unlink()
