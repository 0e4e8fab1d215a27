"""Where wishes become facts: the policy decides, the ledger keeps, and only then is it so. No sockets here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from vdev.authority.ledger import Ledger
from vdev.authority.settings import HostConfig
from vdev.errors import ConfigError
from vdev.host.audit import Audit
from vdev.host.changes import Change, Granted, Owner, PasidState, SetOpened
from vdev.host.policy import FIRST_PASID, STOP_PASID, GuestSet, Policy


def _nothing(_: Change) -> None:
    """Nobody listens."""


class Desk:
    """The authority's state and its ledger. `clock_us` tells the time of the history."""

    def __init__(self, config: HostConfig, ledger: Ledger, clock_us: Callable[[], int]) -> None:
        """What the ledger says is so from the start. ConfigError where `config` contradicts it."""
        self.config = config
        self._ledger = ledger
        self._clock_us = clock_us
        self.told: Callable[[Change], None] = _nothing  # hears every change that is in the ledger
        self.policy = Policy(config.policy())
        reserved = self.policy.settings.reserved
        for change in ledger.load():
            if isinstance(change, Granted) and any(first <= change.host < stop for first, stop in reserved):
                problem = f"PASID {change.host:#x} is reserved, and a guest has it"
                raise ConfigError("reserved", problem, "end that VM, or reserve others")
            self.policy.apply(change)
        self.policy.next_set_id = max(self.policy.next_set_id, ledger.next_set_id)

    @property
    def bounds(self) -> tuple[int, int]:
        """[first, stop) of what is not reserved at either end: no guest of a system space has one outside."""
        first, stop = FIRST_PASID, STOP_PASID
        reserved = sorted(self.policy.settings.reserved)
        for start, end in reserved:
            if start <= first:
                first = max(first, end)
        for start, end in sorted(reserved, key=lambda piece: piece[1], reverse=True):
            if end >= stop:
                stop = min(stop, start)
        return first, stop

    def _do(self, changes: Sequence[Change], audit: Audit | None = None) -> None:
        """LedgerError: nothing has changed."""
        if changes or audit is not None:
            self._ledger.commit(changes, self._clock_us(), audit)
        for change in changes:
            self.told(change)
            self.policy.apply(change)

    # of backends

    def open(self, name: str, owner: Owner, quota: int | None) -> tuple[GuestSet, bool]:
        """The set of `owner`, claimed if it has one. PolicyError, LedgerError."""
        known = self.policy.find(owner)
        if known is not None:
            self._do(self.policy.claim(known.id))
            return known, True
        changes = self.policy.open(name, owner, self.config.quota_of(name, quota))
        self._do(changes)
        (opened,) = (change for change in changes if isinstance(change, SetOpened))
        return self.policy.sets[opened.set_id], False

    def allocate(self, set_id: int, first: int, stop: int) -> int:
        """The number the guest knows. AllocationRefused, LedgerError."""
        changes = self.policy.allocate(set_id, first, stop)
        self._do(changes)
        (granted,) = (change for change in changes if isinstance(change, Granted))
        return granted.guest

    def tell(self, set_id: int, guests: Iterable[int], state: PasidState) -> None:
        """The guest's use of these has changed; what they cannot become is passed over. LedgerError."""
        if state == "free-pending":
            self._do(self.policy.free_pending(set_id, guests))
        else:
            is_attached = state == "attached"
            told = (self.policy.attached(set_id, guest, is_attached) for guest in dict.fromkeys(guests))
            self._do([change for changes in told for change in changes])

    def release(self, set_id: int, guests: Iterable[int]) -> None:
        """Nothing uses these any more. LedgerError."""
        self._do(self.policy.release(set_id, guests))

    def quarantine(self, set_id: int) -> None:
        """The set's backend is gone. LedgerError."""
        self._do(self.policy.quarantine(set_id))

    def end(self, set_id: int, why: str) -> None:
        """The set's process is proven dead. LedgerError."""
        self._do(self.policy.end(set_id, why))

    # of administrators: each is in the audit, with what was and what is

    def set_quota(self, vm: str, quota: int, who: Audit) -> GuestSet:
        """PolicyError, LedgerError."""
        known = self.policy.named(vm)
        changes = self.policy.set_quota(known.id, quota)
        self._do(changes, _of(who, known, str(known.quota), str(quota)))
        return known

    def set_ceiling(self, ceiling: int, who: Audit) -> None:
        """PolicyError, LedgerError."""
        changes = self.policy.set_ceiling(ceiling)
        self._do(changes, replace(who, before=str(self.policy.ceiling), after=str(ceiling)))

    def reclaim(self, vm: str, pasid: int | None, force: bool, who: Audit) -> tuple[GuestSet, list[int]]:
        """Take one PASID, or with None all and every other one to come, from a set; those it is about now.

        PolicyError, LedgerError.
        """
        known = self.policy.named(vm)
        if pasid is None:
            changes = self.policy.fence(known.id, force=force)
            taken = list(known.pasids)
        else:
            changes = self.policy.reclaim(known.id, [pasid], force=force)
            taken = [pasid]
        before = f"{known.state}, {known.used} used" if pasid is None else known.pasids[pasid].state
        after = ("fenced, " if pasid is None else "") + ("freed by force" if force else "quarantined until drained")
        self._do(changes, _of(who, known, before, f"{'all' if pasid is None else f'{pasid:#x}'}: {after}"))
        return known, taken

    # queries

    def audit(self, limit: int) -> list[dict[str, Any]]:
        """The last orders, the latest first."""
        return self._ledger.audit(limit)


def _of(who: Audit, known: GuestSet, before: str, after: str) -> Audit:
    return replace(who, set_id=known.id, vm=known.name, before=before, after=after)
