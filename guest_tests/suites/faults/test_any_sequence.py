"""After any sequence of injections `clear` returns the unit and its endpoints to normal operation, the guest's driver
running on; where an action is terminal by nature, after that driver has started its device anew.

VDEV_TIER=soak injects 2,000 faults.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from field import Field

from guest_tests.payload.direct import DmaArena, RingViolation, Viommu
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
NEVER_RECOVERS_BY_ITSELF = ("remove", "twice", "needs-reset", "flr")


def choices(host: Host, attach: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Every action at every point it may stand at, with parameters: AssertionError if one is unknown here."""
    found = []
    for row in host.control("query-fault-actions"):
        for point in row["points"]:
            key = row["action"] if row["free"] else f"{point} {row['action']}"
            if key in NOT_HERE or (attach == "vhost-user" and key in NOT_ON_VHOST_USER):
                continue
            assert key in PARAMETERS, f"the soak does not know {key}"
            found.append((point, row["action"], PARAMETERS[key]))
    return found


def rule_of(chance: random.Random, choice: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    """A rule of one choice, that fires soon."""
    at, do, parameters = choice
    if at == "timer":
        when: dict[str, Any] = {"delay": chance.choice((0.0, 0.01))}
    else:
        when = chance.choice(({}, {"nth": chance.randint(1, 4)}, {"every": 2}, {"probability": 0.5}))
    return {"at": at, "do": do, "with": parameters, "when": when, "times": chance.randint(1, 6)}


@pytest.mark.soak(count=COUNTS["soak"], seed=SEED)
@pytest.mark.timeout(1800 if SOAK else 90)
def test_clear_returns_everything_to_normal_after_any_sequence(
    viommu: Viommu,
    open_accel: OpenAccel,
    dma: DmaArena,
    faults: Faults,
    host: Host,
    machine: dict[str, Any],
) -> None:
    chance = random.Random(SEED)
    known = choices(host, machine["attach"])
    scene = Field(viommu, open_accel(), dma.alloc(), dma.alloc(), chance)
    scene.start()
    scene.check()
    wanted, injected, rounds = COUNTS[machine["tier"]], 0, 0
    seen: set[str] = set()
    while injected < wanted or rounds < len(known) / NRULES:
        before = host.control("query-fault-plan")["next-seq"]
        some = [
            known[(rounds * NRULES + at) % len(known)] if not rounds % 2 else chance.choice(known)
            for at in range(NRULES)
        ]
        faults.load({"seed": rounds, "rules": [rule_of(chance, one) for one in some]})
        try:
            for _ in range(NACTS):
                scene.act()
        except RingViolation:
            pass
        fired = host.control("query-fault-log", since=before, limit=4096)
        faults.clear()
        done = {row["do"] for row in fired}
        seen |= done
        injected += len(fired)
        rounds += 1
        recover(scene, done, host)
        scene.check()
        left = host.control("query-fault-plan")
        assert (left["rules"], left["waiting"], left["held-by-none"]) == ([], 0, 0)
    assert len(seen) >= 30, sorted(seen)
    host.note(
        f"{injected} faults in {rounds} rounds, {scene.restarts} restarts, {scene.late} late answers: {scene.trouble}"
    )


def recover(scene: Field, done: set[str], host: Host) -> None:
    """What the driver has to do before it goes on: nothing, unless an action is terminal for it."""
    if done & {*NEVER_RECOVERS_BY_ITSELF}:
        scene.restart()
    else:
        scene.settle()
