"""Which process a pidfd is of, and whether it has ended: as the kernel says, never as a peer does."""

from __future__ import annotations

import fcntl
import os
import re
import select
from pathlib import Path

from vdev.errors import PeerError
from vdev.host.changes import Owner
from vdev.transports.identity import start_time_of

PIDFD_THREAD = os.O_EXCL  # Linux 6.9, as its headers define it
_KINDS = ("anon_inode:[pidfd]", "pidfd:[")  # before Linux 6.9, and since
_PID = re.compile(r"^Pid:\s*(-?\d+)$", re.MULTILINE)


def boot_id() -> str:
    """Of this boot of the host: processes of another one are dead."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def owner_of(pidfd: int, boot: str) -> tuple[Owner, int]:
    """The process of `pidfd`, and its user. PeerError: it is no pidfd, or its process has ended or cannot be seen.

    What is read by the number is true of the process, since it has not ended after that.
    """
    pid = _pid_of(pidfd)
    if pid == -1 or has_ended(pidfd):
        raise PeerError("the VM's process has ended")
    if pid == 0:
        raise PeerError("the VM's process is not visible from here: it is in another pid namespace")
    started = start_time_of(pid)
    try:
        user = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        user = -1
    if has_ended(pidfd):
        raise PeerError("the VM's process has ended")
    if started is None or user == -1:
        raise PeerError(f"pid {pid} cannot be looked at in /proc")
    return Owner(pid, started, boot), user


def _pid_of(pidfd: int) -> int:
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii", errors="replace") as info:
            found = _PID.search(info.read())
        kind = os.readlink(f"/proc/self/fd/{pidfd}")
    except OSError as error:
        raise PeerError(f"the fd cannot be looked at: {error.strerror}") from None
    if found is None or not kind.startswith(_KINDS):
        raise PeerError("the fd is no pidfd")
    if fcntl.fcntl(pidfd, fcntl.F_GETFL) & PIDFD_THREAD:
        raise PeerError("the pidfd is of a thread, which may end before its process")
    return int(found[1])


def pin(owner: Owner, boot: str) -> int | None:
    """A pidfd of `owner`, None when it is proven dead: another boot, no such process, or a later one of its number.

    Where /proc does not say when the process started, it may be the one: nothing is proven.
    """
    if owner.boot_id != boot:
        return None
    try:
        pidfd = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return None
    started = start_time_of(owner.pid)
    if has_ended(pidfd) or (started is not None and started != owner.start_time):
        os.close(pidfd)
        return None
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Whether its process is dead (a zombie is)."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
