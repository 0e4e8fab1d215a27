"""What is done to an operation under way. Each act is one function; `ACTS` is the list.

request             when its answer is there
------------------  ------------------------------------------------------------------------------------------
UNMAP               the memory of the mappings it removed
DETACH              all memory of the endpoint's operations, their ring included
ATTACH elsewhere    all memory it reached before
register access     when it has returned (a posted write: when a read behind it has)
------------------  ------------------------------------------------------------------------------------------
FLR, bus master off, engine reset, ENABLE cleared, status 0 and every other reset of the unit, `bypass` cleared:
all memory of the operations it stops, and the ring as well
"""

from __future__ import annotations

from collections.abc import Callable

from .. import accel as engine
from ..direct import Attach, Detach, Map, Unmap
from .field import DOMAIN, ELSEWHERE
from .ground import Operand, Piece, noise
from .judge import Wish
from .match import Match

Act = Callable[[Match], None]
RINGS_GO_ON = "command"  # the name of a reset after which the unit's rings are the same
COMPLETION_REFUSED = frozenset({engine.ERROR_COMPLETION_WRITE, engine.ERROR_RING_FETCH})


def _nobody() -> None:
    """Nothing changes hands."""


# requests


def choose(match: Match, operand: Operand) -> list[tuple[Piece, ...]]:
    """Which mappings to remove, by how many requests."""
    pieces, rng = operand.pieces, match.rng
    first = rng.randrange(len(pieces))
    last = rng.randrange(first, len(pieces))
    ways: list[list[tuple[Piece, ...]]] = [
        [pieces],
        [pieces],
        [pieces[:1]],
        [pieces[-1:]],
        [pieces[first : last + 1]],
        [pieces[:first], pieces[last:]] if first <= last and first else [pieces],
    ]
    return rng.choice(ways)


def unmapping(match: Match, operand: Operand, pieces: tuple[Piece, ...]) -> Wish:
    """UNMAP of exactly these mappings, or of holes beside them as well."""
    spill = match.scale.granule * match.rng.choice((0, 0, 1, 7))
    start = pieces[0].iova - (spill if pieces[0] is operand.pieces[0] else 0)
    stop = pieces[-1].stop + (spill if pieces[-1] is operand.pieces[-1] else 0)
    for job in match.jobs:
        if operand in job.operands:
            job.may_fault = True
            job.gone += [(operand, *part) for part in operand.bytes_in(pieces)]
    return Wish(Unmap(domain=DOMAIN, virt_start=start, virt_end=stop - 1), lambda: match.take(operand, pieces))


def unmap(match: Match) -> None:
    """One operand, or both, loses mappings."""
    rng, main = match.rng, match.main
    operands = [rng.choice(main.operands)] if rng.random() < 0.8 else main.operands
    match.post([unmapping(match, operand, pieces) for operand in operands for pieces in choose(match, operand)])
    match.wait()


def remap(match: Match) -> None:
    """UNMAP and MAP in one batch: what comes later goes to the new memory, and nothing to the old."""
    main, field = match.main, match.field
    operand = main.dst if main.writes and main.dst else match.rng.choice(main.operands)
    new = Operand(field.other, operand.iova, operand.nbytes, operand.pieces, operand.area_nbytes)
    new.fill(noise(match.rng, new.area_nbytes) if main.writes else operand.before)
    wishes = [unmapping(match, operand, operand.pieces)]
    wishes += [Wish(request, _nobody, affected=False) for request in match.maps(DOMAIN, new)]
    main.may_fault = field.revalidates
    match.mapped.pop()
    match.second = new
    match.post(wishes)
    match.wait()


def unmap_elsewhere(match: Match) -> None:
    """UNMAP of what no operation touches is not held up by them."""
    granule, operand = match.scale.granule, match.rng.choice(match.main.operands)
    start, stop = operand.pieces[0].iova, operand.pieces[-1].stop
    neighbours = [
        (DOMAIN, start - granule, start),
        (DOMAIN, stop, stop + granule),
        (ELSEWHERE, start, stop - stop % granule),
    ]
    gpa = match.field.other.gpa
    match.field.send_all(
        [Map(domain=d, virt_start=a, virt_end=b - 1, phys_start=gpa, flags=3) for d, a, b in neighbours]
    )
    match.clock.until(match.clock.now() + match.rng.randrange(match.field.latency_ns + 1))
    wishes = [Wish(Unmap(domain=d, virt_start=a, virt_end=b - 1), _nobody, affected=False) for d, a, b in neighbours]
    match.rng.shuffle(wishes)
    match.post(wishes)
    match.wait()


def detach(match: Match) -> None:
    """The endpoint leaves its domain, where another one stays."""
    main = match.main
    main.halts = COMPLETION_REFUSED
    match.post([Wish(Detach(domain=DOMAIN, endpoint=main.accel.endpoint), lambda: match.take_everything(main))])
    match.wait()


def detach_other(match: Match) -> None:
    """An endpoint of the same unit that does nothing leaves its domain at once."""
    other = match.field.accels[2]
    match.post([Wish(Detach(domain=ELSEWHERE, endpoint=other.endpoint), _nobody, affected=False)])
    match.wait()


def reattach(match: Match) -> None:
    """ATTACH to a domain that has other memory at the same addresses, or none."""
    main, field = match.main, match.field
    accel = main.accel
    if match.rng.random() < 0.5 or not main.dst or not main.writes:
        main.may_fault = True
        main.gone += [(operand, 0, operand.nbytes) for operand in main.operands]
    else:
        new = Operand(field.other, main.dst.iova, main.dst.nbytes, main.dst.pieces, main.dst.area_nbytes)
        new.fill(noise(match.rng, new.area_nbytes))
        match.map(ELSEWHERE, new)
        if main.src:
            match.map(ELSEWHERE, main.src)
        match.second = new
        main.may_fault = field.revalidates
        main.gone.append((main.dst, 0, main.dst.nbytes))
    operands = main.operands if match.second is None else [main.dst] if main.dst else []

    def taken() -> None:
        for operand in operands:
            match.take(operand, operand.pieces)

    match.post([Wish(Attach(domain=ELSEWHERE, endpoint=accel.endpoint), taken)])
    match.wait()


# registers


def stop_bus_master(match: Match) -> None:
    """Bus master off, and perhaps on again at once: nothing goes on by that."""
    function = match.main.accel.function
    match.main.halts = frozenset({engine.ERROR_BUS_MASTER_OFF})
    function.bus_master(False)
    match.take_everything(match.main)
    function.bus_master(match.rng.random() < 0.3)


def reset_function(match: Match) -> None:
    """Function-level reset, with no time to recover: the device needs none."""
    accel = match.main.accel
    match.main.may_vanish = True
    accel.function.flr(recovery_s=0)
    match.take_everything(match.main)
    if match.rng.random() < 0.3:
        match.must(not accel.error and not accel.registers.read32(engine.STATUS), "not as at power-on")


def clear_enable(match: Match) -> None:
    """ENABLE cleared: the operation is completed as aborted."""
    main = match.main
    main.may_abort = True
    main.accel.registers.write32(engine.CONTROL, 0)
    match.must(not main.accel.is_running, "RUNNING after ENABLE was cleared")


def reset_engine(match: Match) -> None:
    """CONTROL.RESET."""
    match.main.may_vanish = True
    match.main.accel.reset()


def reset_unit(match: Match) -> None:
    """Status 0, or what else the field has: all engines of the unit stop, and its rings are no longer its own."""
    viommu, field = match.field.viommu, match.field
    for job in match.jobs:
        job.halts = frozenset({engine.ERROR_STOPPED})
    rings = [viommu.requests.ring.buffer.memory, viommu.events.ring.buffer.memory]
    match.reports_faults = False
    name = match.rng.choice(["status", *field.resets])
    match.tell(f"reset by {name}")
    if name == "status":
        viommu.transport.reset()
    else:
        field.resets[name]()
    if name != RINGS_GO_ON:
        match.take_rings(rings)
    for job in match.jobs:
        match.take_everything(job)


def by_register(act: Act, *, restarts: bool = True) -> Act:
    """`act`, or UNMAP and then `act`: which must set the answer free at once.

    `restarts`: the engine may be started again while what it had in flight would not have landed yet.
    """

    def run(match: Match) -> None:
        if match.rng.random() < 0.3:
            operand = match.rng.choice(match.main.operands)
            match.post([unmapping(match, operand, operand.pieces)])
            if match.rng.random() < 0.5:
                match.clock.until(match.clock.now() + match.rng.randrange(match.field.latency_ns + 1))
                match.reap()
        act(match)
        match.take_everything(match.main)
        if restarts and match.rng.random() < 0.5:
            match.restart()
        match.clock.look()
        match.reap()
        shared = any(job.accel is not match.main.accel for job in match.jobs) and match.shared
        if match.clock.is_exact and not shared:
            match.must(not match.unanswered, "nothing is in flight, and no answer")
        match.wait()

    return run


def clear_bypass(match: Match) -> None:
    """An endpoint in no domain reaches all of memory, until `bypass` is cleared."""
    match.main.halts = COMPLETION_REFUSED
    match.field.viommu.bypass = False
    match.must(not match.field.viommu.bypass, "bypass reads 1 after 0 was written")
    match.take_everything(match.main)


# held by other things than time


def frozen(match: Match) -> None:
    """While QEMU has stopped the machine nothing is in flight, and so no request waits."""
    freeze = match.field.freeze
    assert freeze is not None
    operand = match.rng.choice(match.main.operands)
    wish = unmapping(match, operand, operand.pieces)
    if match.rng.random() < 0.5:
        freeze(True)
        match.post([wish])
    else:
        match.post([wish])
        freeze(True)
        match.clock.look()
        match.reap()
    match.must(not match.unanswered, "a request waits for an engine that is frozen")
    match.clock.until(match.clock.now() + 3 * match.field.latency_ns)
    freeze(False)
    match.clock.look()


def unmap_ring(match: Match) -> None:
    """The ring goes first: the operation can never be completed, which holds up nobody."""
    main, field = match.main, match.field
    ring, operand = field.ring_iova(main.accel), match.rng.choice(main.operands)
    main.halts = COMPLETION_REFUSED
    last = ring + len(main.accel.ring.memory) - 1

    def taken() -> None:
        main.ring = bytes(main.accel.ring.memory)
        match.take_memory(main.accel.ring.memory)

    gone = Wish(Unmap(domain=DOMAIN, virt_start=ring, virt_end=last), taken, affected=False)
    match.post([gone, unmapping(match, operand, operand.pieces)])
    match.wait()
