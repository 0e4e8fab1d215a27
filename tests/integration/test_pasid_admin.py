"""An administrator and a VM's PASIDs, with real processes: vdev serve, the authority it starts, `vdev ctl pasid`. This
process plays QEMU and the guest's driver."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.authority import authority_pid, kill_authority
from tests.support.serve_guest import until_true
from tests.support.serve_pasids import (
    AUTHORITY,
    DEVERR,
    KERNEL,
    NOENT,
    NOMEM,
    OK,
    PASIDS,
    QUOTA,
    UNCHECKED,
    alloc,
    allocs,
    attach_pasid,
    audit,
    config_of,
    ctl,
    ctl_json,
    free,
    guest_of,
    serving_pasids,
    try_ctl,
)
from tests.support.serve_process import ONE_UNIT, ServeProcess, serving
from tests.support.serve_scene import DOMAIN, ENDPOINT, Scene
from vdev.qapi.check import check_return
from vdev.qapi.schema import schema
from vdev.wire.accelerator import Register

LOOK_S = 20.0


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServeProcess]:
    with serving_pasids(PASIDS, tmp_path / "run") as running:
        yield running


@pytest_asyncio.fixture
async def scene(process: ServeProcess) -> AsyncIterator[Scene]:
    async with guest_of(process) as guest:
        yield guest


def ask(process: ServeProcess, command: str, **arguments: object) -> Any:
    """A reply that is what the schema says."""
    reply = process.ask(command, **arguments)
    check_return(schema().commands[command].returns, reply)
    return reply


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what other processes bring about."""
    async with asyncio.timeout(LOOK_S):
        while not holds():  # noqa: ASYNC110 # of another process
            await asyncio.sleep(0.02)


def states_of_lease(process: ServeProcess, since: int) -> list[str]:
    """Those it came to."""
    return [event["state"] for event in process.events("PasidLease", since=since)]


async def held(process: ServeProcess) -> None:
    """Until the authority has a set for the VM, and vdev knows."""
    await eventually(lambda: bool(ask(process, "query-status")["pasids"]["state"] == "held"))


async def test_a_raised_quota_is_in_the_configuration_and_the_driver_is_told(
    process: ServeProcess, scene: Scene
) -> None:
    before = await config_of(scene.unit)
    granted = await allocs(scene.unit, QUOTA)
    refused = await alloc(scene.unit)

    shown = await ctl("quota", "6", "--reason", "more queues", "--runtime-dir", str(process.directory))
    await scene.unit.interrupted(0)
    after = await config_of(scene.unit)
    more = await allocs(scene.unit, 3)

    assert (before.quota, before.used, before.first, before.last) == (QUOTA, 0, 1, 0xFFFFF)
    assert (min(granted) > 0, refused) == (True, -NOMEM)
    assert shown == "quota: 6\nused: 4\n"
    assert (after.quota, after.used) == (6, QUOTA)
    assert more[2] == -NOMEM
    assert len({*granted, *more[:2]}) == 6
    assert (await config_of(scene.unit)).used == 6


async def test_a_change_is_audited_with_who_when_before_and_after(process: ServeProcess, scene: Scene) -> None:
    await held(process)

    await ctl("quota", "7", "--reason", "by the VM", "--runtime-dir", str(process.directory))
    await ctl("quota", "vm1", "8", "--reason", "by the host", "--authority", str(process.directory / AUTHORITY))
    by_host, by_vm = ask(process, "query-pasid-audit")

    assert [(one["reason"], one["command"], one["uid"]) for one in (by_host, by_vm)] == [
        ("by the host", "pasid-quota", os.getuid()),
        ("by the VM", "pasid-quota", os.getuid()),
    ]
    assert ("4" in by_vm["before"], "7" in by_vm["after"], "7" in by_host["before"]) == (True, True, True)
    assert by_vm["pid"] == process.popen.pid
    assert by_vm["on-behalf"].startswith(f"control socket of vm1, uid {os.getuid()}, pid ")
    assert by_host["on-behalf"] == ""
    assert by_vm["time"] <= by_host["time"]


async def test_a_lowered_quota_takes_nothing_away_and_refuses_new_ones_once_told(
    process: ServeProcess, scene: Scene
) -> None:
    granted = await allocs(scene.unit, QUOTA)
    await scene.unit.attach(DOMAIN, ENDPOINT)
    since = process.next_event()

    await ctl("quota", "vm1", "1", "--authority", str(process.directory / AUTHORITY))
    await scene.unit.interrupted(0)
    refused = await allocs(scene.unit, 2)
    config = await config_of(scene.unit)
    statuses = [await attach_pasid(scene.unit, DOMAIN, ENDPOINT, pasid) for pasid in granted]

    assert refused == [-NOMEM, -NOMEM]
    assert (config.quota, config.used) == (1, QUOTA)
    assert statuses == [OK] * QUOTA
    assert [event["quota"] for event in process.events("PasidQuotaExceeded", since=since)] == [1]
    assert [(event["before"], event["after"]) for event in process.events("PasidQuotaChanged", since=since)] == [(4, 1)]


async def test_a_quota_the_host_does_not_allow_is_refused_with_the_rule(process: ServeProcess, scene: Scene) -> None:
    await held(process)

    status, _, errors = await try_ctl("quota", "2000000", "--runtime-dir", str(process.directory))

    assert status == 1
    assert "quota 2000000 is not within 0..1048575" in errors
    assert (await config_of(scene.unit)).quota == QUOTA
    assert await audit(process) == []


async def test_a_reclaimed_pasid_is_detached_and_is_the_vms_no_more(process: ServeProcess, scene: Scene) -> None:
    taken, kept = await allocs(scene.unit, 2)
    for pasid in (taken, kept):
        await attach_pasid(scene.unit, DOMAIN, ENDPOINT, pasid)
    since = process.next_event()

    words = ("--pasid", hex(taken), "--reason", "stuck")
    shown = await ctl("reclaim", *words, "--runtime-dir", str(process.directory))
    await eventually(lambda: bool(process.events("PasidsReclaimed", since=since)))
    again = await attach_pasid(scene.unit, DOMAIN, ENDPOINT, taken)
    page = ask(process, "query-pasids")

    assert shown == "taken: 1\n"
    assert again == NOENT
    assert [pasid["pasid"] for pasid in page["pasids"]] == [kept]
    assert page["pasids"][0]["pairs"] == [{"unit": "iommu0", "endpoint": "accel0", "domain": DOMAIN, "follows": False}]
    (event,) = process.events("PasidsReclaimed", since=since)
    assert (event["pasids"], event["reason"]) == ([taken], "stuck")
    assert [one["command"] for one in await audit(process)] == ["pasid-reclaim"]


async def test_a_vm_from_which_all_were_reclaimed_gets_none_any_more(process: ServeProcess, scene: Scene) -> None:
    await allocs(scene.unit, 2)

    await ctl("reclaim", "vm1", "--all", "--reason", "enough", "--authority", str(process.directory / AUTHORITY))
    await eventually(lambda: bool(ask(process, "query-pasid-set")["used"] == 0))

    assert await alloc(scene.unit) < 0
    assert (await config_of(scene.unit)).used == 0


async def test_every_vm_of_the_host_is_listed_and_each_pasid_shown(process: ServeProcess, scene: Scene) -> None:
    pasid = await alloc(scene.unit)
    await attach_pasid(scene.unit, DOMAIN, ENDPOINT, pasid)
    authority = ("--authority", str(process.directory / AUTHORITY))
    vm = ("--runtime-dir", str(process.directory))

    async def is_told() -> bool:
        return bool((await ctl_json("list", *authority))[0]["states"]["attached"] == 1)

    async with asyncio.timeout(LOOK_S):
        while not await is_told():
            pass
    host_list, host_show = await ctl("list", *authority), await ctl("show", "vm1", *authority)
    vm_list, vm_show = await ctl("list", *vm), await ctl("show", *vm)

    columns = ["vm", "set", "state", "quota", "used", "allocated", "attached", "free-pending"]
    assert host_list.splitlines()[0].split() == [*columns[:2], "pid", *columns[2:], "quarantined"]
    assert host_list.splitlines()[1].split()[:6] == ["vm1", "1", str(os.getpid()), "held", "4", "1"]
    assert vm_list.splitlines()[0].split() == columns
    assert vm_list.splitlines()[1].split() == ["vm1", "1", "held", "4", "1", "0", "1", "0"]
    assert host_show.splitlines()[-1].split()[:2] == [hex(pasid), "attached"]
    assert vm_show.splitlines()[-1].split() == [hex(pasid), "attached", "guest", "accel0", "in", "domain", str(DOMAIN)]


async def test_with_the_authority_killed_the_vm_keeps_what_it_has_and_goes_on_with_the_next(
    process: ServeProcess, scene: Scene
) -> None:
    first = await alloc(scene.unit)
    await attach_pasid(scene.unit, DOMAIN, ENDPOINT, first)
    await ctl("quota", "5", "--runtime-dir", str(process.directory))
    since, killed = process.next_event(), authority_pid(process.directory / AUTHORITY)

    kill_authority(process.directory / AUTHORITY)
    await eventually(
        lambda: [event["state"] for event in process.events("PasidLease", since=since)] == ["lost", "held"]
    )
    more = await allocs(scene.unit, 5)
    config = await config_of(scene.unit)
    freed = await free(scene.unit, more[0])

    assert authority_pid(process.directory / AUTHORITY) != killed
    assert len({first, *more[:4]}) == 5
    assert more[4] == -NOMEM
    assert (config.quota, config.used) == (5, 5)
    assert freed == (1, OK)
    assert await attach_pasid(scene.unit, DOMAIN, ENDPOINT, first) == OK
    shown = await ctl_json("show", "vm1", "--authority", str(process.directory / AUTHORITY))
    assert sorted(one["pasid"] for one in shown["pasids"]) == sorted({first, *more[1:4]})


async def test_while_no_authority_can_be_had_allocations_fail_in_time_and_nothing_is_lost(
    process: ServeProcess, scene: Scene
) -> None:
    pasid = await alloc(scene.unit)
    authority, ledger = process.directory / AUTHORITY, process.directory / AUTHORITY / "ledger.sqlite3"
    ledger.rename(ledger.with_suffix(".aside"))
    ledger.mkdir()  # whoever starts finds none it could use
    kill_authority(authority)
    await eventually(lambda: bool(ask(process, "query-status")["pasids"]["state"] == "lost"))

    refused = await alloc(scene.unit)
    lost = ask(process, "query-pasid-set")
    with pytest.raises(RuntimeError, match="the PASID authority"):
        process.ask("pasid-quota", quota=9)
    ledger.rmdir()
    ledger.with_suffix(".aside").rename(ledger)
    await held(process)

    assert refused == -DEVERR
    assert (lost["lease"]["state"], lost["used"]) == ("lost", 1)
    assert lost["lease"]["problem"]
    assert await alloc(scene.unit) not in (pasid, -DEVERR)
    assert (await config_of(scene.unit)).used == 2


def kernel(process: ServeProcess) -> dict[str, Any]:
    """The PASID of the host's own for the one endpoint."""
    (found,) = ask(process, "query-pasid-set")["kernel"]
    known: dict[str, Any] = found
    return known


def peer(directory: Path) -> subprocess.Popen[str]:
    """Another process as QEMU."""
    command = [sys.executable, "-m", "tests.support.serve_peer", "stay", str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_a_kernel_pasid_is_allocated_with_qemu_and_goes_with_it(tmp_path: Path) -> None:
    with serving_pasids(KERNEL, tmp_path / "run") as process:
        unbound = (kernel(process), ask(process, "query-status")["pasids"]["state"])
        with peer(process.directory) as first:
            await eventually(lambda: "pasid" in kernel(process))
            with_first = ask(process, "query-pasid-set")
            first.kill()
        await eventually(lambda: "pasid" not in kernel(process))
        without = ask(process, "query-pasid-set")
        async with guest_of(process) as scene:
            await eventually(lambda: "pasid" in kernel(process))
            shown = await scene.accel.register(Register.KERNEL_PASID)
            (endpoint,) = ask(process, "query-endpoints")
            page = ask(process, "query-pasids")
            refused = await attach_pasid(scene.unit, DOMAIN, ENDPOINT, shown)
            config = await config_of(scene.unit)

    assert unbound == ({"endpoint": "accel0", "problem": "the host has not answered yet"}, "unbound")
    assert (with_first["used"], with_first["states"]["attached"]) == (1, 1)
    assert (without["used"], without["lease"]["state"]) == (0, "unbound")
    assert (endpoint["pasids"]["kernel"], endpoint["pasids"]["dma"]) == (shown, "pasid-only")
    assert page["pasids"] == [
        {"pasid": shown, "state": "attached", "owner": "host",
         "pairs": [{"unit": "iommu0", "endpoint": "accel0", "follows": True}]}
    ]  # fmt: skip
    assert (refused, config.used) == (NOENT, 1)


async def test_an_administrator_may_take_a_kernel_pasid_which_the_endpoint_then_shows_no_more(tmp_path: Path) -> None:
    with serving_pasids(KERNEL, tmp_path / "run") as process:
        async with guest_of(process) as scene:
            await until_true(lambda: "pasid" in kernel(process))
            pasid = await scene.accel.register(Register.KERNEL_PASID)
            await ctl("reclaim", "--pasid", str(pasid), "--runtime-dir", str(process.directory))
            await eventually(lambda: "pasid" not in kernel(process))
            shown = await scene.accel.register(Register.KERNEL_PASID)
            without = kernel(process)

    assert (pasid > 0, shown) == (True, 0)
    assert without == {"endpoint": "accel0", "problem": "an administrator took it"}


async def test_an_endpoint_that_comes_later_may_have_a_kernel_pasid_and_gives_it_back_when_it_goes(
    tmp_path: Path,
) -> None:
    text = f"{UNCHECKED}slots: [{{bdf: 02:00.0}}]\n"
    with serving_pasids(text, tmp_path / "run") as process:
        await held(process)
        given = {"dma": "pasid-only", "kernel-pasid": True, "reserved-pasids": ["0x1..0xf"]}
        ask(process, "endpoint-add", name="new", **given)
        await eventually(lambda: "pasid" in kernel(process))
        (shown,) = ask(process, "query-endpoints", endpoint="new")
        ask(process, "endpoint-remove", name="new")
        after = ask(process, "query-pasid-set")

    pasids = shown["pasids"]
    assert (pasids["dma"], pasids["reserved"]) == ("pasid-only", [{"first": 1, "last": 15}])
    assert pasids["kernel"] > 15
    assert (after["kernel"], after["used"]) == ([], 0)


def test_a_vm_the_authority_refuses_does_not_start_and_the_reason_is_said(tmp_path: Path) -> None:
    rules = tmp_path / "host.yaml"
    rules.write_text("max_quota: 3\nquota: 2\n")
    text = PASIDS.replace(f"quota: {QUOTA}", f"quota: {QUOTA}, authority_config: {rules}")

    with (
        pytest.raises(RuntimeError, match=r"vdev: vm\.pasids\.quota: 4 is above max_quota of this host, 3"),
        serving_pasids(text, tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run" / "iommu0.sock").exists()


async def test_a_vm_without_pasids_says_so_to_who_asks(tmp_path: Path) -> None:
    with serving(ONE_UNIT, tmp_path / "run") as process:
        page = ask(process, "query-pasids")
        status = ask(process, "query-status")
        with pytest.raises(RuntimeError, match=r"vm\.pasids: the configuration has none"):
            process.ask("pasid-quota", quota=1)

    assert page == {"pasids": [], "total": 0}
    assert "pasids" not in status


async def test_without_a_process_to_look_at_the_set_lives_as_long_as_vdev(tmp_path: Path) -> None:
    with serving_pasids(UNCHECKED, tmp_path / "run") as process:
        await held(process)
        listed = await ctl_json("list", "--authority", str(process.directory / AUTHORITY))

    assert [(one["vm"], one["pid"]) for one in listed] == [("vm1", process.popen.pid)]
