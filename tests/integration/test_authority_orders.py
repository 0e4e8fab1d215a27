"""What an administrator orders of the authority: quotas and reclaim, at once, by right, and on record."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import authority
from tests.support.authority import (
    WAIT_S,
    Vm,
    allocate,
    authority_pid,
    give_back,
    granted,
    held_lease,
    restarted,
    rows,
    stop_authority,
    until,
)
from vdev.authority.admin_client import ask
from vdev.errors import VdevError
from vdev.iommu.pasid_set import Refusal

directory = authority.directory


async def test_another_quota_holds_at_once_and_is_in_the_audit(directory: Path) -> None:
    with Vm() as vm:
        lease, _ = await held_lease(directory, vm, quota=2)
        first, _ = await granted(lease), await granted(lease)
        changes: list[int] = []
        lease.terms_changed = lambda: changes.append(lease.terms.quota)

        full = await allocate(lease)
        await lease.admin("pasid-quota", {"quota": 3, "reason": "a test"}, "somebody")
        more = await granted(lease)
        await lease.admin("pasid-quota", {"quota": 1})
        less = await allocate(lease)

        assert (full, less) == (Refusal.QUOTA, Refusal.QUOTA)
        assert changes == [3, 1]
        assert {first, more} < {guest for (guest,) in rows(directory, "SELECT guest FROM pasids")}
        audit = await ask(directory, "query-pasid-audit", {"vm": "vm"})
        assert [(one["command"], one["before"], one["after"], one["on-behalf"], one["reason"]) for one in audit] == [
            ("pasid-quota", "3", "1", "", ""), ("pasid-quota", "2", "3", "somebody", "a test"),
        ]  # fmt: skip
        assert {(one["uid"], one["pid"]) for one in audit} == {(os.geteuid(), os.getpid())}
        await lease.close()


async def test_a_reclaimed_pasid_ends_in_the_guest_first(directory: Path) -> None:
    with Vm() as vm:
        lease, served = await held_lease(directory, vm)
        taken, kept = await granted(lease), await granted(lease)
        told: list[tuple[list[int], str]] = []
        lease.reclaimed = lambda pasids, reason: told.append((list(pasids), reason))

        await lease.admin("pasid-reclaim", {"pasid": taken, "reason": "needed"})
        await until(lambda: (taken,) not in rows(directory, "SELECT guest FROM pasids"))

        assert served.revoked == [taken]
        assert told == [([taken], "needed")]
        assert rows(directory, "SELECT guest FROM pasids") == [(kept,)]
        await lease.close()


async def test_reclaiming_all_fences_the_set_until_its_qemu_ends(directory: Path) -> None:
    with Vm() as vm:
        lease, served = await held_lease(directory, vm)
        had = [await granted(lease) for _ in range(3)]

        await lease.admin("pasid-reclaim", {"all": True, "force": True})
        await until(lambda: served.revoked == had)
        meanwhile = await allocate(lease)
        await restarted(directory, lease)
        afterwards = await allocate(lease)

        assert (meanwhile, afterwards) == (Refusal.SUPPLY, Refusal.SUPPLY)
        assert rows(directory, "SELECT state FROM sets") == [("fenced",)]
        assert rows(directory, "SELECT count(*) FROM pasids") == [(0,)]
        await lease.close()


async def test_what_is_said_late_of_a_pasid_taken_by_force_is_not_about_its_next_grant(directory: Path) -> None:
    """The backend releases it, the authority has taken it and given it out again: that one stays."""
    with Vm() as vm:
        lease, served = await held_lease(directory, vm)
        pasid = await granted(lease)
        set_id = lease.set_id
        stop_authority(directory)
        ordered = asyncio.ensure_future(
            ask(directory, "pasid-reclaim", {"vm": str(set_id), "pasid": pasid, "force": True})
        )
        await asyncio.sleep(0.2)
        os.kill(authority_pid(directory), signal.SIGCONT)
        await ordered
        again = await granted(lease, pasid, pasid + 1)

        await granted(lease)

        assert again == pasid
        assert (pasid,) in rows(directory, "SELECT guest FROM pasids")
        assert pasid in served.held
        await lease.close()


async def test_orders_that_make_no_sense_change_nothing(directory: Path) -> None:
    with Vm() as vm:
        lease, _ = await held_lease(directory, vm)
        pasid = await granted(lease)

        for command, arguments, problem in (
            ("pasid-quota", {"vm": "other", "quota": 1}, "there is no VM 'other'"),
            ("pasid-quota", {"vm": "vm", "quota": 1 << 21}, "is not within 0..1048575"),
            ("pasid-quota", {"vm": "vm"}, "Parameter 'quota' is missing"),
            ("pasid-reclaim", {"vm": "vm"}, "Parameter 'pasid' or 'all' is missing, or both are given"),
            ("pasid-reclaim", {"vm": "vm", "pasid": pasid + 1}, "has no PASID"),
            ("pasid-capacity", {"capacity": 1 << 21}, "is not within 0..1048575"),
            ("pasid-quota", {"vm": "vm", "quota": 1, "reason": "x" * 300}, "has 300 characters"),
            ("pasid-nothing", {}, "no command 'pasid-nothing'"),
        ):
            with pytest.raises(VdevError, match=problem):
                await ask(directory, command, arguments)

        assert rows(directory, "SELECT count(*) FROM audit") == [(0,)]
        assert rows(directory, "SELECT quota FROM sets") == [(1000,)]
        await lease.close()


async def test_who_follows_hears_of_every_change_in_its_order(directory: Path) -> None:
    with Vm() as vm:
        lease, _ = await held_lease(directory, vm)
        reader, writer = await asyncio.open_unix_connection(directory / "admin.sock")
        writer.write(b'{"execute": "events-follow"}\n')
        assert json.loads(await reader.readline()) == {"return": {}}

        pasid = await granted(lease)
        lease.attached(pasid, True)
        await asyncio.sleep(0)
        lease.free_pending([pasid])
        give_back(lease, [pasid])
        await lease.admin("pasid-quota", {"quota": 5})
        vm.kill()
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1]["event"] != "PASID_SET_ENDED":
            one = json.loads(await asyncio.wait_for(reader.readline(), WAIT_S))
            heard += [one] if one["data"].get("pasid", pasid) == pasid else []  # not of a grant that came too late

        assert [(one["event"], one["data"].get("state")) for one in heard] == [
            ("PASID_GRANTED", None), ("PASID_CHANGED", "attached"), ("PASID_CHANGED", "free-pending"),
            ("PASID_RELEASED", None), ("PASID_QUOTA_CHANGED", None), ("PASID_SET_ENDED", None),
        ]  # fmt: skip
        assert {(one["data"]["vm"], one["data"]["set"]) for one in heard} == {("vm", 1)}
        writer.close()
        await lease.close()
