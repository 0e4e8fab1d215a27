"""Wishes at the desk: what is written down, with whom, and what a ledger that cannot be written leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vdev.authority.desk import Desk
from vdev.authority.ledger import Ledger, LedgerError
from vdev.authority.settings import HostConfig, VmQuota
from vdev.errors import ConfigError
from vdev.host.audit import Audit
from vdev.host.changes import Owner
from vdev.host.policy import STOP_PASID

WHO = Audit(1000, 42, "an operator", "order", None, "", "", "", "a reason")
OWNER = Owner(1, 2, "boot")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger")
    yield made
    made.close()


def desk_of(ledger: Ledger, **config: Any) -> Desk:
    return Desk(HostConfig(**config), ledger, lambda: 5)


def test_orders_are_recorded_with_what_was_and_what_is(ledger: Ledger) -> None:
    desk = desk_of(ledger)
    opened, _ = desk.open("vm", OWNER, 10)
    pasids = [desk.allocate(opened.id, 1, STOP_PASID) for _ in range(3)]

    desk.set_quota("vm", 20, WHO)
    desk.set_ceiling(500, WHO)
    desk.reclaim("vm", pasids[0], False, WHO)
    desk.reclaim("vm", pasids[1], True, WHO)
    desk.reclaim("vm", None, True, WHO)

    told = [(one["vm"], one["before"], one["after"]) for one in reversed(desk.audit(10))]
    assert told == [
        ("vm", "10", "20"),
        ("", "1048575", "500"),
        ("vm", "allocated", "0x1: quarantined until drained"),
        ("vm", "allocated", "0x2: freed by force"),
        ("vm", "held, 2 used", "all: fenced, freed by force"),
    ]
    assert {(one["uid"], one["pid"], one["on_behalf"], one["reason"]) for one in desk.audit(10)} == {
        (1000, 42, "an operator", "a reason")
    }


def test_a_commit_that_fails_changes_nothing(tmp_path: Path) -> None:
    def fail(point: str) -> None:
        if is_full:
            raise LedgerError(point)

    is_full = False
    ledger = Ledger(tmp_path / "ledger", step=fail)
    desk = desk_of(ledger)
    opened, _ = desk.open("vm", OWNER, 10)
    pasid = desk.allocate(opened.id, 1, STOP_PASID)
    is_full = True

    for wish in (
        lambda: desk.allocate(opened.id, 1, STOP_PASID),
        lambda: desk.release(opened.id, [pasid]),
        lambda: desk.tell(opened.id, [pasid], "attached"),
        lambda: desk.set_quota("vm", 5, WHO),
        lambda: desk.end(opened.id, "dead"),
    ):
        with pytest.raises(LedgerError):
            wish()

    assert list(opened.pasids) == [pasid]
    assert opened.pasids[pasid].state == "allocated"
    assert (opened.quota, desk.policy.used) == (10, 1)
    ledger.close()


def test_what_changes_nothing_is_not_written(ledger: Ledger) -> None:
    desk = desk_of(ledger)
    opened, _ = desk.open("vm", OWNER, 10)
    before = len(ledger.journal(100))

    desk.release(opened.id, [77])
    desk.tell(opened.id, [77], "attached")
    _, is_claimed = desk.open("vm", OWNER, 10)

    assert is_claimed
    assert len(ledger.journal(100)) == before


def test_a_vm_named_by_the_host_gets_what_that_says(ledger: Ledger) -> None:
    desk = desk_of(ledger, vms={"vm": VmQuota(quota=3)})

    opened, _ = desk.open("vm", OWNER, 10)

    assert opened.quota == 3


def test_a_quota_changed_by_order_stays_when_the_set_is_claimed_or_the_authority_comes_again(ledger: Ledger) -> None:
    desk = desk_of(ledger)
    desk.open("vm", OWNER, 10)
    desk.set_quota("vm", 20, WHO)

    opened, _ = desk_of(ledger).open("vm", OWNER, 10)

    assert opened.quota == 20


def test_what_a_guest_has_cannot_become_reserved(ledger: Ledger) -> None:
    desk = desk_of(ledger)
    opened, _ = desk.open("vm", OWNER, 10)
    desk.allocate(opened.id, 1, STOP_PASID)

    with pytest.raises(ConfigError, match=r"reserved: PASID 0x1 is reserved, and a guest has it \(end that VM"):
        desk_of(ledger, reserved=("1..0xf",))
