"""A VM's PASIDs as the application has them: the lease of the host's authority, the set its units share, the kernel
PASIDs of its endpoints.

    before there are sockets   the lease: its terms are known, so the units can say what they offer
    QEMU's first connection    the lease is bound to its process, and the set is there
    held                       kernel PASIDs are asked for; the guest's own requests are answered
    lost                       the authority is away: nothing ends, nothing is granted
    QEMU ends                  the authority ends the set; the next QEMU gets another
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdev.authority.lease import Lease, State, join
from vdev.authority.start import default_directory
from vdev.config import Config, PasidsConfig
from vdev.control.pasid_events import PasidLease, PasidsReclaimed
from vdev.errors import ConfigError, VdevError
from vdev.functions.kernel_pasid import KernelPasids
from vdev.iommu.pasid_set import PasidSet
from vdev.transports.identity import VmIdentity

log = logging.getLogger(__name__)


async def lease_for(config: Config, directory: Path) -> Lease | None:
    """The lease the configuration asks for, if it does; `directory` is the VM's runtime directory.

    ConfigError: no authority is there and none can be started, or it refuses the VM.
    """
    given = config.vm.pasids
    if given is None:
        return None
    try:
        return await join(*_asked_of(given, directory, config.vm.name), quota=given.quota)
    except VdevError as error:
        key, is_keyed, problem = str(error).partition(": ")  # what the host does not allow names its key
        if is_keyed and key.startswith("vm.pasids."):
            raise ConfigError(key, problem) from None
        raise ConfigError("vm.pasids", str(error)) from None


def _asked_of(given: PasidsConfig, directory: Path, vm: str) -> tuple[Path, str, Path | None]:
    """The authority's directory, the name it knows the VM by, and the rules for starting one."""
    where = default_directory() if given.authority is None else directory.absolute() / given.authority
    return where, vm, None if given.authority_config is None else Path(given.authority_config).absolute()


class VmPasids:
    """All of it for one VM. `kernel` is set by whoever has the machine made of `set`."""

    def __init__(self, lease: Lease, emit: Callable[[object], None]) -> None:
        self.lease = lease
        self.set = PasidSet(lease, emit)
        self.kernel: KernelPasids
        self._emit = emit
        lease.holder = self.set
        lease.changed = self._lease_changed
        lease.reclaimed = self._reclaimed

    def bind(self, identity: VmIdentity) -> None:
        """QEMU is there, or another one is."""
        self.kernel.new_vm()
        self.lease.bind(identity)

    def describe_lease(self) -> dict[str, Any]:
        """The schema's PasidLease."""
        known = self.lease.describe()
        return {
            "state": known["state"],
            "authority": known["directory"],
            **({} if known["set"] is None else {"set": known["set"]}),
            **({"problem": known["problem"]} if known["problem"] else {}),
        }

    def _lease_changed(self, state: State) -> None:
        self._emit(PasidLease(state, self.lease.problem))
        if state == "held":
            asyncio.get_running_loop().call_soon(self._open)  # when both sides agree on what there is

    def _open(self) -> None:
        if self.lease.state == "held":
            self.kernel.open()

    def _reclaimed(self, pasids: Sequence[int], reason: str) -> None:
        self.kernel.taken(frozenset(pasids))
        self._emit(PasidsReclaimed(tuple(pasids), reason))


class PlanOrders:
    """A fault plan's orders to the authority, carried out one after the other: the last word on a quota is the last
    that was given. Nobody waits for an outcome, so the log has it."""

    def __init__(self, lease: Lease, who: str) -> None:
        self._lease = lease
        self._who = who
        self._waiting: dict[tuple[str, object], tuple[str, Mapping[str, Any]]] = {}
        self._task: asyncio.Task[None] | None = None

    def give(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Carry it out when it is its turn. One of the same kind about the same PASID, or about none, that waits still
        is left out: so as many wait as the guest has PASIDs, and two."""
        key = (command, arguments.get("pasid"))
        self._waiting.pop(key, None)
        self._waiting[key] = (command, arguments)
        if not self.is_busy:
            self._task = asyncio.get_running_loop().create_task(self._carry_out(), name="orders of the fault plan")

    @property
    def is_busy(self) -> bool:
        """Whether an order waits or is being carried out."""
        return self._task is not None and not self._task.done()

    async def _carry_out(self) -> None:
        while self._waiting:
            command, arguments = self._waiting.pop(next(iter(self._waiting)))
            try:
                await self._lease.admin(command, arguments, self._who)
            except VdevError as error:
                log.warning("fault plan: %s: %s", command, error)
