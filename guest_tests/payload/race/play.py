"""The races there are, and how one is played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ..direct import Detach
from . import acts
from .errors import RaceError
from .field import DOMAIN, ELSEWHERE, Field
from .ground import Operand, Piece
from .match import Match
from .tally import Tally


@dataclass(frozen=True, slots=True)
class Race:
    """`prepare` comes before the operations are started, `revive` after the act, `repair` at the end of all."""

    act: acts.Act
    prepare: Callable[[Match], None] = Match.map_operands
    revive: Callable[[Match], None] | None = None
    repair: Callable[[Match], None] | None = None
    beside: float = 0.3  # how often another engine works as well
    shares: bool = False  # and may have the same target
    needs_freeze: bool = False
    cuts: bool = True  # whether an operation may be ended in the middle
    waits: bool = False  # whether requests are likely to wait


def play(field: Field, seed: int, name: str, number: int, tally: Tally | None = None) -> None:
    """Race `number` of those of `name` with this seed. RaceError where something moved that must not."""
    rng, race = Random(f"{seed}:{name}:{number}"), RACES[name]
    match = Match(field, rng)
    try:
        _play(match, race)
    except RaceError as error:
        raise RaceError(f"seed {seed}, race {name!r}, number {number}: {error}") from error
    if tally is not None:
        tally.add(match.main, any(wish.answered_ns > wish.asked_ns for wish in match.wishes if wish.affected))


def _play(match: Match, race: Race) -> None:
    rng, field, clock = match.rng, match.field, match.clock
    race.prepare(match)
    if rng.random() < race.beside:
        match.shared = race.shares and rng.random() < 0.5
        match.add_beside()
    rng.shuffle(match.jobs)
    clock.turn(rng.random() < 0.5)
    started = clock.now()
    for job in match.jobs:
        match.tell(f"doorbell of {job.accel.function.bdf}")
        job.start()
        if rng.random() < 0.5:
            clock.until(clock.now() + rng.randrange(field.latency_ns + 1))
    _choose_time(match, started)
    match.tell("the act")
    race.act(match)
    match.tell("the act is over")
    if race.revive is not None:
        race.revive(match)
    match.settle()
    match.judge()
    _repair(match, race)


def _choose_time(match: Match, started: int) -> None:
    """Before, at, between and after the landings there may be."""
    rng, latency_ns = match.rng, match.field.latency_ns
    if not latency_ns or (not match.clock.is_exact and rng.random() < 0.4):
        return  # at once: to draw a time takes some in a guest
    nslices = -(-match.main.operands[0].nbytes // match.field.slice_nbytes)
    when = started + rng.randrange(nslices + 2) * latency_ns + rng.choice((-1, 0, 0, 1, rng.randrange(latency_ns)))
    match.clock.until(max(when, match.clock.now()), asleep=rng.random() < 0.5)


def _repair(match: Match, race: Race) -> None:
    """The field as it was."""
    field = match.field
    if race.repair is not None:
        race.repair(match)
    match.clean_up()
    for job in match.jobs:
        if not job.accel.is_running or (match.restarted and job is match.main):
            job.accel.function.awake()
            job.accel.start(field.ring_iova(job.accel))


def attach_again(match: Match) -> None:
    """Back to its domain."""
    match.field.viommu.attach(domain=DOMAIN, endpoint=match.main.accel.endpoint)


def attach_other_again(match: Match) -> None:
    """The third engine back to a domain that has all rings again."""
    field = match.field
    field.viommu.attach(domain=ELSEWHERE, endpoint=field.accels[2].endpoint)
    for accel in field.accels:
        field.viommu.map_buffer(ELSEWHERE, field.ring_iova(accel), accel.ring)


def map_ring_again(match: Match) -> None:
    """The main engine's ring back to its place."""
    accel = match.main.accel
    match.field.viommu.map_buffer(DOMAIN, match.field.ring_iova(accel), accel.ring)


def new_driver(match: Match) -> None:
    """A driver finds the unit reset. Over vhost-user the unit learns of it now, and engines stood still until now."""
    if not match.has_rings:
        match.give_rings_back()


def set_up_again(match: Match) -> None:
    """All domains are gone."""
    match.mapped.clear()
    match.field.start_anew()


def prepare_bypass(match: Match) -> None:
    """The endpoint is in no domain and bypasses; its operands are where their memory is."""
    viommu, main, rng = match.field.viommu, match.main, match.rng
    viommu.ask(Detach(domain=DOMAIN, endpoint=main.accel.endpoint))
    viommu.bypass = True
    main.accel.start()
    for side in ("src", "dst"):
        old = getattr(main, side)
        if old is not None:
            at = rng.randrange(1, 4096)
            piece = Piece(old.buffer.gpa + at, at, old.nbytes, 0)
            setattr(main, side, Operand(old.buffer, piece.iova, old.nbytes, (piece,), at + old.nbytes + 64))
    match.prepare(main)


def leave_bypass(match: Match) -> None:
    """Back to its domain, its ring at the usual place."""
    attach_again(match)
    match.main.accel.start(match.field.ring_iova(match.main.accel))


RACES: dict[str, Race] = {
    "unmap": Race(acts.unmap, shares=True, waits=True),
    "remap": Race(acts.remap, cuts=False, waits=True),
    "unmap-elsewhere": Race(acts.unmap_elsewhere, cuts=False),
    "unmap-ring": Race(acts.unmap_ring, repair=map_ring_again, waits=True),
    "unmap-frozen": Race(acts.frozen, needs_freeze=True),
    "detach": Race(acts.detach, repair=attach_again, waits=True),
    "detach-other": Race(acts.detach_other, repair=attach_other_again, cuts=False),
    "reattach": Race(acts.reattach, repair=attach_again, waits=True),
    "function-reset": Race(acts.by_register(acts.reset_function)),
    "bus-master-off": Race(acts.by_register(acts.stop_bus_master)),
    "unit-reset": Race(acts.by_register(acts.reset_unit, restarts=False), revive=new_driver, repair=set_up_again),
    "enable-cleared": Race(acts.by_register(acts.clear_enable)),
    "engine-reset": Race(acts.by_register(acts.reset_engine)),
    "bypass-cleared": Race(acts.clear_bypass, prepare=prepare_bypass, repair=leave_bypass, beside=0.0),
}
