"""The PASID authority: its decisions, with the ledger, and asked by leases from another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.support.authority import Vm, granted, held_lease, kill_authority
from vdev.authority.desk import Desk
from vdev.authority.lease import Lease
from vdev.authority.ledger import Ledger
from vdev.authority.settings import HostConfig
from vdev.host.changes import Granted, Owner
from vdev.host.policy import STOP_PASID, HostSettings, Policy

NLEASES = 64


def policy_pair() -> Callable[[int], None]:
    """A grant and its release, decided and applied."""
    policy = Policy(HostSettings())
    for change in policy.open("vm", Owner(1, 1, "boot"), None):
        policy.apply(change)

    def run(count: int) -> None:
        for _ in range(count):
            (change,) = policy.allocate(1, 1, STOP_PASID)
            policy.apply(change)
            assert isinstance(change, Granted)
            for release in policy.release(1, [change.guest]):
                policy.apply(release)

    return run


def ledger_pair(scratch: Path, stack: ExitStack) -> Callable[[int], None]:
    """The same, each committed first."""
    ledger = Ledger(scratch / "ledger")
    stack.callback(ledger.close)
    desk = Desk(HostConfig(), ledger, lambda: 0)
    opened, _ = desk.open("vm", Owner(1, 1, "boot"), None)

    def run(count: int) -> None:
        for _ in range(count):
            desk.release(opened.id, [desk.allocate(opened.id, 1, STOP_PASID)])

    return run


class Leases:
    """An authority in a process of its own, and as many VMs with leases as are measured."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runner = asyncio.Runner()
        self._vms = [Vm() for _ in range(NLEASES)]
        self._leases: list[Lease] = []

    def __enter__(self) -> Leases:
        self._runner.run(self._join())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._runner.run(self._leave())
        self._runner.close()
        for vm in self._vms:
            vm.close()
        kill_authority(self._directory)

    async def _join(self) -> None:
        for number, vm in enumerate(self._vms):
            lease, _ = await held_lease(self._directory, vm, f"vm{number}")
            lease.holder = None  # nobody keeps what is granted
            self._leases.append(lease)

    async def _leave(self) -> None:
        for lease in self._leases:
            await lease.close()

    def one(self, count: int) -> None:
        """One lease, one request after the other."""
        self._runner.run(_ask(self._leases[0], count))

    def all(self, count: int) -> None:
        """All at once, each one request after the other."""
        self._runner.run(self._ask_all(count // NLEASES))

    async def _ask_all(self, count: int) -> None:
        await asyncio.gather(*(_ask(lease, count) for lease in self._leases))


async def _ask(lease: Lease, count: int) -> None:
    for _ in range(count):
        lease.release([await granted(lease)])
