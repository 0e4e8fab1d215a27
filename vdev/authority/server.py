"""The authority's process: one for each directory, from the lock to the last lease."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vdev.authority.admin import DESCRIBED, admin_commands
from vdev.authority.desk import Desk
from vdev.authority.follow import Following
from vdev.authority.lease_server import LeaseServer
from vdev.authority.ledger import Ledger, LedgerError
from vdev.authority.messages import ADMIN_SOCKET, LEASE_SOCKET
from vdev.authority.processes import boot_id, pin
from vdev.authority.settings import HostConfig, host_config_from, plain
from vdev.authority.start import IDLE_S, LOCK
from vdev.authority.watch import Watch
from vdev.control.server import ControlServer
from vdev.errors import ConfigError
from vdev.transports.access import resolve_access
from vdev.transports.listener import Listener
from vdev.transports.sd_notify import READY, STOPPING, notify

LEDGER = "ledger.sqlite3"
BACKLOG = 128
LOCK_S = 5.0  # for the one before us to end
_LOCK_LOOK_S = 0.05
_GONE_LOOK_S = 1.0
_CONFIG, _BOOT = "config", "boot"

log = logging.getLogger(__name__)


class LockedError(ConfigError):
    """Another process is the authority of the directory."""


class Authority:
    """Owns everything of the process but the lock."""

    def __init__(
        self,
        directory: Path,
        given: HostConfig | None,
        *,
        on_demand: bool = False,
        idle_s: float = IDLE_S,
        step: Callable[[str], None] | None = None,
    ) -> None:
        """Open the ledger, reclaim what the dead had, listen. ConfigError, LedgerError. Nothing is served yet.

        `step` sees the points of every commit, for tests that die there.
        """
        self.stopping = asyncio.Event()
        self._directory = directory
        self._idle_s = idle_s if on_demand else None
        self._ending: asyncio.TimerHandle | None = None
        self._boot = boot_id()
        self.watch = Watch()
        with contextlib.ExitStack() as undo:
            undo.callback(self.watch.close)
            self.ledger = Ledger(directory / LEDGER, **({"step": step} if step else {}))
            undo.callback(self.ledger.close)
            self.desk = self._recover(given, on_demand=on_demand)
            sockets = self.desk.config.sockets
            access = resolve_access(sockets.owner, sockets.group, sockets.mode)
            self._lease_listener = Listener(directory / LEASE_SOCKET, access, socket.SOCK_SEQPACKET, BACKLOG)
            undo.callback(self._lease_listener.close)
            self._admin_listener = Listener(directory / ADMIN_SOCKET, access)  # it admits our own user and root alone
            undo.callback(self._admin_listener.close)
            self.leases = LeaseServer(
                self._lease_listener.socket, self.desk, self.watch, access, self._boot, self._look_idle
            )
            following = Following(self.desk.policy.sets, _now_us)
            self.desk.told = following.tell
            commands = admin_commands(self.desk, self.leases, following)
            self.admin = ControlServer(self._admin_listener.socket, commands, described=DESCRIBED)
            self._undo = undo.pop_all()

    def _recover(self, given: HostConfig | None, *, on_demand: bool) -> Desk:
        """What the living have stays as it is; what the dead had is free.

        The rules stay those the ledger was written by while a VM lives and nobody in person says otherwise: who happens
        to start an authority again must not change them.
        """
        stored = self.ledger.about(_CONFIG)
        before = None if stored is None else host_config_from(msgspec.json.decode(stored))
        desk = Desk(before or given or HostConfig(), self.ledger, _now_us)
        for known in list(desk.policy.sets.values()):
            pidfd = pin(known.owner, self._boot)
            if pidfd is None:
                log.info("VM %s (pid %d) has ended: what it had is free", known.name, known.owner.pid)
                desk.end(known.id, "its process was gone when the authority came back")
                continue
            self.watch.add(known.id, pidfd)
            os.close(pidfd)
            desk.quarantine(known.id)
        wanted = given or HostConfig()
        if before is not None and not desk.policy.sets and on_demand and given is None and self._is_of_this_boot():
            wanted = before  # somebody's lease has lost its authority, and knows no rules
        if before is not None and desk.policy.sets:
            if on_demand:
                if given is not None and given != before:
                    log.warning("VMs live by other rules than those given now: theirs hold until all have ended")
                self.ledger.keep(before.journal, before.audit)
                return desk
            if wanted.space != before.space:
                problem = f"{wanted.space}, and VMs live in a space that is {before.space}"
                raise ConfigError("space", problem, "end them first")
        return self._begin_with(wanted)

    def _is_of_this_boot(self) -> bool:
        return self.ledger.about(_BOOT) == self._boot

    def _begin_with(self, config: HostConfig) -> Desk:
        self.ledger.forget("ceiling")
        desk = Desk(config, self.ledger, _now_us)
        self.ledger.note(_BOOT, self._boot)
        self.ledger.note(_CONFIG, msgspec.json.encode(plain(config)).decode())
        self.ledger.keep(config.journal, config.audit)
        return desk

    async def run(self, announce: Callable[[str], None]) -> None:
        """Serve until `stopping` is set; `announce` gets a line of JSON once both sockets are served."""
        self.watch.died = self.leases.died
        self.watch.start()
        self.leases.start()
        await self.admin.start()
        self._look_idle()
        announce(
            msgspec.json.encode(
                {"ready": True, "lease": str(self._lease_listener.path), "admin": str(self._admin_listener.path)}
            ).decode()
        )
        notify(os.environ.get("NOTIFY_SOCKET"), READY, "STATUS=serving PASIDs")
        await self.stopping.wait()
        notify(os.environ.get("NOTIFY_SOCKET"), STOPPING)
        self.admin.close()
        self.leases.close()

    def _look_idle(self) -> None:
        if self._idle_s is None:
            return
        if self.leases.nbackends and self._ending is not None:
            self._ending.cancel()
            self._ending = None
        elif not self.leases.nbackends and self._ending is None:
            self._wait_idle(self._idle_s, self._idle_s)

    def _wait_idle(self, idle_s: float, left_s: float) -> None:
        """No backend is there. Without a VM that may get another one we end in `left_s`; without a directory, which may
        be a VM's own and go with it, at once: nobody could find us."""
        left_s = idle_s if self.desk.policy.sets else left_s
        if left_s <= 0 or not self._directory.exists():
            self._end_idle()
            return
        step_s = min(left_s, _GONE_LOOK_S)
        self._ending = asyncio.get_running_loop().call_later(step_s, self._wait_idle, idle_s, left_s - step_s)

    def _end_idle(self) -> None:
        log.info("no VM and no lease is left")
        with contextlib.suppress(LedgerError):
            self.ledger.forget(_BOOT)  # nobody goes by these rules any more: whoever comes next brings others
        self.stopping.set()

    def close(self) -> None:
        """Release sockets, pidfds and the ledger, whose content stays."""
        self._undo.close()


def _now_us() -> int:
    return time.time_ns() // 1000


@contextlib.contextmanager
def locked(directory: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """The right to be the authority of `directory`, for as long as this process lives. LockedError: another has it."""
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
                    problem = f"another authority serves {directory} (pid {pid})"
                    raise LockedError("--runtime-dir", problem, "use that one, or end it") from None
                time.sleep(_LOCK_LOOK_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


async def serve(
    directory: Path,
    config: HostConfig | None,
    announce: Callable[[str], None],
    *,
    on_demand: bool = False,
    idle_s: float = IDLE_S,
) -> None:
    """Be the authority of `directory`, whose lock is held, until SIGTERM, SIGINT, or idleness. ConfigError."""
    _raise_fd_limit()
    try:
        authority = Authority(directory, config, on_demand=on_demand, idle_s=idle_s)
    except LedgerError as error:
        raise ConfigError(str(directory / LEDGER), str(error), "make room, or end what locks it") from None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, authority.stopping.set)
    try:
        await authority.run(announce)
    finally:
        authority.close()


def _raise_fd_limit() -> None:
    """A VM costs two fds, a connection and a pidfd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
