"""What the host can do to PASIDs, as the guest sees it: allocations are refused, a quota shrinks, PASIDs are taken."""

from __future__ import annotations

import pytest

from guest_tests.payload.direct import WRITE, DmaArena, PasidAlloc, Reason, Status, Viommu
from guest_tests.payload.direct.wait import until
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host

EP = 0x100
IOVA = 0x40_0000
ORDER_S = 10.0  # an order goes by the authority
QUOTA = 1000  # the host's default


def asked(viommu: Viommu, count: int) -> list[Status]:
    """The statuses of so many PASID_ALLOC; what was granted is given back."""
    statuses = []
    for _ in range(count):
        answer = viommu.pasids.send(PasidAlloc())
        assert answer.status is not None
        statuses.append(Status(answer.status))
        if answer.ok:
            viommu.pasids.free(int.from_bytes(answer.written[:4], "little"))
    return statuses


EFFECTS = [("exhausted", {}, Status.NOMEM), ("quota", {"quota": 0}, Status.NOMEM), ("unreachable", {}, Status.DEVERR)]


@pytest.mark.parametrize(("do", "parameters", "status"), EFFECTS)
def test_the_third_allocation_is_refused_and_the_fourth_is_not(
    managed: Viommu, faults: Faults, do: str, parameters: dict[str, int], status: Status
) -> None:
    rule = faults.add("pasid", do, when={"nth": 3}, with_=parameters)

    assert asked(managed, 4) == [Status.OK, Status.OK, status, Status.OK]
    assert rule.fired == 1


@pytest.mark.parametrize(("do", "parameters", "status"), EFFECTS)
def test_the_same_seed_refuses_the_same_allocations(
    managed: Viommu, faults: Faults, do: str, parameters: dict[str, int], status: Status
) -> None:
    def run(seed: int) -> list[Status]:
        faults.seed(seed)
        with faults.injected("pasid", do, id="lucky", when={"probability": 0.5}, with_=parameters):
            return asked(managed, 24)

    first, again, other = run(5), run(5), run(6)
    assert first == again != other
    assert set(first) == {Status.OK, status}


def test_a_quota_of_zero_is_told_once_and_is_no_more_when_cleared(managed: Viommu, faults: Faults, host: Host) -> None:
    mine = managed.pasids.alloc().pasid
    before = host.control("query-events", limit=1)[-1]["seq"]
    faults.add("pasid", "quota")

    refused = asked(managed, 3)
    told = host.control("query-events", since=before + 1, kinds=["PasidQuotaExceeded"])
    faults.clear()

    assert refused == [Status.NOMEM] * 3
    assert len(told) == 1
    assert managed.pasids.free(mine) == 1
    assert asked(managed, 1) == [Status.OK]


def test_the_authority_is_ordered_another_quota_and_clear_orders_the_old_one(
    managed: Viommu, faults: Faults, host: Host
) -> None:
    def quota() -> int:
        return managed.pasids.config().quota

    faults.add("timer", "quota-order", quota=2)
    assert until(lambda: quota() == 2, ORDER_S)
    refused = [managed.pasids.send(PasidAlloc()).status for _ in range(3)]
    faults.clear()
    assert until(lambda: quota() == QUOTA, ORDER_S)

    assert refused == [Status.OK, Status.OK, Status.NOMEM]
    assert host.control("query-pasid-set")["quota"] == QUOTA


def test_a_request_sets_off_the_reclaim_of_a_pasid_in_use(
    managed: Viommu, open_accel: OpenAccel, dma: DmaArena, faults: Faults, host: Host
) -> None:
    accel = open_accel().start_in(managed, domain=1)
    accel.function.enable_pasids(1)
    mine, target = managed.pasids.alloc().pasid, dma.alloc(4096)
    managed.pasids.attach(domain=9, endpoint=EP, pasid=mine)
    managed.map_buffer(9, IOVA, target)
    faults.add("request", "reclaim", match={"type": "PROBE"}, pasid=mine)

    accel.fill(IOVA, 4096, 0x11, pasid=mine)
    managed.probe(EP)
    assert until(lambda: not host.control("query-pasids")["pasids"], ORDER_S)
    with accel.refused(IOVA, WRITE):
        accel.fill(IOVA, 4096, 0x22, pasid=mine)

    assert set(target.read()[::8]) == {0x11}
    assert managed.wait_fault().reason == Reason.PASID
    assert managed.pasids.free(mine) == 0
    assert faults.clear()["terminal"] == [
        "reclaim: the guest has it no longer and may ask for others; after `all` it gets none until its QEMU ends"
    ]
    assert managed.pasids.send(PasidAlloc()).ok


def test_a_timer_reclaims_one_after_the_other(managed: Viommu, faults: Faults, host: Host) -> None:
    mine = sorted(managed.pasids.alloc().pasid for _ in range(3))

    faults.add("timer", "reclaim", when={"period": 0.05}, times=2)

    assert until(lambda: managed.pasids.config().used == 1, ORDER_S)
    assert [one["pasid"] for one in host.control("query-pasids")["pasids"]] == mine[2:]
