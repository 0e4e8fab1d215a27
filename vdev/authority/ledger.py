"""The authority's state on disk: an SQLite file that is true at every moment, so that a process may die at any.

A change is committed before anybody is told of it. The tables `sets` and `pasids` are the state; `journal` (grants and
releases) and `audit` (orders) are its history, bounded. The file outlives kill -9. It need not outlive a reboot: the
processes it is about do not either.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from vdev.errors import ConfigError, VdevError
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

SCHEMA_VERSION = 1
KEPT = {"journal": 200_000, "audit": 10_000}  # rows of the history, until `keep` says otherwise
PRUNE_EVERY = 512  # rows between two looks at how long the history has become
LOCKED_S = 0.3  # how long somebody else's lock on the file is waited for

_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sets (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, pid INTEGER NOT NULL, start_time INTEGER NOT NULL,
    boot_id TEXT NOT NULL, quota INTEGER NOT NULL, state TEXT NOT NULL
);
CREATE TABLE pasids (
    host INTEGER PRIMARY KEY, set_id INTEGER NOT NULL REFERENCES sets (id), guest INTEGER NOT NULL,
    state TEXT NOT NULL, UNIQUE (set_id, guest)
);
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY, time_us INTEGER NOT NULL, kind TEXT NOT NULL, set_id INTEGER NOT NULL,
    guest INTEGER, host INTEGER, note TEXT
);
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY, time_us INTEGER NOT NULL, uid INTEGER NOT NULL, pid INTEGER NOT NULL,
    on_behalf TEXT NOT NULL, command TEXT NOT NULL, set_id INTEGER, vm TEXT NOT NULL, before TEXT NOT NULL,
    after TEXT NOT NULL, reason TEXT NOT NULL
);
"""


class LedgerError(VdevError):
    """The ledger cannot be written or read now (a full disk, a lock): nothing has changed."""


def _nothing(_: str) -> None:
    """No one watches the steps of a commit."""


class Ledger:
    """Owns the open file. `step` is called with the name of each point of a commit, for tests that die there."""

    def __init__(self, path: Path, *, step: Callable[[str], None] = _nothing) -> None:
        """Open or create `path`. ConfigError when it is no ledger of ours."""
        self._path = path
        self._bounds = dict(KEPT)
        self._step = step
        self._since_pruned = PRUNE_EVERY
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # what SQLite puts beside it is like it
        try:
            self._db = sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None)
        except sqlite3.Error as error:
            raise _unusable(path, str(error)) from None
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, str(error)) from None
        except ConfigError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise _unusable(self._path, f"it has version {version}, this vdev writes {SCHEMA_VERSION}")

    def close(self) -> None:
        """Nothing more will be written."""
        self._db.close()

    # the state

    def load(self) -> Iterator[Change]:
        """The changes that lead from an empty policy to what is written here."""
        ceiling = self.about("ceiling")
        if ceiling is not None:
            yield CeilingChanged(int(ceiling))
        sets = self._db.execute("SELECT id, name, pid, start_time, boot_id, quota, state FROM sets ORDER BY id")
        for set_id, name, pid, start_time, boot_id, quota, state in sets.fetchall():
            yield SetOpened(set_id, name, Owner(pid, start_time, boot_id), quota)
            rows = self._db.execute("SELECT guest, host, state FROM pasids WHERE set_id = ? ORDER BY guest", (set_id,))
            for guest, host, use in rows:
                yield Granted(set_id, guest, host)
                if use != "allocated":
                    yield PasidChanged(set_id, guest, use)
            if state != "held":
                yield SetChanged(set_id, state)

    @property
    def next_set_id(self) -> int:
        """One that was never used: the history names sets by it."""
        return int(self.about("next_set_id") or 1)

    def about(self, key: str) -> str | None:
        """A fact about the whole; None where nobody wrote it down."""
        row = self._db.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep(self, journal: int, audit: int) -> None:
        """So much of the history from now on."""
        self._bounds = {"journal": journal, "audit": audit}

    def forget(self, key: str) -> None:
        """The inverse of `note`. LedgerError."""
        self._transact(lambda: self._db.execute("DELETE FROM about WHERE key = ?", (key,)))

    def note(self, key: str, value: str) -> None:
        """Write a fact down. LedgerError."""
        self._transact(lambda: self._note(key, value))

    def commit(self, changes: Iterable[Change], time_us: int, audit: Audit | None = None) -> None:
        """All of `changes`, and the order they come from, or nothing. LedgerError."""

        def write() -> None:
            for change in changes:
                _WRITE[type(change)](self, change, time_us)
            if audit is not None:
                self._db.execute(
                    "INSERT INTO audit (time_us, uid, pid, on_behalf, command, set_id, vm, before, after, reason) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (time_us, audit.uid, audit.pid, audit.on_behalf, audit.command, audit.set_id, audit.vm,
                     audit.before, audit.after, audit.reason),
                )  # fmt: skip
                self._since_pruned += 1
            if self._since_pruned >= PRUNE_EVERY:
                self._prune()

        self._transact(write)

    def _transact(self, write: Callable[[], object]) -> None:
        self._step("before")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                write()
                self._step("written")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise  # two owners of one PASID, refused by the file itself: a bug of ours
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self._path} cannot be written: {error}") from None
        self._step("committed")

    def _prune(self) -> None:
        self._since_pruned = 0
        for table, most in self._bounds.items():
            self._db.execute(f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?", (most,))

    # the history

    def audit(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` orders, the latest first."""
        return self._rows(
            "SELECT seq, time_us, uid, pid, on_behalf, command, set_id, vm, before, after, reason FROM audit "
            "ORDER BY seq DESC LIMIT ?",
            (limit,),
        )

    def journal(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` grants, releases, beginnings and ends, the latest first."""
        return self._rows("SELECT * FROM journal ORDER BY seq DESC LIMIT ?", (limit,))

    def _rows(self, text: str, values: tuple[int, ...]) -> list[dict[str, Any]]:
        with closing(self._db.execute(text, values)) as cursor:
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    # one change each

    def _note(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))

    def _record(self, time_us: int, kind: str, set_id: int, guest: int | None, host: int | None, note: str) -> None:
        self._db.execute(
            "INSERT INTO journal (time_us, kind, set_id, guest, host, note) VALUES (?, ?, ?, ?, ?, ?)",
            (time_us, kind, set_id, guest, host, note),
        )
        self._since_pruned += 1

    def _opened(self, change: SetOpened, time_us: int) -> None:
        owner = change.owner
        self._db.execute(
            "INSERT INTO sets VALUES (?, ?, ?, ?, ?, ?, 'held')",
            (change.set_id, change.name, owner.pid, owner.start_time, owner.boot_id, change.quota),
        )
        self._note("next_set_id", str(change.set_id + 1))
        self._record(time_us, "open", change.set_id, None, None, change.name)

    def _set_changed(self, change: SetChanged, time_us: int) -> None:
        self._db.execute("UPDATE sets SET state = ? WHERE id = ?", (change.state, change.set_id))
        self._record(time_us, change.state, change.set_id, None, None, "")

    def _ended(self, change: SetEnded, time_us: int) -> None:
        self._db.execute(
            "INSERT INTO journal (time_us, kind, set_id, guest, host, note) "
            "SELECT ?, 'release', set_id, guest, host, 'end' FROM pasids WHERE set_id = ?",
            (time_us, change.set_id),
        )
        self._since_pruned += self._db.execute("DELETE FROM pasids WHERE set_id = ?", (change.set_id,)).rowcount
        self._db.execute("DELETE FROM sets WHERE id = ?", (change.set_id,))
        self._record(time_us, "end", change.set_id, None, None, change.why)

    def _quota_changed(self, change: QuotaChanged, time_us: int) -> None:
        self._db.execute("UPDATE sets SET quota = ? WHERE id = ?", (change.quota, change.set_id))
        self._record(time_us, "quota", change.set_id, None, None, str(change.quota))

    def _ceiling_changed(self, change: CeilingChanged, time_us: int) -> None:
        self._note("ceiling", str(change.ceiling))
        self._record(time_us, "ceiling", 0, None, None, str(change.ceiling))

    def _granted(self, change: Granted, time_us: int) -> None:
        self._db.execute("INSERT INTO pasids VALUES (?, ?, ?, 'allocated')", (change.host, change.set_id, change.guest))
        self._record(time_us, "grant", change.set_id, change.guest, change.host, "")

    def _pasid_changed(self, change: PasidChanged, time_us: int) -> None:
        where = (change.state, change.set_id, change.guest)
        self._db.execute("UPDATE pasids SET state = ? WHERE set_id = ? AND guest = ?", where)

    def _released(self, change: Released, time_us: int) -> None:
        ((host,),) = self._db.execute(
            "DELETE FROM pasids WHERE set_id = ? AND guest = ? RETURNING host", (change.set_id, change.guest)
        ).fetchall()
        self._record(time_us, "release", change.set_id, change.guest, host, "")


_WRITE: dict[type, Callable[[Ledger, Any, int], None]] = {
    SetOpened: Ledger._opened,
    SetChanged: Ledger._set_changed,
    SetEnded: Ledger._ended,
    QuotaChanged: Ledger._quota_changed,
    CeilingChanged: Ledger._ceiling_changed,
    Granted: Ledger._granted,
    PasidChanged: Ledger._pasid_changed,
    Released: Ledger._released,
}


def _unusable(path: Path, problem: str) -> ConfigError:
    cure = "end the VMs of this host that have PASIDs, then move the file away"
    return ConfigError(str(path), f"is no ledger that can be used: {problem}", cure)
