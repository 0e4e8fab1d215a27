"""The set of a real VM's units on a real authority: what the guest sees while authorities come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support import authority
from tests.support.authority import Vm, restarted, rows, stop_authority, until
from vdev.authority.lease import Lease, join
from vdev.iommu.events import Event, PasidQuotaChanged, PasidQuotaExceeded
from vdev.iommu.pasid_held import Held
from vdev.iommu.pasid_set import PasidSet, Refusal

directory = authority.directory


class Guest:
    """A set without units, asked as a unit asks."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.events: list[Event] = []
        self.set = PasidSet(lease, self.events.append)
        lease.holder = self.set

    async def allocate(self) -> Held | Refusal:
        why = self.set.refusal("iommu0", 1, 1 << 20)
        if why is not None:
            return why
        answered: asyncio.Future[Held | Refusal] = asyncio.get_running_loop().create_future()
        self.set.ask("iommu0", 1, 1 << 20, answered.set_result)
        return await asyncio.wait_for(answered, 20)

    async def granted(self) -> Held:
        found: Held | Refusal = Refusal.UNREACHABLE
        while found is Refusal.UNREACHABLE:  # a busy machine
            found = await self.allocate()
        assert isinstance(found, Held)
        return found


async def guest_of(directory: Path, vm: Vm, quota: int | None = None) -> Guest:
    guest = Guest(await join(directory, "vm", quota=quota))
    guest.lease.bind(vm.identity)
    await until(lambda: guest.lease.state == "held")
    return guest


def in_ledger(directory: Path) -> dict[int, str]:
    return dict(rows(directory, "SELECT guest, state FROM pasids"))


async def test_a_guests_set_and_the_ledger_are_the_same_through_every_use(directory: Path) -> None:
    with Vm() as vm:
        guest = await guest_of(directory, vm)
        kept, attached, pending, freed = [await guest.granted() for _ in range(4)]
        guest.set.pair_attached(attached)
        guest.set.pair_attached(pending)
        await asyncio.sleep(0)

        guest.set.free(pending.pasid, pending.pasid + 1)
        guest.set.free(freed.pasid, freed.pasid + 1)
        last = await guest.granted()

        assert in_ledger(directory) == {
            kept.pasid: "allocated", attached.pasid: "attached", pending.pasid: "free-pending", last.pasid: "allocated",
        }  # fmt: skip
        await guest.lease.close()


async def test_a_guest_keeps_all_through_a_restart_and_what_it_freed_meanwhile_ends(directory: Path) -> None:
    with Vm() as vm:
        guest = await guest_of(directory, vm)
        kept, freed = await guest.granted(), await guest.granted()
        stop_authority(directory)
        guest.set.free(freed.pasid, freed.pasid + 1)

        await restarted(directory, guest.lease)
        last = await guest.granted()

        assert in_ledger(directory).keys() == {kept.pasid, last.pasid}
        assert guest.set.of_guest(kept.pasid) is kept
        await guest.lease.close()


async def test_a_grant_that_comes_too_late_for_the_guest_goes_back(directory: Path) -> None:
    with Vm() as vm:
        guest = await guest_of(directory, vm)
        stop_authority(directory)
        refused = await guest.allocate()

        await restarted(directory, guest.lease)
        last = await guest.granted()

        assert refused is Refusal.UNREACHABLE
        await until(lambda: in_ledger(directory).keys() == {last.pasid})
        assert guest.set.used == 1
        await guest.lease.close()


async def test_an_order_on_the_quota_reaches_the_guest_and_one_event_tells_that_it_is_used_up(directory: Path) -> None:
    with Vm() as vm:
        guest = await guest_of(directory, vm, quota=1)
        await guest.granted()

        refused = [await guest.allocate() for _ in range(3)]
        await guest.lease.admin("pasid-quota", {"quota": 2})
        await until(lambda: guest.set.quota == 2)
        await guest.granted()

        assert refused == [Refusal.QUOTA] * 3
        told = [event for event in guest.events if isinstance(event, PasidQuotaExceeded | PasidQuotaChanged)]
        assert told == [PasidQuotaExceeded(1, 1), PasidQuotaChanged(1, 2)]
        await guest.lease.close()


async def test_a_reclaimed_pasid_leaves_the_guests_set_and_then_the_ledger(directory: Path) -> None:
    with Vm() as vm:
        guest = await guest_of(directory, vm)
        taken, kept = await guest.granted(), await guest.granted()
        guest.set.pair_attached(taken)

        await guest.lease.admin("pasid-reclaim", {"pasid": taken.pasid})
        await until(lambda: in_ledger(directory).keys() == {kept.pasid})

        assert guest.set.of_guest(taken.pasid) is None
        assert guest.set.used == 1
        await guest.lease.close()


async def test_the_end_of_qemu_leaves_the_set_empty_for_the_next_one(directory: Path) -> None:
    with Vm() as vm, Vm() as following:
        guest = await guest_of(directory, vm)
        await guest.granted()

        vm.kill()
        await until(lambda: guest.lease.state == "unbound")
        used = guest.set.used
        guest.lease.bind(following.identity)
        await until(lambda: guest.lease.state == "held")
        await guest.granted()

        assert used == 0
        assert len(in_ledger(directory)) == 1
        await guest.lease.close()
