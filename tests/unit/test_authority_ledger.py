"""The ledger: all of a change or nothing, what another process reads in it, and its bounds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdev.authority.ledger import Ledger, LedgerError
from vdev.errors import ConfigError
from vdev.host.audit import Audit
from vdev.host.changes import (
    CeilingChanged,
    Change,
    Granted,
    Owner,
    PasidChanged,
    QuotaChanged,
    Released,
    SetChanged,
    SetEnded,
    SetOpened,
)

OPENED = SetOpened(1, "vm", Owner(10, 20, "boot"), 100)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger")
    yield made
    made.close()


def again(ledger: Ledger, tmp_path: Path) -> Ledger:
    """As another process finds it."""
    ledger.close()
    return Ledger(tmp_path / "ledger")


def test_what_was_committed_is_what_the_next_process_loads(ledger: Ledger, tmp_path: Path) -> None:
    state: list[Change] = [
        CeilingChanged(500), OPENED, Granted(1, 5, 6), Granted(1, 7, 8), PasidChanged(1, 7, "attached"),
        SetChanged(1, "quarantined"),
    ]  # fmt: skip
    ledger.commit(state, 1)

    following = again(ledger, tmp_path)

    assert list(following.load()) == state
    assert following.next_set_id == 2
    following.close()


def test_ends_and_quotas_are_kept_too(ledger: Ledger) -> None:
    ledger.commit([OPENED, Granted(1, 5, 6), Granted(1, 7, 8), QuotaChanged(1, 9), Released(1, 5)], 1)
    kept = list(ledger.load())
    ledger.commit([SetEnded(1, "dead")], 2)

    assert kept == [SetOpened(1, "vm", OPENED.owner, 9), Granted(1, 7, 8)]
    assert list(ledger.load()) == []
    assert [(row["kind"], row["guest"], row["host"]) for row in reversed(ledger.journal(10))] == [
        ("open", None, None), ("grant", 5, 6), ("grant", 7, 8), ("quota", None, None), ("release", 5, 6),
        ("release", 7, 8), ("end", None, None),
    ]  # fmt: skip


def test_the_number_of_a_set_is_never_used_again(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit([OPENED], 1)
    ledger.commit([SetEnded(1, "dead")], 2)

    following = again(ledger, tmp_path)

    assert following.next_set_id == 2
    following.close()


def test_one_pasid_cannot_have_two_owners_even_if_somebody_orders_it(ledger: Ledger) -> None:
    other = SetOpened(2, "other", Owner(11, 20, "boot"), 100)
    ledger.commit([OPENED, other, Granted(1, 5, 6)], 1)

    with pytest.raises(sqlite3.IntegrityError):
        ledger.commit([Granted(2, 9, 9), Granted(2, 5, 6)], 2)

    assert list(ledger.load()) == [OPENED, Granted(1, 5, 6), other]


def test_a_lock_of_somebody_elses_changes_nothing_and_is_told(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit([OPENED], 1)
    database = sqlite3.connect(tmp_path / "ledger", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")

    with pytest.raises(LedgerError, match="cannot be written: database is locked"):
        ledger.commit([Granted(1, 5, 6)], 2)
    database.execute("ROLLBACK")
    database.close()
    ledger.commit([Granted(1, 7, 8)], 3)

    assert list(ledger.load()) == [OPENED, Granted(1, 7, 8)]


def test_the_history_is_bounded_and_the_state_is_not_touched_by_that(ledger: Ledger) -> None:
    ledger.keep(1000, 100)
    ledger.commit([OPENED, Granted(1, 1, 1)], 0)

    for number in range(2000):
        changes: list[Change] = [Granted(1, 2, 2), Released(1, 2)]
        ledger.commit(changes, number, Audit(0, 1, "", "test", 1, "vm", "", "") if number % 4 == 0 else None)

    assert 1000 <= len(ledger.journal(1 << 20)) <= 1600
    assert 100 <= len(ledger.audit(1 << 20)) <= 700
    assert list(ledger.load()) == [OPENED, Granted(1, 1, 1)]


def test_an_order_is_written_with_who_gave_it_and_for_whom(ledger: Ledger) -> None:
    ledger.commit([], 77, Audit(1000, 42, "an operator", "pasid-quota", 3, "vm", "1", "2", "why not"))

    (record,) = ledger.audit(5)

    assert record == {
        "seq": 1, "time_us": 77, "uid": 1000, "pid": 42, "on_behalf": "an operator", "command": "pasid-quota",
        "set_id": 3, "vm": "vm", "before": "1", "after": "2", "reason": "why not",
    }  # fmt: skip


def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b"notes of mine\n" * 100)

    with pytest.raises(ConfigError, match="is no ledger that can be used: file is not a database"):
        Ledger(path)

    assert path.read_bytes() == b"notes of mine\n" * 100


def test_nobody_else_can_read_it(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit([OPENED], 1)

    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("ledger*")} == {0o600}


def test_a_ledger_of_another_version_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    database = sqlite3.connect(tmp_path / "ledger")
    database.execute("PRAGMA user_version = 2")
    database.close()

    with pytest.raises(ConfigError, match="it has version 2, this vdev writes 1"):
        Ledger(tmp_path / "ledger")
