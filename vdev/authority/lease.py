"""A backend's side of the authority: the VM's `Allocator`, which outlives any number of authorities.

While the authority is away what the guest has stays as it is; an allocation waits for it, but not for a second. With a
new authority comes what it holds for this VM, and both sides agree on that before anything else is asked: a grant
whose answer was lost goes back then, and a release that was lost is told anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from vdev.authority.admin_client import ask
from vdev.authority.messages import (
    VERSION,
    Answer,
    Ended,
    Granted,
    Held,
    Hello,
    NotGranted,
    Open,
    Opened,
    Refused,
    Release,
    Request,
    Revoke,
    Revoked,
    Tell,
    Welcome,
    chunks,
    decode_answer,
    encode,
)
from vdev.authority.packets import PacketLink
from vdev.authority.processes import has_ended
from vdev.authority.questions import Questions
from vdev.authority.start import connect
from vdev.errors import VdevError
from vdev.iommu.pasid_set import Refusal, Terms
from vdev.limited_log import LimitedLog
from vdev.transports.identity import VmIdentity

AGAIN_S = 0.2  # before the next try where the last one failed
HELLO_S = 20.0

log = logging.getLogger(__name__)

State = Literal["unbound", "held", "lost"]
Use = Literal["allocated", "attached", "free-pending"]
_REFUSALS = {
    "quota": Refusal.QUOTA, "supply": Refusal.SUPPLY, "range": Refusal.RANGE, "fenced": Refusal.SUPPLY,
    "unreachable": Refusal.UNREACHABLE,
}  # fmt: skip


class LeaseError(VdevError):
    """There is no lease to be had; the text says why."""


class _Gone(LeaseError):
    """It hung up before it said anything: the next one may say more."""


class Holder(Protocol):
    """The VM's set, as far as the authority changes it: `vdev.iommu.pasid_set.PasidSet`."""

    def reconcile(self, held: Iterable[int]) -> None:
        """The authority holds exactly these for the VM; what is more is given back, what is less is gone."""

    def revoke(self, pasids: Iterable[int]) -> None:
        """These are gone: no pair has them, no access with them lands."""


def _nothing(*_: object) -> None:
    """Nobody listens."""


async def join(
    directory: Path, name: str, config: Path | None = None, *, quota: int | None = None, start: bool = True
) -> Lease:
    """A lease of VM `name`, without a VM yet: its terms are known. An authority is started (with `config`) if need be.

    VdevError: it cannot be started or reached, or refuses us (a `quota` that this host does not allow, for one).
    """
    lease = Lease(directory, name, config, quota=quota, start=start)
    try:
        async with asyncio.timeout(HELLO_S):
            await lease.begin()
    except TimeoutError:
        await lease.close()
        raise LeaseError(f"the PASID authority in {directory} does not answer") from None
    except BaseException:
        await lease.close()
        raise
    return lease


class Lease:
    """An `Allocator`. `holder` is the VM's set; `changed` hears every state, `reclaimed` what was taken and why."""

    def __init__(
        self, directory: Path, name: str, config: Path | None = None, *, quota: int | None = None, start: bool = True
    ) -> None:
        self.directory = directory
        self.name = name
        self.terms = Terms("per-vm", 0, 1, 1)  # until the authority has said others
        self.terms_changed: Callable[[], None] = _nothing
        self.changed: Callable[[State], None] = _nothing
        self.reclaimed: Callable[[Sequence[int], str], None] = _nothing
        self.holder: Holder | None = None
        self.state: State = "unbound"
        self.problem = ""  # why there is no set, where there could be one
        self.set_id: int | None = None
        self._config = config
        self._quota = quota
        self._start = start
        self._link: PacketLink | None = None
        self._link_ended = asyncio.Event()
        self._greeted: asyncio.Future[None] | None = None
        self._pidfd: int | None = None  # the VM's
        self._process: tuple[int | None, int | None] | None = None
        self._uses: dict[int, Use] = {}  # of everything granted and not released
        self._untold: dict[int, Use] = {}
        self._arriving: set[int] = set()  # of `Held`, until all of it is there
        self._questions = Questions()
        self._running: asyncio.Task[None] | None = None
        self._limited_log = LimitedLog()

    # its life

    async def begin(self) -> None:
        """Connect for the first time; VdevError when that is refused. From then on the lease looks after itself."""
        while self._link is None:
            try:
                await self._connect()
            except _Gone:
                await asyncio.sleep(AGAIN_S)
        self._running = asyncio.get_running_loop().create_task(self._run(), name=f"PASID lease of {self.name}")

    def bind(self, identity: VmIdentity) -> None:
        """QEMU is there. Again for a new one; the set of the old ends with its process. Where the configuration leaves
        the VM's process unchecked, the set lives as long as this backend."""
        process = (identity.pid, identity.start_time)
        if self._pidfd is not None and process == self._process:
            return
        had_one = self.set_id is not None or self._pidfd is not None
        self._forget_vm()
        self._process = process
        self._pidfd = os.pidfd_open(os.getpid()) if identity.pidfd is None else os.dup(identity.pidfd)
        if self._link is not None and had_one:
            self._link.end("another QEMU")  # that connection is the old one's
        self._open()

    async def close(self) -> None:
        """Let go. The set stays, quarantined, until its QEMU ends or another backend of it comes."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        self._forget_vm()
        if self._link is not None:
            self._link.end("closed")
        self._questions.give_up()
        self._limited_log.flush(log)

    async def admin(self, command: str, arguments: Mapping[str, Any], on_behalf: str = "") -> Any:
        """What the authority returns to an administrator's `command` about this VM's set. VdevError if it refuses.

        `on_behalf` says in the audit who asked us.
        """
        if self.set_id is None:
            raise LeaseError(f"VM {self.name} has no PASID set now: its lease is {self.state}")
        return await ask(self.directory, command, {"vm": str(self.set_id), **arguments}, on_behalf)

    def describe(self) -> dict[str, Any]:
        """Plain data for queries."""
        return {
            "state": self.state,
            "directory": str(self.directory),
            "set": self.set_id,
            "problem": self.problem,
            "asked": len(self._questions),
        }

    # the allocator

    def allocate(self, first: int, stop: int, answer: Callable[[int | Refusal], None]) -> None:
        """Ask for one PASID of [first, stop); `answer` is called once, from the event loop, within a second."""
        request = self._questions.ask(first, stop, answer)
        if self.state == "held":
            self._send(request)

    def free_pending(self, pasids: Sequence[int]) -> None:
        """These were freed and are in use; the authority hears it before their end."""
        known = [pasid for pasid in pasids if pasid in self._uses]
        for pasid in known:
            self._untold.pop(pasid, None)
            self._uses[pasid] = "free-pending"
        self._tell("free-pending", known)

    def release(self, pasids: Sequence[int]) -> None:
        """These have ended. Where the authority is away, it hears of it when it is back."""
        for pasid in pasids:
            self._uses.pop(pasid, None)
            self._untold.pop(pasid, None)
        if self.state == "held":
            for piece in chunks(pasids):
                self._send(Release(piece))

    def attached(self, pasid: int, is_attached: bool) -> None:
        """It has its first pair, or lost its last one. What changes again before it could be told is told once."""
        use = self._uses.get(pasid)
        if use is None or use == "free-pending":
            return
        self._uses[pasid] = "attached" if is_attached else "allocated"
        if not self._untold:
            asyncio.get_running_loop().call_soon(self._tell_uses)
        self._untold[pasid] = self._uses[pasid]

    # to the authority

    def _send(self, request: Request, fd: int | None = None) -> None:
        if self._link is not None:
            self._link.send(encode(request), fd)

    def _tell(self, use: Use, pasids: Sequence[int]) -> None:
        if self.state == "held":
            for piece in chunks(pasids):
                self._send(Tell(use, piece))

    def _tell_uses(self) -> None:
        if self.state != "held" or self._link is None:
            self._untold.clear()  # all are told when there is an authority again
        elif self._link.is_congested:
            asyncio.get_running_loop().call_later(0.01, self._tell_uses)
        else:
            told, self._untold = self._untold, {}
            for use in ("allocated", "attached"):
                self._tell(use, [pasid for pasid, now in told.items() if now == use])

    def _open(self) -> None:
        if self._link is not None and self._link.is_open and self._pidfd is not None:
            self._send(Open(), self._pidfd)

    async def _run(self) -> None:
        while True:
            if self._link is not None and self._link.is_open:
                self._link_ended.clear()
                await self._link_ended.wait()
            try:
                await self._connect()
            except (VdevError, OSError) as error:
                self._note(str(error))
                await asyncio.sleep(AGAIN_S)

    async def _connect(self) -> None:
        """A link whose other end knows us. VdevError: there is none."""
        sock = await connect(self.directory, self._config, start=self._start)
        self._greeted = asyncio.get_running_loop().create_future()
        self._link = PacketLink(sock, self._take, self._ended_link)
        self._send(Hello(VERSION, self.name, self._quota))
        await self._greeted
        self._open()

    def _note(self, problem: str) -> None:
        self.problem = problem
        self._limited_log.log(log, logging.WARNING, (self.name, "PASID authority"), f"{self.name}: {problem}")

    # from the authority

    def _take(self, data: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        try:
            answer: Answer = decode_answer(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if self._link is not None:
                self._link.end(f"it says what no authority says: {error}")
            return
        _TAKE[type(answer)](self, answer)

    def _ended_link(self, why: str) -> None:
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(_Gone(f"the PASID authority in {self.directory} is gone: {why}"))
        self._link = None
        self._arriving.clear()
        if self.state == "held":
            self._note(f"the PASID authority is gone: {why}")
        self._set_state("unbound" if self._pidfd is None else "lost")
        self._link_ended.set()

    def _welcome(self, answer: Welcome) -> None:
        terms = Terms(answer.space, answer.quota, answer.first, answer.stop)
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)
        if terms != self.terms:
            self.terms = terms
            self.terms_changed()

    def _refused(self, answer: Refused) -> None:
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(LeaseError(answer.problem))
        elif self._pidfd is not None and has_ended(self._pidfd):
            self._lose_set(answer.problem)
        else:
            self._note(answer.problem)  # the VM lives, so what it has stays as it is
            asyncio.get_running_loop().call_later(AGAIN_S, self._open)

    def _opened(self, answer: Opened) -> None:
        self.set_id = answer.set_id
        self._arriving.clear()

    def _held(self, answer: Held) -> None:
        self._arriving.update(answer.pasids)
        if answer.more:
            return
        held, self._arriving = self._arriving, set()
        self.problem = ""
        self._set_state("held")  # from here on what the set gives back is sent
        known = self._uses
        self._uses = {pasid: known.get(pasid, "allocated") for pasid in held}
        if self.holder is not None:
            self.holder.reconcile(sorted(held))
        elif lost := sorted(held - known.keys()):
            self.release(lost)
        self._tell("attached", [pasid for pasid, use in self._uses.items() if use == "attached"])
        self._tell("free-pending", [pasid for pasid, use in self._uses.items() if use == "free-pending"])
        for request in self._questions:
            self._send(request)

    def _granted(self, answer: Granted) -> None:
        self._uses[answer.pasid] = "allocated"
        if not self._questions.answer(answer.id, answer.pasid):
            self.release([answer.pasid])  # who asked has been told that there is none

    def _not_granted(self, answer: NotGranted) -> None:
        self._questions.answer(answer.id, _REFUSALS[answer.why])

    def _revoke(self, answer: Revoke) -> None:
        gone = [pasid for pasid in answer.pasids if self._uses.pop(pasid, None) is not None]
        for pasid in gone:
            self._untold.pop(pasid, None)
        if self.holder is not None:
            self.holder.revoke(gone)
        for piece in chunks(answer.pasids):
            self._send(Revoked(piece))
        if gone:
            self.reclaimed(gone, answer.reason)

    def _ended(self, answer: Ended) -> None:
        self._lose_set(answer.why)

    def _lose_set(self, why: str) -> None:
        """The VM's process is dead: nothing is held any more."""
        self._note(f"the VM's PASID set is no more: {why}")
        self._forget_vm()
        if self.holder is not None:
            self.holder.reconcile(())

    def _set_state(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self.changed(state)

    def _forget_vm(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._pidfd = self._process = self.set_id = None
        self._uses.clear()
        self._untold.clear()
        self._set_state("unbound")


_TAKE: dict[type, Callable[[Lease, Any], None]] = {
    Welcome: Lease._welcome,
    Refused: Lease._refused,
    Opened: Lease._opened,
    Held: Lease._held,
    Granted: Lease._granted,
    NotGranted: Lease._not_granted,
    Revoke: Lease._revoke,
    Ended: Lease._ended,
}
