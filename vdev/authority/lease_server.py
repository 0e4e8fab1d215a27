"""lease.sock: backends ask for their VMs. Nothing they say is trusted; whom they speak for, the kernel says.

A backend is admitted by its user. It says which process its VM is by a pidfd, which cannot be forged and does not
become another process's. Users other than root and ours may do so for their own processes only. One backend at a time
has a set.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from vdev.authority.desk import Desk
from vdev.authority.ledger import LedgerError
from vdev.authority.messages import (
    VERSION,
    Allocate,
    Answer,
    Ended,
    Granted,
    Hello,
    NotGranted,
    Open,
    Opened,
    Refused,
    Release,
    Revoke,
    Revoked,
    Tell,
    Welcome,
    chunks,
    decode_request,
    encode,
    held_packets,
)
from vdev.authority.packets import PacketLink
from vdev.authority.processes import owner_of
from vdev.authority.watch import Watch
from vdev.errors import PeerError
from vdev.host.policy import STOP_PASID, AllocationRefused, GuestSet, PolicyError
from vdev.limited_log import LimitedLog
from vdev.transports.access import SocketAccess
from vdev.transports.identity import Peer, peer_of

MAX_BACKENDS = 2048
MAX_OF_ONE_PROCESS = 128
HELLO_S = 10.0  # for a backend to say who it is
ACCEPT_RETRY_S = 0.5  # when this process is out of fds or memory
ACCEPTS = 16  # before others have their turn
_SHORT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Backend:
    """One connection."""

    peer: Peer
    name: str = ""
    quota: int | None = None
    set_id: int | None = None
    had_set: bool = False  # whose process has ended: what is on its way about it is of no use any more
    # Taken by force, and not yet answered: what it says of these until then is about what it had.
    unanswered: Counter[int] = field(default_factory=Counter)
    link: PacketLink = field(init=False)
    silent: asyncio.TimerHandle | None = None

    def send(self, answer: Answer) -> None:
        """Queue a packet; nothing happens once the connection has ended."""
        self.link.send(encode(answer))


class LeaseServer:
    """Serves a listening SOCK_SEQPACKET socket (its owner's). `idle_changed` is called when it may have become idle."""

    def __init__(
        self, listener: socket.socket, desk: Desk, watch: Watch, access: SocketAccess, boot: str,
        idle_changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._listener = listener
        self._desk = desk
        self._watch = watch
        self._access = access
        self._boot = boot
        self._idle_changed = idle_changed
        self._backends: set[Backend] = set()
        self._limited_log = LimitedLog()

    @property
    def nbackends(self) -> int:
        """How many are connected."""
        return len(self._backends)

    def start(self) -> None:
        """Accept backends from now on."""
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more, and hang up on all: they keep what they have, and come again."""
        asyncio.get_running_loop().remove_reader(self._listener)
        for backend in list(self._backends):
            backend.set_id = None  # not its end: it is ours
            backend.link.end("the authority ends")
        self._limited_log.flush(log)

    def _note(self, level: int, kind: str, text: str) -> None:
        self._limited_log.log(log, level, ("lease", kind), text)

    # connections

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _SHORT_OF_RESOURCES:
                    raise
                self._note(logging.ERROR, "accepts failed", f"cannot accept: {error.strerror}")
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                loop.call_later(ACCEPT_RETRY_S, loop.add_reader, self._listener, self._accept)
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        peer = peer_of(sock)
        own = sum(other.peer.pid == peer.pid for other in self._backends)
        problem = ""
        if not self._access.admits(sock, peer.uid, peer.gid):
            problem = f"user {peer.uid} may not lease; may: {self._access.describe()}"
        elif own >= MAX_OF_ONE_PROCESS:
            problem = f"it has {own} connections, a process may have {MAX_OF_ONE_PROCESS}"
        elif len(self._backends) >= MAX_BACKENDS:
            problem = f"there are {len(self._backends)} backends, at most {MAX_BACKENDS} are served"
        if problem:
            self._note(logging.WARNING, "backends refused", f"refused a backend (pid {peer.pid}): {problem}")
            with contextlib.suppress(OSError):
                sock.setblocking(False)
                sock.send(encode(Refused(problem)))
            sock.close()
            return
        backend = Backend(peer)
        backend.link = PacketLink(
            sock,
            lambda data, fds: self._take(backend, data, fds),
            lambda why: self._gone(backend, why),
            is_patient=True,
        )
        backend.silent = asyncio.get_running_loop().call_later(HELLO_S, backend.link.end, "it does not say who it is")
        self._backends.add(backend)
        self._idle_changed()

    def _gone(self, backend: Backend, why: str) -> None:
        self._backends.discard(backend)
        if backend.silent is not None:
            backend.silent.cancel()
        if why != "it hung up":
            self._note(logging.WARNING, "backends dropped", f"{backend.name or '?'} (pid {backend.peer.pid}): {why}")
        if backend.set_id is not None:
            with contextlib.suppress(LedgerError):  # held without a backend: the next one may claim it all the same
                self._desk.quarantine(backend.set_id)
        self._idle_changed()

    def _take(self, backend: Backend, data: bytes, fds: list[int]) -> None:
        """One packet. What is no request, or comes out of turn, ends the connection."""
        try:
            request = decode_request(data)
            if bool(fds) != isinstance(request, Open) or len(fds) > 1:
                raise PeerError(f"{len(fds)} fds came with {type(request).__name__.lower()}")
            _TAKE[type(request)](self, backend, request, *fds)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            backend.link.end(f"not a request: {error}")
        except PeerError as error:
            backend.link.end(str(error))
        finally:
            for fd in fds:
                os.close(fd)

    # requests

    def _hello(self, backend: Backend, request: Hello) -> None:
        if backend.silent is None:
            raise PeerError("said hello twice")
        backend.silent.cancel()
        backend.silent = None
        backend.name, backend.quota = request.name, request.quota
        problem = self._problem_with(request)
        if problem:
            backend.send(Refused(problem))
            backend.link.end(problem)
        else:
            backend.send(self.terms(backend))

    def _problem_with(self, request: Hello) -> str:
        if request.version != VERSION:
            return f"the authority speaks version {VERSION} of its protocol, this backend {request.version}"
        most = self._desk.config.max_quota
        if request.quota is not None and request.name not in self._desk.config.vms and request.quota > most:
            return f"vm.pasids.quota: {request.quota} is above max_quota of this host, {most}"
        return ""

    def terms(self, backend: Backend) -> Welcome:
        """What holds for this backend's VM now."""
        settings = self._desk.policy.settings
        quota = self._desk.config.quota_of(backend.name, backend.quota)
        if backend.set_id is not None:
            quota = self._desk.policy.sets[backend.set_id].quota
        first, stop = self._desk.bounds if settings.space == "system" else (1, STOP_PASID)
        return Welcome(settings.space, quota, first, stop)

    def _open(self, backend: Backend, _: Open, pidfd: int) -> None:
        if backend.silent is not None or backend.set_id is not None:
            raise PeerError("opened a set out of turn")
        try:
            owner, user = owner_of(pidfd, self._boot)
        except PeerError as error:
            backend.send(Refused(f"VM {backend.name}: {error}"))
            return
        if backend.peer.uid not in (0, os.geteuid(), user):
            text = f"VM {backend.name}: user {backend.peer.uid} may not lease for pid {owner.pid} of user {user}"
            self._note(logging.WARNING, "leases refused", text)
            backend.send(Refused(text))
            return
        known = self._desk.policy.find(owner)
        other = self._backend_of(known.id) if known is not None else None
        if other is not None:
            text = f"VM {backend.name}: backend pid {other.peer.pid} has the set of pid {owner.pid}"
            backend.send(Refused(text))
            return
        try:
            opened, is_claimed = self._desk.open(backend.name, owner, backend.quota)
        except (PolicyError, LedgerError) as error:
            backend.send(Refused(str(error)))
            return
        backend.set_id, backend.had_set = opened.id, False
        self._watch.add(opened.id, pidfd)
        self._show(backend, opened, is_claimed=is_claimed)

    def _show(self, backend: Backend, opened: GuestSet, *, is_claimed: bool) -> None:
        backend.send(self.terms(backend))
        backend.send(Opened(opened.id, is_claimed))
        for packet in held_packets(list(opened.pasids)):
            backend.send(packet)
        waiting = [guest for guest, pasid in opened.pasids.items() if pasid.state == "quarantined"]
        for piece in chunks(waiting):
            backend.send(Revoke(piece, is_forced=False, reason="reclaimed by an administrator"))

    def _allocate(self, backend: Backend, request: Allocate) -> None:
        set_id = _set_of(backend)
        if set_id is None:
            backend.send(NotGranted(request.id, "unreachable"))
            return
        try:
            pasid = self._desk.allocate(set_id, request.first, request.stop)
        except AllocationRefused as refused:
            backend.send(NotGranted(request.id, refused.why))
        except LedgerError as error:
            self._note(logging.ERROR, "ledger", str(error))
            backend.send(NotGranted(request.id, "unreachable"))
        else:
            backend.send(Granted(request.id, pasid))

    def _tell(self, backend: Backend, request: Tell) -> None:
        set_id, told = _set_of(backend), self._own(backend, request.pasids)
        if set_id is not None:
            self._or_drop(backend, partial(self._desk.tell, set_id, told, request.state))

    def _release(self, backend: Backend, request: Release) -> None:
        set_id, ended = _set_of(backend), self._own(backend, request.pasids)
        if set_id is not None:
            self._or_drop(backend, partial(self._desk.release, set_id, ended))

    def _revoked(self, backend: Backend, request: Revoked) -> None:
        set_id = _set_of(backend)
        if set_id is None:
            return
        pasids = self._desk.policy.sets[set_id].pasids
        drained = []
        for guest in request.pasids:
            if backend.unanswered[guest] > 0:
                backend.unanswered[guest] -= 1
            elif guest in pasids and pasids[guest].state == "quarantined":
                drained.append(guest)
        backend.unanswered += Counter()  # those at 0 go
        self._or_drop(backend, partial(self._desk.release, set_id, drained))

    def _own(self, backend: Backend, pasids: Sequence[int]) -> list[int]:
        return [guest for guest in pasids if not backend.unanswered.get(guest)]

    def _or_drop(self, backend: Backend, write: Callable[[], None]) -> None:
        """A backend whose word cannot be written down is dropped: when it comes again, it says all of it anew."""
        try:
            write()
        except LedgerError as error:
            self._note(logging.ERROR, "ledger", str(error))
            backend.link.end(str(error))

    # what backends are told unasked

    def _backend_of(self, set_id: int) -> Backend | None:
        return next((backend for backend in self._backends if backend.set_id == set_id), None)

    def terms_changed(self, known: GuestSet) -> None:
        """A set has another quota."""
        backend = self._backend_of(known.id)
        if backend is not None:
            backend.send(self.terms(backend))

    def revoke(self, known: GuestSet, taken: Sequence[int], *, is_forced: bool, reason: str) -> None:
        """An administrator takes PASIDs of a set back, or has taken them."""
        backend = self._backend_of(known.id)
        if backend is None:
            return
        if is_forced:
            backend.unanswered.update(taken)
        for piece in chunks(taken):
            backend.send(Revoke(piece, is_forced=is_forced, reason=reason))

    def died(self, set_id: int) -> None:
        """The process of a set has ended. LedgerError: nothing has changed, and it is told again."""
        backend = self._backend_of(set_id)
        self._desk.end(set_id, "its process has ended")
        if backend is not None:
            backend.set_id, backend.had_set = None, True
            backend.unanswered.clear()
            backend.send(Ended("its process has ended"))
            backend.send(self.terms(backend))
        self._idle_changed()

    def describe(self) -> list[dict[str, Any]]:
        """Every connection, for queries."""
        return [
            {"vm": backend.name, "backend-pid": backend.peer.pid, "uid": backend.peer.uid, "set": backend.set_id}
            for backend in self._backends
        ]


def _set_of(backend: Backend) -> int | None:
    """None: it was told, or will be, that the set has ended. PeerError: it never had one."""
    if backend.set_id is None and not backend.had_set:
        raise PeerError("asked without a set")
    return backend.set_id


_TAKE: dict[type, Callable[..., None]] = {
    Hello: LeaseServer._hello,
    Open: LeaseServer._open,
    Allocate: LeaseServer._allocate,
    Tell: LeaseServer._tell,
    Release: LeaseServer._release,
    Revoked: LeaseServer._revoked,
}
