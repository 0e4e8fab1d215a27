"""The PASID authority as backends meet it: a process that comes on demand, may end at any time, and loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import authority
from tests.support.authority import (
    Vm,
    allocate,
    authority_pid,
    check_ledger,
    give_back,
    granted,
    held_lease,
    kill_authority,
    restarted,
    rows,
    stop_authority,
    until,
    wait_for_end,
)
from vdev.authority import start
from vdev.authority.admin_client import ask
from vdev.authority.lease import LeaseError, join
from vdev.errors import VdevError
from vdev.iommu.pasid_set import Refusal
from vdev.transports.identity import VmIdentity

directory = authority.directory


async def test_the_first_lease_starts_an_authority_and_the_second_joins_it(directory: Path) -> None:
    with Vm() as vm, Vm() as other:
        first, _ = await held_lease(directory, vm, "first")
        pid = authority_pid(directory)
        second, _ = await held_lease(directory, other, "second")

        assert authority_pid(directory) == pid
        assert (first.terms.quota, first.terms.space) == (1000, "per-vm")
        assert os.stat(directory).st_mode & 0o777 == 0o700
        assert {os.stat(directory / name).st_mode & 0o777 for name in ("lease.sock", "admin.sock")} == {0o600}
        assert {file.stat().st_mode & 0o777 for file in os.scandir(directory) if "ledger" in file.name} == {0o600}
        await first.close()
        await second.close()


async def test_a_crowd_that_finds_no_authority_starts_one(directory: Path) -> None:
    leases = await asyncio.gather(*(join(directory, f"vm{number}") for number in range(12)))

    host = await ask(directory, "query-pasid-host", {})

    assert {lease["vm"] for lease in host["leases"]} == {f"vm{number}" for number in range(12)}
    for lease in leases:
        await lease.close()


async def test_a_vm_keeps_exactly_what_it_had_when_the_authority_is_killed(directory: Path) -> None:
    with Vm() as vm:
        lease, served = await held_lease(directory, vm)
        had = {await granted(lease) for _ in range(20)}

        await restarted(directory, lease)

        assert served.held == had
        assert {guest for (guest,) in rows(directory, "SELECT guest FROM pasids")} == had
        assert await granted(lease) not in had
        await lease.close()
    assert check_ledger(directory, "per-vm") >= 21  # more where one was answered too late, and given back


async def test_uses_are_told_again_to_an_authority_that_missed_them(directory: Path) -> None:
    with Vm() as vm:
        lease, _ = await held_lease(directory, vm)
        attached, pending, released = [await granted(lease) for _ in range(3)]

        kill_authority(directory)
        await until(lambda: lease.state == "lost")
        lease.attached(attached, True)
        lease.free_pending([pending])
        give_back(lease, [released])
        await until(lambda: lease.state == "held")
        await granted(lease)  # all that was told before is known by then

        states = dict(rows(directory, "SELECT guest, state FROM pasids"))
        assert states[attached] == "attached"
        assert states[pending] == "free-pending"
        assert released not in states
        await lease.close()


async def test_what_the_dead_had_is_free_when_the_authority_comes_back(directory: Path) -> None:
    with Vm() as dying, Vm() as living:
        first, _ = await held_lease(directory, dying, "dying")
        second, _ = await held_lease(directory, living, "living")
        await granted(first)
        kept = await granted(second)
        await first.close()

        kill_authority(directory)
        dying.kill()
        await until(lambda: second.state == "lost")
        await until(lambda: second.state == "held")
        await granted(second)

        names = [name for (name,) in rows(directory, "SELECT name FROM sets")]
        assert names == ["living"]
        assert kept in {guest for (guest,) in rows(directory, "SELECT guest FROM pasids")}
        await second.close()
    check_ledger(directory, "per-vm")


async def test_the_set_ends_with_its_qemu_and_the_lease_can_be_bound_to_the_next(directory: Path) -> None:
    with Vm() as vm, Vm() as following:
        lease, served = await held_lease(directory, vm)
        await granted(lease)

        vm.kill()
        await until(lambda: lease.state == "unbound")
        meanwhile = (set(served.held), rows(directory, "SELECT count(*) FROM pasids"), await allocate(lease))
        lease.bind(following.identity)
        await until(lambda: lease.state == "held")

        assert meanwhile == (set(), [(0,)], Refusal.UNREACHABLE)
        assert await granted(lease)
        await lease.close()


async def test_a_new_qemu_may_come_before_the_old_one_has_ended(directory: Path) -> None:
    with Vm() as vm, Vm() as following:
        lease, served = await held_lease(directory, vm)
        old = await granted(lease)

        lease.bind(following.identity)
        await until(lambda: lease.state == "held")

        assert served.revoked == [old]
        assert sorted(rows(directory, "SELECT pid, state FROM sets")) == sorted(
            [(vm.process.pid, "quarantined"), (following.process.pid, "held")]
        )
        await lease.close()


async def test_a_backend_that_is_lost_leaves_its_set_to_the_next_one_of_the_same_qemu(directory: Path) -> None:
    with Vm() as vm:
        first, _ = await held_lease(directory, vm)
        had = await granted(first)
        await first.close()
        await until(lambda: rows(directory, "SELECT state FROM sets") == [("quarantined",)])

        second, served = await held_lease(directory, vm)
        await granted(second)

        assert second.set_id == first.set_id or first.set_id is None
        assert had not in served.held  # it knew nothing of it, so it gave it back
        assert had not in {guest for (guest,) in rows(directory, "SELECT guest FROM pasids")}
        await second.close()


async def test_two_backends_cannot_have_the_set_of_one_qemu(directory: Path) -> None:
    with Vm() as vm:
        first, _ = await held_lease(directory, vm)
        second = await join(directory, "again")
        second.bind(vm.identity)
        await until(lambda: bool(second.problem))

        assert f"backend pid {os.getpid()} has the set" in second.problem
        assert second.state == "unbound"
        await first.close()
        await until(lambda: second.state == "held")
        await second.close()


async def test_a_vm_whose_process_is_unchecked_has_its_set_as_long_as_its_backend(directory: Path) -> None:
    lease = await join(directory, "unchecked")
    lease.bind(VmIdentity(checked=False))
    await until(lambda: lease.state == "held")

    assert rows(directory, "SELECT pid FROM sets") == [(os.getpid(),)]
    await lease.close()


async def test_an_allocation_is_refused_while_the_authority_is_silent(directory: Path) -> None:
    with Vm() as vm:
        lease, served = await held_lease(directory, vm)
        had = await granted(lease)
        stop_authority(directory)  # there, and silent

        found = await allocate(lease)
        os.kill(authority_pid(directory), signal.SIGCONT)
        following = await granted(lease)

        assert found is Refusal.UNREACHABLE
        assert served.held == {had, following}
        # The one that came too late goes back, at the latest after the next was granted.
        await until(lambda: {guest for (guest,) in rows(directory, "SELECT guest FROM pasids")} == {had, following})
        await lease.close()


async def test_an_authority_on_demand_ends_when_nobody_needs_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "IDLE_S", 0.5)
    with Vm() as vm:
        lease, _ = await held_lease(directory, vm)
        await lease.close()
        await asyncio.sleep(1.0)
        is_there_for_the_vm = (directory / "lease.sock").exists()

    await until(lambda: not (directory / "lease.sock").exists())

    assert is_there_for_the_vm


async def test_an_authority_on_demand_ends_with_its_directory_when_no_backend_is_left(
    directory: Path, tmp_path: Path
) -> None:
    with Vm() as vm:
        lease, _ = await held_lease(directory, vm)
        pidfd = os.pidfd_open(authority_pid(directory))
        os.rename(directory, tmp_path / "gone")
        await lease.close()

        await asyncio.to_thread(wait_for_end, pidfd)
    os.close(pidfd)
    os.rename(tmp_path / "gone", directory)


async def test_one_that_cannot_start_says_why(directory: Path) -> None:
    config = directory / "host.yaml"
    config.write_text("quota: many\n")

    with pytest.raises(VdevError, match=r"did not start: host.yaml: quota: 'many' is text, not a whole number"):
        await join(directory, "vm", config)


async def test_rules_stay_those_of_the_living_whoever_starts_an_authority_again(directory: Path) -> None:
    system, other = directory / "system.yaml", directory / "other.yaml"
    system.write_text('space: system\nreserved: ["1..0xff"]\nquota: 5\nvms: {big: {quota: 9}}\n')
    other.write_text("space: per-vm\n")
    with Vm() as vm, Vm() as second:
        lease, _ = await held_lease(directory, vm, config=system)
        kill_authority(directory)
        await until(lambda: lease.state == "lost")
        late = await join(directory, "big", other)
        late.bind(second.identity)
        await until(lambda: late.state == "held" and lease.state == "held")

        assert (late.terms.space, late.terms.first, late.terms.quota) == ("system", 0x100, 9)
        assert {await granted(lease), await granted(late)} == {0x100, 0x101}
        await lease.close()
        await late.close()


async def test_a_quota_above_the_hosts_is_refused_in_words(directory: Path) -> None:
    config = directory / "host.yaml"
    config.write_text("max_quota: 2000\n")

    with pytest.raises(LeaseError, match=r"vm.pasids.quota: 5000 is above max_quota of this host, 2000"):
        await join(directory, "vm", config, quota=5000)


async def test_a_second_authority_of_a_directory_is_refused(directory: Path) -> None:
    lease = await join(directory, "vm")

    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vdev", "authority", "--runtime-dir", str(directory), stderr=subprocess.PIPE
    )
    _, said = await asyncio.wait_for(second.communicate(), 60)

    assert second.returncode == 2
    assert f"another authority serves {directory} (pid {authority_pid(directory)})" in said.decode()
    await lease.close()


async def test_a_ledger_of_another_version_is_left_alone(directory: Path) -> None:
    lease = await join(directory, "vm")
    await lease.close()
    kill_authority(directory)
    with sqlite3.connect(directory / "ledger.sqlite3") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()

    with pytest.raises(VdevError, match="it has version 99, this vdev writes 1"):
        await join(directory, "vm")


async def test_a_backend_that_joins_while_the_authority_is_killed_finds_the_next_one(directory: Path) -> None:
    first = await join(directory, "first")
    stop_authority(directory)  # it takes the connection, and says nothing
    joining = asyncio.ensure_future(join(directory, "second"))
    await asyncio.sleep(0.2)

    kill_authority(directory)
    second = await joining

    assert second.terms.quota == 1000
    await first.close()
    await second.close()


async def test_a_lease_that_knows_no_rules_starts_an_authority_again_by_those_it_had(directory: Path) -> None:
    config = directory / "system.yaml"
    config.write_text("space: system\n")
    lease = await join(directory, "first", config)
    second = await join(directory, "second")
    await lease.close()

    kill_authority(directory)
    third = await join(directory, "third")

    assert third.terms.space == "system"
    await second.close()
    await third.close()


async def test_a_directory_whose_name_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        VdevError, match=r"vm.pasids.authority: .* a UNIX socket's path has at most 107 \(use a shorter"
    ):
        await join(tmp_path / ("x" * 100), "vm")
