"""The quota of a VM in numbers: 1000 are let through and the next is not, until an administrator says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from guest_tests.payload.direct import AttachPasid, PasidAlloc, Status, Viommu
from guest_tests.payload.host import Host

QUOTA, MORE = 1000, 1500
EP = 0x100
EXCEEDED = "PasidQuotaExceeded"


@pytest.fixture(autouse=True)
def _quota_as_it_was(host: Host) -> Iterator[None]:
    yield
    host.control("pasid-quota", quota=QUOTA)


def now(host: Host) -> int:
    """The number the next event will have."""
    newest = host.control("query-events", limit=1)
    return newest[0]["seq"] + 1 if newest else 0


def exceeded(host: Host, since: int) -> list[dict[str, Any]]:
    """The events that say so."""
    found: list[dict[str, Any]] = host.control("query-events", since=since, kinds=[EXCEEDED])
    return found


def test_1000_allocations_succeed_and_no_more_until_the_quota_is_raised(managed: Viommu, host: Host) -> None:
    since = now(host)

    granted = {managed.pasids.alloc().pasid for _ in range(QUOTA)}
    refused = [managed.pasids.send(PasidAlloc()) for _ in range(3)]
    events = exceeded(host, since)
    printed = host.step("vdev_ctl_pasid_quota", quota=MORE)
    granted |= {managed.pasids.alloc().pasid for _ in range(MORE - QUOTA)}
    last = managed.pasids.send(PasidAlloc())

    assert len(granted) == MORE
    assert {(answer.status, answer.written[:8]) for answer in [*refused, last]} == {(Status.NOMEM, bytes(8))}
    assert len(events) == 1
    assert str(MORE) in printed
    assert (managed.pasids.config().quota, managed.pasids.config().used) == (MORE, MORE)
    assert host.control("query-pasid-set")["used"] == MORE


def test_a_quota_that_was_lowered_refuses_new_ones_and_keeps_the_old(managed: Viommu, host: Host) -> None:
    mine = [managed.pasids.alloc().pasid for _ in range(30)]
    managed.pasids.attach(domain=1, endpoint=EP, pasid=mine[0])

    host.step("vdev_ctl_pasid_quota", quota=10)
    refused = managed.pasids.send(PasidAlloc()).status
    for pasid in mine[1:]:
        managed.pasids.attach(domain=1, endpoint=EP, pasid=pasid)
    freed = managed.pasids.free(mine[0])
    managed.pasids.detach(domain=1, endpoint=EP, pasid=mine[0])

    assert (refused, freed) == (Status.NOMEM, 1)
    assert (managed.pasids.config().quota, managed.pasids.config().used) == (10, 29)
    assert managed.pasids.send(PasidAlloc()).status == Status.NOMEM


def test_unmanaged_1000_attaches_succeed_and_no_more_until_the_quota_is_raised(unmanaged: Viommu, host: Host) -> None:
    since = now(host)
    requests = [AttachPasid(domain=1, endpoint=EP, pasid=0x1000 + number) for number in range(MORE + 1)]

    answers = unmanaged.submit(requests[: QUOTA + 1])
    events = exceeded(host, since)
    used = unmanaged.pasids.config().used
    again = unmanaged.send(requests[0]).status  # attached already: charged to nothing
    host.step("vdev_ctl_pasid_quota", quota=MORE)
    answers += unmanaged.submit(requests[QUOTA:])

    assert [answer.status for answer in answers[:QUOTA]] == [Status.OK] * QUOTA
    assert (answers[QUOTA].status, len(events), used, again) == (Status.NOMEM, 1, QUOTA, Status.OK)
    assert [answer.status for answer in answers[QUOTA + 1 : -1]] == [Status.OK] * (MORE - QUOTA)
    assert answers[-1].status == Status.NOMEM
