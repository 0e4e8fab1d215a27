"""Which guests a session has at a time: started ahead, ended beside, never more than two. No guest is real here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_tests.runner import pool as pools
from guest_tests.runner.guest import GuestGone
from guest_tests.runner.pool import MAX_LIVE, NeverCameUp, Pool, PoolOptions
from guest_tests.runner.suite import Machine
from qmp_bridge.plan import Options, Parts
from vdev.config import Config, UnitConfig

CONFIG = Config(units=(UnitConfig(name="iommu0"),))
END_S = 0.05


class World:
    """Starts and ends as they happen; guests named in `fails` do not come up."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.fails: set[str] = set()
        self.alive = 0
        self.most = 0

    async def start(self, machine: Machine, *_: object) -> FakeGuest:
        self.happened.append(f"start {machine.id}")
        if machine.id in self.fails:
            raise GuestGone("it panics", [("console", "panic")], None)
        self.alive += 1
        self.most = max(self.most, self.alive)
        return FakeGuest(self, machine)


class FakeGuest:
    """Does nothing, and takes a moment to end."""

    restored = True
    idle = True
    death = None

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.machine = machine

    async def do(self, work: Any) -> None:
        """Files are of no interest."""

    async def close(self) -> None:
        await asyncio.sleep(END_S)
        self.world.alive -= 1
        self.world.happened.append(f"end {self.machine.id}")


def machine(name: str) -> Machine:
    return Machine(name, Path("/nowhere"), CONFIG, "stock", None, None, "", (), "normal")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(pools, "start_guest", world.start)
    return world


@pytest.fixture
def pool(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Pool]:
    monkeypatch.setattr(Pool, "_ready", lambda self, machine, say: (machine, self._options_for(machine)))
    monkeypatch.setattr(Pool, "_options_for", lambda self, machine: Options(parts=Parts((), {}, "", None, None, "tcg")))
    pool = Pool(PoolOptions(tmp_path, False, (), lambda text: None, live=getattr(request, "param", MAX_LIVE)))
    yield pool
    pool.close()


def test_a_guest_that_was_started_ahead_is_the_one_that_is_used(pool: Pool, world: World) -> None:
    pool.guest(machine("a"))
    pool.prepare(machine("b"))

    guest = pool.guest(machine("b"))

    assert guest.machine.id == "b"
    assert world.happened == ["start a", "start b"]


def test_one_guest_at_a_time_is_started_ahead(pool: Pool, world: World) -> None:
    pool.guest(machine("a"))

    pool.prepare(machine("b"))
    pool.prepare(machine("c"))
    pool.guest(machine("b"))

    assert world.happened == ["start a", "start b"]


def test_what_went_wrong_ahead_is_told_when_the_guest_is_asked_for_and_it_is_not_tried_again(
    pool: Pool, world: World
) -> None:
    world.fails.add("b")
    pool.guest(machine("a"))
    pool.prepare(machine("b"))

    with pytest.raises(NeverCameUp, match="b did not come up: it panics") as first:
        pool.guest(machine("b"))
    with pytest.raises(NeverCameUp, match="b did not come up before: it panics"):
        pool.guest(machine("b"))

    assert first.value.sections == [("console", "panic")]
    assert world.happened == ["start a", "start b"]


def test_one_that_worked_before_ends_before_the_next_is_started_ahead(pool: Pool, world: World) -> None:
    for name, following in zip("abcd", "bcde", strict=True):
        pool.guest(machine(name))
        pool.prepare(machine(following))
    pool.guest(machine("e"))

    assert [what for what in world.happened if what.startswith("start")] == [f"start {name}" for name in "abcde"]
    assert world.most == MAX_LIVE


@pytest.mark.parametrize("pool", [1], indirect=True)
def test_where_one_may_live_nothing_is_started_ahead_and_each_ends_before_the_next(pool: Pool, world: World) -> None:
    for name, following in zip("ab", "bc", strict=True):
        pool.guest(machine(name))
        pool.prepare(machine(following))

    assert world.happened == ["start a", "end a", "start b"]
    assert world.most == 1


def test_all_end_when_tests_on_the_host_follow(pool: Pool, world: World) -> None:
    for name in "ab":
        pool.guest(machine(name))

    pool.retire()
    pool.guest(machine("c"))

    assert sorted(world.happened[:4]) == ["end a", "end b", "start a", "start b"]
    assert world.happened[4:] == ["start c"]


def test_the_guest_used_longest_ago_makes_room(pool: Pool, world: World) -> None:
    for name in "abac":
        pool.guest(machine(name))

    assert world.happened == ["start a", "start b", "end b", "start c"]


def test_one_that_was_started_ahead_in_vain_is_ended_with_the_session(pool: Pool, world: World) -> None:
    pool.guest(machine("a"))
    pool.prepare(machine("b"))
    while world.alive < 2:
        pass  # it starts in another thread
    pool.close()

    assert world.alive == 0
