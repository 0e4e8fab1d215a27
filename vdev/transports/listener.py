"""Creating and removing the listening UNIX socket of one function, so that only those can reach it who may."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from vdev.errors import ConfigError
from vdev.transports.access import OURS, SocketAccess

MAX_PATH_NBYTES = 107  # sun_path, less its NUL
BACKLOG = 4
_KEY = "socket path"


class Listener:
    """Owns a listening socket and its path; the directory is 0700 and ours, the socket 0600, or as `access` says."""

    def __init__(
        self,
        path: Path,
        access: SocketAccess = OURS,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        backlog: int = BACKLOG,
    ) -> None:
        """Listen on `path`; ConfigError when the path is too long, in use, or in a directory others can enter."""
        encoded = os.fsencode(path)
        if len(encoded) > MAX_PATH_NBYTES:
            raise ConfigError(
                _KEY,
                f"{path} has {len(encoded)} bytes, a UNIX socket's path has at most {MAX_PATH_NBYTES}",
                "use a shorter runtime directory or VM name",
            )
        self.path = path
        self._withdrawn = False
        make_directory(path.parent, access)
        _remove_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, kind)
        try:
            os.fchmod(self.socket.fileno(), access.socket_mode)
            _bind(self.socket, path)
            access.hand_over(path)
            self.socket.listen(backlog)
            self.socket.setblocking(False)
            self._inode = os.lstat(path).st_ino
        except OSError as error:
            self.socket.close()
            raise ConfigError(_KEY, f"cannot listen on {path}: {error.strerror}") from error
        except ConfigError:
            self.socket.close()
            path.unlink()
            raise

    def close(self) -> None:
        """Stop listening and remove the path, if it is still ours; idempotent."""
        self.socket.close()  # an asyncio server that was given it may have done so already
        self.withdraw()

    def withdraw(self) -> None:
        """Remove the path, if it is still ours: nobody finds the socket any more; idempotent."""
        if self._withdrawn:
            return
        self._withdrawn = True
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                self.path.unlink()


def _bind(sock: socket.socket, path: Path) -> None:
    """bind() gives the path the socket's mode less the umask: a chmod afterwards could hit what somebody put there."""
    before = os.umask(0)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)


def make_directory(directory: Path, access: SocketAccess = OURS) -> None:
    """Create `directory`, or make sure that one that is there belongs to us or `access.owner` and is closed to others.

    ConfigError otherwise. With an owner or a group in `access` it is given to them; to the world never.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = os.lstat(directory)
    except OSError as error:
        raise ConfigError(_KEY, f"cannot create {directory}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(_KEY, f"{directory} is not a directory")
    if status.st_uid not in (os.geteuid(), access.owner):
        raise ConfigError(_KEY, f"{directory} belongs to user {status.st_uid}", "use a directory of your own")
    if status.st_mode & (0o077 if access.group is None else 0o007):
        mode = stat.S_IMODE(status.st_mode)
        cure = f"chmod {access.directory_mode:o} {directory}"
        raise ConfigError(_KEY, f"{directory} has mode {mode:04o}, others can enter it", cure)
    if access != OURS:
        _open_up(directory, access)


def _open_up(directory: Path, access: SocketAccess) -> None:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            access.hand_over(directory, fd)
            if stat.S_IMODE(os.fstat(fd).st_mode) != access.directory_mode:
                os.fchmod(fd, access.directory_mode)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(_KEY, f"cannot change {directory}: {error.strerror}") from error


def write_beside(path: Path, data: bytes, access: SocketAccess = OURS) -> None:
    """Write the file `path` in the sockets' directory for those who may use them. ConfigError when that fails.

    By a new file and a rename: where a group may write, the name may be a link to anywhere.
    """
    make_directory(path.parent, access)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)  # of a process with our number that was killed
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            access.hand_over(new, file.fileno())
            os.fchmod(file.fileno(), access.socket_mode & 0o640)
        new.replace(path)
    except OSError as error:
        raise ConfigError(_KEY, f"cannot write {path}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


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
