"""The socket clients connect to: ours alone, never in the place of a live one."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from vdev.errors import ConfigError

BACKLOG = 64


def listen(path: str, what: str) -> socket.socket:
    """A non-blocking listener at `path`, mode 0600; a socket nobody listens on is removed before.

    ConfigError names `what` when there can be none.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)  # bind() gives the path this mode, whatever the umask
        _remove_stale(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        problem = "something is there already" if in_use else error.strerror or str(error)
        raise ConfigError(
            what, f"no socket {path}: {problem}", "end what uses it, or name another path" if in_use else ""
        ) from None
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on; whatever else is there, bind() will find."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            pass


def peer_uid(sock: socket.socket) -> int:
    """The user of the process that connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", raw)
    return int(uid)


def is_admitted(sock: socket.socket) -> bool:
    """Whether a client is our own user's or root's."""
    return peer_uid(sock) in (0, os.geteuid())
