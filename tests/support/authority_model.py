"""What the authority must do, told without ranges, changes or a database: sets of numbers, and a list of VMs."""

from __future__ import annotations

from dataclasses import dataclass, field

from vdev.host.changes import Owner


@dataclass
class ModelVm:
    """One guest's set, as an administrator would tell of it."""

    name: str
    owner: Owner
    quota: int
    state: str = "held"
    uses: dict[int, str] = field(default_factory=dict)  # guest PASID -> state


@dataclass
class Model:
    """The whole host."""

    space: str
    ceiling: int
    overcommit: str
    reserved: frozenset[int]
    top: int  # every PASID above is reserved, so that a host is soon full
    max_quota: int
    vms: dict[int, ModelVm] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(len(vm.uses) for vm in self.vms.values())

    @property
    def supply(self) -> int:
        return min(self.ceiling, self.top - len(self.reserved))

    @property
    def promised(self) -> int:
        return sum(max(vm.quota, len(vm.uses)) for vm in self.vms.values())

    def allows_quota(self, quota: int, before: int) -> bool:
        """`before`: what is promised to it now."""
        if not 0 <= quota <= self.max_quota:
            return False
        if self.overcommit == "reserve" and quota > before:
            return quota <= self.supply - self.promised + before
        return True

    def refusal(self, set_id: int, first: int, stop: int) -> str | None:
        """Why the VM gets none of [first, stop), None if it must get one."""
        vm = self.vms[set_id]
        if vm.state != "held":
            return "fenced"
        if len(vm.uses) >= vm.quota:
            return "quota"
        if self.used >= self.ceiling or self.used >= self.top - len(self.reserved):
            return "supply"
        return None if self.free(set_id, first, stop) else "range"

    def free(self, set_id: int, first: int, stop: int) -> bool:
        """Whether [first, stop) has a number this VM could get."""
        return any(self.is_free(set_id, number) for number in range(max(first, 1), min(stop, 1 << 20, 4 * self.top)))

    def is_free(self, set_id: int, number: int) -> bool:
        if self.space == "per-vm":
            return number not in self.vms[set_id].uses
        taken = any(number in vm.uses for vm in self.vms.values())
        return number <= self.top and number not in self.reserved and not taken

    def state(self) -> dict[int, tuple[str, int, str, dict[int, str]]]:
        return {set_id: (vm.name, vm.quota, vm.state, dict(vm.uses)) for set_id, vm in self.vms.items()}
