"""A fault plan's orders to the PASID authority: one after the other, the last word last, and not without end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from vdev.authority.lease import LeaseError
from vdev.vm_pasids import PlanOrders


class SlowLease:
    """An authority that takes its time, the longer the lower the quota; it refuses what is about PASID 13."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Mapping[str, Any], str]] = []

    async def admin(self, command: str, arguments: Mapping[str, Any], on_behalf: str = "") -> Any:
        for _ in range(20 - arguments.get("quota", 0)):
            await asyncio.sleep(0)
        if arguments.get("pasid") == 13:
            raise LeaseError("an unlucky number")
        self.done.append((command, arguments, on_behalf))


def made(lease: SlowLease) -> PlanOrders:
    fake: Any = lease
    return PlanOrders(fake, "fault plan of a test")


async def settled(orders: PlanOrders) -> None:
    for _ in range(200):
        await asyncio.sleep(0)
    assert not orders.is_busy


async def test_the_last_quota_that_was_ordered_is_the_last_that_is_set() -> None:
    lease = SlowLease()
    orders = made(lease)

    orders.give("pasid-quota", {"quota": 1})
    await asyncio.sleep(0)
    orders.give("pasid-quota", {"quota": 15})
    await settled(orders)

    assert lease.done == [
        ("pasid-quota", {"quota": 1}, "fault plan of a test"),
        ("pasid-quota", {"quota": 15}, "fault plan of a test"),
    ]


async def test_of_those_that_wait_and_are_about_the_same_the_newest_is_carried_out() -> None:
    lease = SlowLease()
    orders = made(lease)

    for quota in range(10):
        orders.give("pasid-quota", {"quota": quota})
    orders.give("pasid-reclaim", {"pasid": 7})
    orders.give("pasid-reclaim", {"pasid": 8})
    await settled(orders)

    assert [arguments for _, arguments, _ in lease.done] == [{"quota": 9}, {"pasid": 7}, {"pasid": 8}]


async def test_what_is_refused_is_in_the_log_and_the_next_is_carried_out(caplog: pytest.LogCaptureFixture) -> None:
    lease = SlowLease()
    orders = made(lease)

    orders.give("pasid-reclaim", {"pasid": 13})
    orders.give("pasid-quota", {"quota": 2})
    await settled(orders)

    assert "fault plan: pasid-reclaim: an unlucky number" in caplog.text
    assert [arguments for _, arguments, _ in lease.done] == [{"quota": 2}]
