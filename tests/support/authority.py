"""PASID authorities in processes of their own, VMs that are processes and nothing else, and leases of them."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from vdev.authority.lease import Lease, join
from vdev.authority.server import LEDGER
from vdev.authority.start import LOCK
from vdev.iommu.pasid_set import Refusal
from vdev.transports.identity import VmIdentity, start_time_of

ALL = (1, 1 << 20)
WAIT_S = 20.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where an authority may be; ended afterwards."""
    path = tmp_path / "authority"
    path.mkdir(mode=0o700)
    yield path
    kill_authority(path)


class Vm:
    """A process that stands for a QEMU: what the authority knows of one is that it lives."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # ends with us at the latest
        self.identity = VmIdentity()
        self.identity.pid = self.process.pid
        self.identity.pidfd = os.pidfd_open(self.process.pid)
        self.identity.start_time = start_time_of(self.process.pid)

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def kill(self) -> None:
        """As a QEMU that crashes."""
        self.process.kill()
        self.process.wait(WAIT_S)

    def close(self) -> None:
        self.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.identity.close()


class Served:
    """What a lease's holder sees: plain numbers, no IOMMU."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.revoked: list[int] = []
        self.lease: Lease

    def reconcile(self, held: Iterable[int]) -> None:
        theirs = set(held)
        extra = sorted(theirs - self.held)
        if extra:
            self.lease.release(extra)
        self.revoke(self.held - theirs)

    def revoke(self, pasids: Iterable[int]) -> None:
        gone = set(pasids) & self.held
        self.held -= gone
        self.revoked += sorted(gone)


async def held_lease(directory: Path, vm: Vm, name: str = "vm", **options: Any) -> tuple[Lease, Served]:
    """A lease whose set is there."""
    lease = await join(directory, name, **options)
    served = Served()
    served.lease = lease
    lease.holder = served
    lease.bind(vm.identity)
    await until(lambda: lease.state == "held")
    return lease, served


async def allocate(lease: Lease, first: int = ALL[0], stop: int = ALL[1]) -> int | Refusal:
    """What the authority answers; the holder has it from then on."""
    answered: asyncio.Future[int | Refusal] = asyncio.get_running_loop().create_future()

    def take(found: int | Refusal) -> None:
        if isinstance(found, int) and isinstance(lease.holder, Served):
            lease.holder.held.add(found)
        answered.set_result(found)

    lease.allocate(first, stop, take)
    return await asyncio.wait_for(answered, WAIT_S)


async def granted(lease: Lease, first: int = ALL[0], stop: int = ALL[1]) -> int:
    """As `allocate`, where a refusal is a failure; that the machine is too busy to answer in time is none."""
    async with asyncio.timeout(WAIT_S):
        found = await allocate(lease, first, stop)
        while found is Refusal.UNREACHABLE:
            found = await allocate(lease, first, stop)
    assert isinstance(found, int), found
    return found


def give_back(lease: Lease, pasids: Iterable[int]) -> None:
    """The holder's own release."""
    ended = sorted(pasids)
    if isinstance(lease.holder, Served):
        lease.holder.held -= set(ended)
    lease.release(ended)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what must come to be."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 # of another process, as a rule
            await asyncio.sleep(0.01)


async def restarted(directory: Path, *leases: Lease) -> None:
    """Kill the authority, and wait until each lease has lost it and is held by another."""
    told: dict[str, list[str]] = {lease.name: [] for lease in leases}
    for lease in leases:
        lease.changed = told[lease.name].append
    kill_authority(directory)
    await until(lambda: all(states[:1] == ["lost"] and states[-1] == "held" for states in told.values()))


def authority_pid(directory: Path) -> int:
    """Of the one that serves `directory`, or did last."""
    return int((directory / LOCK).read_text())


def kill_authority(directory: Path, number: int = signal.SIGKILL) -> bool:
    """As a crash; returns once it is gone. Whether there was one."""
    try:
        pidfd = os.pidfd_open(authority_pid(directory))
    except (FileNotFoundError, ValueError, ProcessLookupError):  # ValueError: its number is not written yet
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
        wait_for_end(pidfd)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def stop_authority(directory: Path) -> None:
    """It is there, and silent; SIGCONT lets it go on."""
    pid = authority_pid(directory)
    os.kill(pid, signal.SIGSTOP)
    for _ in range(int(WAIT_S * 1000)):
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "T":
                return
        time.sleep(0.001)
    raise TimeoutError("it does not stop")


def wait_for_end(pidfd: int) -> None:
    """Until the process has ended; TimeoutError if it does not."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(WAIT_S * 1000):
        raise TimeoutError("it does not end")


def rows(directory: Path, query: str) -> list[tuple[Any, ...]]:
    """What the ledger says, read as anybody may who has the right to."""
    database = sqlite3.connect(f"file:{directory / LEDGER}?mode=ro", uri=True, timeout=WAIT_S)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def peak(directory: Path) -> int:
    """How many PASIDs were granted at the same time, at most."""
    most = used = 0
    for (kind,) in rows(directory, "SELECT kind FROM journal ORDER BY seq"):
        used += {"grant": 1, "release": -1}.get(kind, 0)
        most = max(most, used)
    return most


class LedgerProblem(AssertionError):
    """The history contradicts itself, or the state."""


def check_ledger(directory: Path, space: str) -> int:
    """Play the whole journal: never one PASID with two owners, and what is left is what the state says.

    How many grants there were. LedgerProblem otherwise. The journal must not have been pruned.
    """
    owners: dict[int, tuple[int, int]] = {}  # host PASID -> set, guest PASID
    sets: set[int] = set()
    ngrants = 0
    for _, _, kind, set_id, guest, host, _ in rows(directory, "SELECT * FROM journal ORDER BY seq"):
        if kind == "open":
            sets.add(set_id)
        elif kind == "end":
            left = [host for host, (owner, _) in owners.items() if owner == set_id]
            _require(not left, f"set {set_id} ended and still has {left[:8]}")
            sets.discard(set_id)
        elif kind == "grant":
            ngrants += 1
            _require(set_id in sets, f"{host} was granted to set {set_id}, which there is not")
            _require(host not in owners, f"{host} was granted to set {set_id} while {owners.get(host)} had it")
            _require(space == "per-vm" or guest == host, f"{guest} is {host} in a system space")
            _require((set_id, guest) not in owners.values(), f"set {set_id} has {guest} twice")
            owners[host] = (set_id, guest)
        elif kind == "release":
            _require(owners.get(host) == (set_id, guest), f"{host} was released by {set_id}, {owners.get(host)} had it")
            del owners[host]
    state = {host: (set_id, guest) for host, set_id, guest in rows(directory, "SELECT host, set_id, guest FROM pasids")}
    _require(state == owners, "the state is not what the journal comes to")
    return ngrants


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise LedgerProblem(problem)
