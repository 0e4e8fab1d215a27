"""Who besides ourselves and root may reach the sockets: their owner, their group, and the modes that follow.

The file modes keep others out, and a peer's credentials are looked at again when it connects: a directory that was
opened by accident lets nobody in.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from vdev.errors import ConfigError

_SO_PEERGROUPS = getattr(socket, "SO_PEERGROUPS", 59)  # Linux 4.13: the peer's supplementary groups at connect()
_MAX_GROUPS_NBYTES = 1024  # what getsockopt of Python returns at most: 256 groups


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """The configuration's `sockets`, as numbers; None leaves the owner or the group as it is."""

    owner: int | None = None
    group: int | None = None
    directory_mode: int = 0o700

    @property
    def socket_mode(self) -> int:
        """Mode of a socket, and of a file beside it."""
        return 0o600 if self.group is None else 0o660

    def admits(self, sock: socket.socket, uid: int, gid: int) -> bool:
        """Whether the process behind `sock`, with these credentials, may talk to us."""
        if uid in (0, os.geteuid(), self.owner):
            return True
        return self.group is not None and (gid == self.group or self.group in peer_groups(sock))

    def describe(self) -> str:
        """Who may connect, in words."""
        words = [f"user {os.geteuid()}", "root"]
        if self.owner is not None:
            words.append(f"user {self.owner} (sockets.owner)")
        if self.group is not None:
            words.append(f"members of group {self.group} (sockets.group)")
        return ", ".join(words)

    def hand_over(self, path: Path, fd: int | None = None) -> None:
        """Give `path` its owner and group. Raises ConfigError naming the key that cannot be.

        `fd`, where there is one, is what is open at `path`: others may write in the directory, too.
        """
        status = os.lstat(path) if fd is None else os.fstat(fd)
        if self.group is not None and status.st_gid != self.group:
            self._chown("sockets.group", self.group, path, fd)
        if self.owner is not None and status.st_uid != self.owner:
            self._chown("sockets.owner", self.owner, path, fd)

    @staticmethod
    def _chown(key: str, number: int, path: Path, fd: int | None) -> None:
        us = _user(os.geteuid())
        if key == "sockets.owner":
            uid, gid, whom = number, -1, f"user {_user(number)}"
            cure = "run vdev as that user or as root, or leave owner out and use a group"
        else:
            uid, gid, whom = -1, number, f"group {_group(number)}"
            cure = f"make {us} a member (usermod -aG {_group(number)} {us}, then start anew), or run vdev as root"
        try:
            if fd is None:
                os.lchown(path, uid, gid)
            else:
                os.fchown(fd, uid, gid)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise ConfigError(key, f"cannot give {path} to {whom}: {error.strerror}") from None
            raise ConfigError(key, f"user {us} may not give {path} to {whom}", cure) from None


OURS = SocketAccess()  # nobody but ourselves and root


def resolve_access(owner: int | str | None, group: int | str | None, mode: str | None) -> SocketAccess:
    """The host's numbers for the configuration's names. Raises ConfigError for a name this host does not know."""
    gid = None if group is None else _id_of("sockets.group", group)
    default = 0o700 if gid is None else 0o750
    uid = None if owner is None else _id_of("sockets.owner", owner)
    return SocketAccess(uid, gid, default if mode is None else int(mode, 8))


def peer_groups(sock: socket.socket) -> frozenset[int]:
    """Supplementary groups of the peer when it connected; none when there are more than 256 or the kernel is silent."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_NBYTES)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


def _id_of(key: str, given: int | str) -> int:
    if isinstance(given, int):
        return given
    try:
        return pwd.getpwnam(given).pw_uid if key == "sockets.owner" else grp.getgrnam(given).gr_gid
    except KeyError:
        kind, base = ("user", "passwd") if key == "sockets.owner" else ("group", "group")
        cure = f"getent {base} lists them; a number is accepted, too"
        raise ConfigError(key, f"this host has no {kind} {given!r}", cure) from None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
