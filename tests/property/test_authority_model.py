"""The authority's decisions and its ledger against a model of them, with crashes at every point of every commit.

VDEV_TIER=soak takes 100,000 steps of each kind of host. A crash is one that the ledger sees: the process stops at a
point of a commit, and another one begins with what is in the file. After each step the policy, the file and the model
must say the same.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.support.authority_model import Model, ModelVm
from vdev.authority.desk import Desk
from vdev.authority.ledger import Ledger
from vdev.authority.settings import HostConfig
from vdev.host.audit import Audit
from vdev.host.changes import Owner
from vdev.host.policy import STOP_PASID, AllocationRefused, PolicyError

SOAK = os.environ.get("VDEV_TIER") == "soak"
STEPS = 100_000 if SOAK else 1000  # of each of four
TOP = 60
Space = Literal["system", "per-vm"]
Overcommit = Literal["share", "reserve"]
WHO = Audit(1000, 1, "", "test", None, "", "", "")
POINTS = ("before", "written", "committed")
CRASH_SHARE = 0.08
NEXT = {
    "allocated": {"attached", "free-pending", "quarantined"},
    "attached": {"allocated", "free-pending", "quarantined"},
    "free-pending": {"quarantined"},
    "quarantined": set(),
}


class Crash(BaseException):
    """The process ends here."""


class Play:
    """One host: real desk and ledger beside the model."""

    def __init__(self, path: Path, seed: int, space: Space, overcommit: Overcommit) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.config = HostConfig(
            space=space, overcommit=overcommit, reserved=("3..7", f"{TOP + 1}..0xfffff"), capacity=50, quota=12,
            max_quota=40,
        )  # fmt: skip
        self.model = Model(space, 50, overcommit, frozenset(range(3, 8)), TOP, 40)
        self.crash_at = ""
        self.counts: Counter[str] = Counter()
        self.pids = iter(range(1, 1 << 30))
        self.begin()

    def begin(self) -> None:
        self.ledger = Ledger(self.path, step=self.step)
        self.ledger.keep(1 << 20, 1 << 20)
        self.desk = Desk(self.config, self.ledger, lambda: 0)

    def step(self, point: str) -> None:
        if point == self.crash_at:
            self.counts[f"crash {point}"] += 1
            raise Crash

    def run(self, act: Callable[[], object], true: Callable[[], None]) -> None:
        """Do `act`, then make it `true` in the model; a crash before the commit leaves everything as it was."""
        self.crash_at = self.random.choice(POINTS) if self.random.random() < CRASH_SHARE else ""
        try:
            act()
        except Crash:
            point, self.crash_at = self.crash_at, ""
            if point == "committed":
                true()
            self.ledger.close()
            self.begin()
            return
        self.crash_at = ""
        true()

    def some_vm(self) -> int | None:
        return self.random.choice(list(self.model.vms)) if self.model.vms else None

    def some_pasids(self, set_id: int) -> list[int]:
        """A few it has, and one it may not have."""
        uses = list(self.model.vms[set_id].uses)
        return [*self.random.sample(uses, min(len(uses), self.random.randint(0, 3))), self.random.randint(1, 70)]

    # acts

    def open(self) -> None:
        quota = self.random.choice([None, 0, 1, 5, 20, 40, 41])
        asked = self.config.quota if quota is None else quota
        number = next(self.pids)
        name, owner = f"vm{number}", Owner(number, number, "boot")
        set_id = self.desk.policy.next_set_id
        if not self.model.allows_quota(asked, 0):
            with pytest.raises(PolicyError):
                self.desk.open(name, owner, quota)
            self.counts["open refused"] += 1
            return

        def true() -> None:
            self.model.vms[set_id] = ModelVm(name, owner, asked)

        self.run(lambda: self.desk.open(name, owner, quota), true)

    def claim(self) -> None:
        set_id = self.some_vm()
        if set_id is None:
            return
        vm = self.model.vms[set_id]

        def true() -> None:
            vm.state = "held" if vm.state == "quarantined" else vm.state

        self.run(lambda: self.desk.open(vm.name, vm.owner, None), true)

    def allocate(self) -> None:
        set_id = self.some_vm()
        if set_id is None:
            return
        first, stop = self.random.choice([(1, STOP_PASID), (1, 10), (3, 8), (20, 30), (55, 70), (9, 9), (9, 10)])
        expected = self.model.refusal(set_id, first, stop)
        if expected is not None:
            with pytest.raises(AllocationRefused) as refused:
                self.desk.allocate(set_id, first, stop)
            assert refused.value.why == expected
            self.counts[f"refused {expected}"] += 1
            return
        found: list[int] = []

        def true() -> None:
            new = (
                set(self.desk.policy.sets[set_id].pasids) if found else self.in_file(set_id)
            )  # answered, or only written down
            (pasid,) = new - self.model.vms[set_id].uses.keys()
            assert first <= pasid < stop
            assert self.model.is_free(set_id, pasid)
            assert found in ([], [pasid])
            self.model.vms[set_id].uses[pasid] = "allocated"

        self.run(lambda: found.append(self.desk.allocate(set_id, first, stop)), true)

    def in_file(self, set_id: int) -> set[int]:
        with sqlite3.connect(self.path) as database:
            found = {guest for (guest,) in database.execute("SELECT guest FROM pasids WHERE set_id = ?", (set_id,))}
        database.close()
        return found

    def tell(self) -> None:
        set_id = self.some_vm()
        if set_id is None:
            return
        pasids = self.some_pasids(set_id)
        state = self.random.choice(["allocated", "attached", "free-pending"])

        def true() -> None:
            uses = self.model.vms[set_id].uses
            uses.update((pasid, state) for pasid in pasids if pasid in uses and state in NEXT[uses[pasid]])

        self.run(lambda: self.desk.tell(set_id, pasids, state), true)  # type: ignore[arg-type]

    def release(self) -> None:
        set_id = self.some_vm()
        if set_id is None:
            return
        pasids = self.some_pasids(set_id)

        def true() -> None:
            for pasid in pasids:
                self.model.vms[set_id].uses.pop(pasid, None)

        self.run(lambda: self.desk.release(set_id, pasids), true)

    def quarantine(self) -> None:
        set_id = self.some_vm()
        if set_id is None:
            return

        def true() -> None:
            vm = self.model.vms[set_id]
            vm.state = "quarantined" if vm.state == "held" else vm.state

        self.run(lambda: self.desk.quarantine(set_id), true)

    def end(self) -> None:
        set_id = self.some_vm()
        if set_id is None or self.random.random() < 0.5:
            return
        self.run(lambda: self.desk.end(set_id, "dead"), lambda: _forget(self.model, set_id))

    def quota(self) -> None:
        set_id = self.some_vm()
        if set_id is None:
            return
        vm = self.model.vms[set_id]
        quota = self.random.choice([0, 2, 10, 25, 40, 41])
        if not self.model.allows_quota(quota, max(vm.quota, len(vm.uses))):
            with pytest.raises(PolicyError):
                self.desk.set_quota(str(set_id), quota, WHO)
            self.counts["quota refused"] += 1
            return

        def true() -> None:
            vm.quota = quota

        self.run(lambda: self.desk.set_quota(str(set_id), quota, WHO), true)

    def capacity(self) -> None:
        ceiling = self.random.choice([0, 10, 40, 50, 50, 50, 200])

        def true() -> None:
            self.model.ceiling = ceiling

        self.run(lambda: self.desk.set_ceiling(ceiling, WHO), true)

    def reclaim(self) -> None:
        set_id = self.some_vm()
        if set_id is None:
            return
        vm, force = self.model.vms[set_id], self.random.random() < 0.5
        pasid = self.random.choice([*vm.uses, 69])
        if pasid not in vm.uses:
            with pytest.raises(PolicyError):
                self.desk.reclaim(str(set_id), pasid, force, WHO)
            return
        self.run(lambda: self.desk.reclaim(str(set_id), pasid, force, WHO), lambda: _take(vm, [pasid], force))

    def fence(self) -> None:
        set_id = self.some_vm()
        if set_id is None or self.random.random() < 0.8:
            return
        vm, force = self.model.vms[set_id], self.random.random() < 0.5
        if vm.state == "quarantined" and not force:
            with pytest.raises(PolicyError):
                self.desk.reclaim(str(set_id), None, force, WHO)
            return

        def true() -> None:
            vm.state = "fenced"
            _take(vm, list(vm.uses), force)

        self.run(lambda: self.desk.reclaim(str(set_id), None, force, WHO), true)

    def restart(self) -> None:
        self.ledger.close()
        self.begin()

    # what must hold

    def check(self) -> None:
        """Policy, file and model agree; no PASID has two owners."""
        sets = self.desk.policy.sets
        state = {
            one.id: (one.name, one.quota, one.state, {guest: pasid.state for guest, pasid in one.pasids.items()})
            for one in sets.values()
        }
        assert state == self.model.state()
        assert self.desk.policy.used == self.model.used
        hosts = [pasid.host for one in sets.values() for pasid in one.pasids.values()]
        assert len(hosts) == len(set(hosts))
        assert all(host <= TOP and host not in self.model.reserved for host in hosts)
        if self.model.space == "system":
            assert all(pasid.host == guest for one in sets.values() for guest, pasid in one.pasids.items())

    def check_file(self) -> None:
        """What another process would begin with."""
        before = sorted(self.desk.policy.dump(), key=repr)
        self.restart()
        assert sorted(self.desk.policy.dump(), key=repr) == before


def _forget(model: Model, set_id: int) -> None:
    del model.vms[set_id]


def _take(vm: ModelVm, pasids: list[int], force: bool) -> None:
    for pasid in pasids:
        if force:
            del vm.uses[pasid]
        else:
            vm.uses[pasid] = "quarantined"


ACTS: list[tuple[Callable[[Play], None], int]] = [
    (Play.open, 3), (Play.claim, 4), (Play.allocate, 30), (Play.tell, 12), (Play.release, 8), (Play.quarantine, 2),
    (Play.end, 3), (Play.quota, 4), (Play.capacity, 1), (Play.reclaim, 3), (Play.fence, 1), (Play.restart, 1),
]  # fmt: skip


@pytest.mark.soak(count=STEPS, seed=8)
@pytest.mark.parametrize("overcommit", ["share", "reserve"])
@pytest.mark.parametrize("space", ["system", "per-vm"])
def test_policy_ledger_and_model_agree_whatever_happens_and_wherever_the_process_ends(
    tmp_path: Path, space: Space, overcommit: Overcommit, record_property: Callable[[str, object], None]
) -> None:
    play = Play(tmp_path / "ledger", 8, space, overcommit)
    acts, weights = zip(*ACTS, strict=True)

    for number in range(STEPS):
        play.random.choices(acts, weights)[0](play)
        play.check()
        if number % 100 == 0:
            play.check_file()
    play.ledger.close()

    crashes = {point: play.counts[f"crash {point}"] for point in POINTS}
    record_property("crashes", sum(crashes.values()))
    assert all(crashes.values()), play.counts
    assert {"refused quota", "refused supply", "refused range", "refused fenced"} <= play.counts.keys()
