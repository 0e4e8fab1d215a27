"""A unit under rules, traffic, stops and resets by chance: nothing breaks, and after `clear` everything is answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import flight
from tests.support.fault_scene import FaultScene
from tests.support.flight import BUFFER, OK, PAGE, Attachment
from tests.support.virtio_pci import RAM_GPA, RAM_NBYTES
from vdev.functions.vhost import VhostCarrier

attach = flight.attach  # a fixture
SEEDS = range(12)
NSTEPS = 150
RULES: list[tuple[str, str, dict[str, Any]]] = [
    ("request", "status", {"status": "NOMEM"}),
    ("request", "status", {"status": "DEVERR", "perform": True}),
    ("request", "hold", {}),
    ("request", "hold", {"seconds": 0.5}),
    ("request", "drop", {}),
    ("request", "reorder", {"behind": 2}),
    ("invalidation", "stale", {"seconds": 0.5}),
    ("invalidation", "stale", {"accesses": 2}),
    ("invalidation", "early", {}),
    ("event", "drop", {}),
    ("event", "duplicate", {}),
    ("event", "delay", {"seconds": 0.3}),
    ("event", "flood", {"records": 3}),
]


class Play:
    """One scene and its dice. `away`: guest memory of the unit, while it is not there."""

    def __init__(self, attach: Attachment, seed: int) -> None:
        self.random = random.Random(seed)
        self.scene = FaultScene(attach, latency_us=self.random.choice((0, 1000)))
        self.scene.set_up()
        self.expected = 0  # answers

    def step(self) -> None:
        self.random.choices([step for step, _ in STEPS], [weight for _, weight in STEPS])[0](self)

    def rule(self) -> None:
        at, do, parameters = self.random.choice(RULES)
        self.scene.add(at, do, when={"probability": self.random.choice((0.3, 1.0))}, parameters=parameters)

    def ask(self) -> None:
        scene, page = self.scene, BUFFER + self.random.randrange(6) * PAGE
        wanted = [
            self.random.choice(
                [scene.map(page, RAM_GPA + page), scene.unmap(page), scene.attach(), scene.detach(), scene.map_ring()]
            )
            for _ in range(self.random.randrange(1, 4))
        ]
        for request in wanted:
            if len(scene.requests.free) < 2:
                return  # the ring is full of what is held
            self.expected += 1
            scene.post(request)
        self.reap()

    def reap(self) -> None:
        self.expected -= len(self.scene.answers())

    def access(self) -> None:
        scene = self.scene
        if scene.nflights < 4 and scene.accels["accel0"].read(4):
            scene.fill(BUFFER + self.random.randrange(6) * PAGE)

    def land(self) -> None:
        self.scene.pass_time(self.random.choice((0.001, 0.2, 1.1)))
        self.reap()

    def release(self) -> None:
        self.scene.faults.release()
        self.scene.run()
        self.reap()

    def clear(self) -> None:
        self.scene.faults.clear()
        self.scene.run()
        self.reap()

    def stop(self) -> None:
        """QMP stop and cont over vhost-user; else guest memory goes and comes back."""
        scene = self.scene
        if isinstance(scene.function, VhostCarrier):
            bases = scene.suspend_rings()
            self.land()
            scene.enable_rings(*bases)
        else:
            memory = scene.function.memory
            (region,) = memory.remove(RAM_GPA, RAM_NBYTES)
            scene.function.memory_changed()
            scene.pass_time(0.7)
            memory.add(region)
            scene.function.memory_changed()
        scene.run()
        self.reap()

    def reset(self) -> None:
        if isinstance(self.scene.function, VhostCarrier):
            self.scene.suspend_rings()
        self.scene.start_unit()
        self.expected = 1
        self.scene.post(self.scene.attach())
        self.reap()


STEPS: list[tuple[Callable[[Play], None], int]] = [
    (Play.ask, 20), (Play.access, 8), (Play.land, 8), (Play.rule, 6), (Play.release, 2), (Play.clear, 2),
    (Play.stop, 2), (Play.reset, 1),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_after_clear_everything_is_answered_and_works(attach: Attachment, seed: int) -> None:
    play = Play(attach, seed)

    for _ in range(NSTEPS):
        play.step()
    play.clear()
    play.scene.pass_time(2)
    play.reap()

    assert (play.expected, play.scene.held()) == (0, 0)
    assert play.scene.unit.doors["accel0"].translator is play.scene.engine
    play.reset()
    play.scene.faults.clear()
    assert play.scene.ask(play.scene.attach(domain=3), play.scene.map(0x1000, 0, domain=3)) == [OK, OK]
    assert not play.scene.device.ring_errors
