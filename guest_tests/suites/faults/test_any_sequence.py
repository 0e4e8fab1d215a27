"""After any sequence of injections `clear` returns the unit and its endpoints to normal operation, the guest's driver
running on; where an action is terminal by nature, after that driver has started its device anew.

VDEV_TIER=soak injects 2,000 faults.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import suppress
from typing import Any

import pytest
from field import PATIENCE_S, Field

from guest_tests.payload.direct import DmaArena, RingViolation, Viommu
from guest_tests.payload.direct.wait import until
from guest_tests.payload.fault_fixtures import Faults
from guest_tests.payload.fixtures import OpenAccel
from guest_tests.payload.host import Host

SOAK = os.environ.get("VDEV_TIER") == "soak"  # of the host, which keeps the time
COUNTS = {"normal": 80, "soak": 2000}
SEED = 9
NRULES, NACTS = 4, 12
QUOTA = 1000

# What each action is given. An action that is not here is in NOT_HERE with the reason.
PARAMETERS: dict[str, dict[str, Any]] = {
    "request status": {"status": "NOMEM"},
    "request hold": {},
    "request drop": {},
    "request twice": {},
    "request used-length": {"nbytes": 0},
    "request reorder": {"behind": 2},
    "request probe-truncate": {"nbytes": 3},
    "request probe-corrupt": {"offset": 1, "nbytes": 9},
    "invalidation stale": {"seconds": 5.0},
    "invalidation early": {},
    "translation unmapped": {},
    "translation no-permission": {},
    "translation wrong-domain": {"domain": 99},
    "translation aperture": {"start": 0x20_0000, "end": 0x2F_FFFF},
    "dma unsupported-request": {},
    "dma completer-abort": {},
    "dma delay": {"seconds": 0.02},
    "dma partial": {"nbytes": 100},
    "dma corrupt": {},
    "event drop": {},
    "event duplicate": {},
    "event delay": {"seconds": 5.0},
    "event unknown-reason": {},
    "interrupt lose": {},
    "interrupt delay": {"seconds": 5.0},
    "pasid exhausted": {},
    "pasid quota": {},
    "pasid unreachable": {},
    "register stuck": {"value": 0},
    "remove": {"function": "accel0"},
    "needs-reset": {"function": "iommu0"},
    "config-change": {"function": "iommu0"},
    "flr": {"function": "accel0"},
    "aer": {"function": "accel0", "root": False},
    "spurious": {"function": "accel0", "vector": 1},
    "flood": {"unit": "iommu0"},
    "reclaim": {},
    "quota-order": {"quota": 1},
    "stall": {"seconds": 0.01},
}
NOT_HERE = {"die": "it ends the backend, and the VM with it"}
NOT_ON_VHOST_USER = ("needs-reset",)
# After these a driver starts its device anew, as docs/faults.md says of each.
DRIVERS_PART = {"remove", "twice", "needs-reset", "flr"}
MAX_LOG = 4096
MAX_ROUNDS = 600
NORMAL_SEES = 15  # different actions at least; soak all


def key_of(at: str, do: str) -> str:
    """An action's key in PARAMETERS; the same everywhere for one that is free."""
    return do if do in PARAMETERS or do in NOT_HERE else f"{at} {do}"


def choices(host: Host, attach: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Every action at every point it may stand at, with parameters: AssertionError if one is unknown here."""
    found = []
    for row in host.control("query-fault-actions"):
        for point in row["at"]:
            key = key_of(point, row["do"])
            if key in NOT_HERE or (attach == "vhost-user" and key in NOT_ON_VHOST_USER):
                continue
            assert key in PARAMETERS, f"the soak does not know {key}"
            found.append((point, row["do"], PARAMETERS[key]))
    return found


def rule_of(chance: random.Random, choice: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    """A rule of one choice, that fires soon."""
    at, do, parameters = choice
    if at == "timer":
        when: dict[str, Any] = {"delay": chance.choice((0.0, 0.01))}
    else:
        when = chance.choice(({}, {"nth": chance.randint(1, 4)}, {"every": 2}, {"probability": 0.5}))
    return {"at": at, "do": do, "with": parameters, "when": when, "times": chance.randint(1, 6)}


class Soak:
    """Rounds of injections at one field, counted."""

    def __init__(self, scene: Field, faults: Faults, host: Host, attach: str) -> None:
        self.scene = scene
        self.injected = self.rounds = 0
        self.seen: set[str] = set()  # actions that were done
        self.known = choices(host, attach)
        self._faults = faults
        self._host = host

    def round(self) -> None:
        """A few rules, a few acts, `clear`; then all is normal, or AssertionError."""
        before = self._host.control("query-fault-plan")["next-seq"]
        self._faults.load({"seed": self.rounds, "rules": [rule_of(self.scene.random, one) for one in self._some()]})
        with suppress(RingViolation):  # two answers to one request: nothing more can be asked
            for _ in range(NACTS):
                self.scene.act()
        fired = self._host.control("query-fault-log", since=before, limit=MAX_LOG)
        self._faults.clear()
        self.rounds += 1
        self.injected += len(fired)
        done = {row["do"] for row in fired}
        self.seen |= {key_of(row["at"], row["do"]) for row in fired}
        # Over vhost-user QEMU may die of a configuration change that arrives while its device is reset.
        assert until(lambda: self._host.control("query-pasid-set")["quota"] == QUOTA, PATIENCE_S)
        if done & DRIVERS_PART:
            self.scene.restart()
        else:
            self.scene.settle()
        self.scene.check()
        left = self._host.control("query-fault-plan")
        assert (left["rules"], left["waiting"], left["held-by-none"]) == ([], 0, 0)

    def unseen(self) -> set[str]:
        """Actions that were not done yet."""
        return {key_of(at, do) for at, do, _ in self.known} - self.seen

    def _some(self) -> list[tuple[str, str, dict[str, Any]]]:
        """All in turn, and every other time by chance: each has its turn, and any may come with any."""
        known = self.known
        if self.rounds % 2:
            return [self.scene.random.choice(known) for _ in range(NRULES)]
        return [known[(self.rounds // 2 * NRULES + at) % len(known)] for at in range(NRULES)]


@pytest.mark.soak(count=COUNTS["soak"], seed=SEED)
@pytest.mark.timeout(1800 if SOAK else 90)
def test_clear_returns_everything_to_normal_after_any_sequence(
    viommu: Viommu, open_accel: OpenAccel, dma: DmaArena, faults: Faults, host: Host, machine: dict[str, Any]
) -> None:
    scene = Field(viommu, open_accel(), dma.alloc(), dma.alloc(), random.Random(SEED))
    scene.start()
    scene.check()
    soak, wanted = Soak(scene, faults, host, machine["attach"]), COUNTS[machine["tier"]]

    while soak.injected < wanted or (wanted == COUNTS["soak"] and soak.rounds < MAX_ROUNDS and soak.unseen()):
        soak.round()

    sys.stdout.write(
        f"{soak.injected} faults in {soak.rounds} rounds, {scene.restarts} restarts, {scene.nlate} late answers\n"
        f"actions seen: {sorted(soak.seen)}; acts that failed: {scene.trouble}\n"
    )
    assert not soak.unseen() if machine["tier"] == "soak" else len(soak.seen) >= NORMAL_SEES
