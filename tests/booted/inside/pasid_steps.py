"""Runs in the guests of test_two_vms.py: random steps with PASIDs, DMA with the numbers a test names, canaries."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from guest_tests.payload.accel import FILL, OK, Operation
from guest_tests.payload.direct import (
    Accel,
    AttachPasid,
    DmaBuffer,
    DmaPool,
    Feature,
    FeaturesRefused,
    PasidAlloc,
    PasidFree,
    Status,
    Viommu,
    find_accels,
    find_units,
)

PAGE = 4096
RING_DOMAIN, DOMAIN = 1, 2
RING_IOVA, IOVA = 0x0100_0000, 0x40_0000
NCANARIES = 8
ANSWER_S = 20.0


@dataclass
class World:
    """What one guest has between the calls."""

    viommu: Viommu
    accel: Accel
    target: DmaBuffer
    canaries: list[tuple[DmaBuffer, bytes]]
    held: set[int] = field(default_factory=set)
    attached: set[int] = field(default_factory=set)


_worlds: list[World] = []


def start(managed: bool) -> dict[str, int]:
    """Start the unit with PASIDs, and the first accelerator in the RID's domain; what the configuration says."""
    pool = DmaPool()
    also = Feature.PASID | (Feature.PASID_ALLOC if managed else 0)
    viommu = Viommu.open(find_units()[0], pool, also=also)
    accel = Accel.open(find_accels()[0], pool).start_in(viommu, RING_DOMAIN, RING_IOVA)
    accel.function.enable_pasids()
    target = pool.alloc(PAGE)
    viommu.attach(domain=DOMAIN + 1, endpoint=0x200)
    _worlds.append(World(viommu, accel, target, [(one, one.read()) for one in _random(pool)]))
    config = viommu.pasids.config()
    return {"space": config.space, "quota": config.quota, "used": config.used}


def _random(pool: DmaPool) -> list[DmaBuffer]:
    return [pool.arena().random(PAGE) for _ in range(NCANARIES)]


def unmanaged_is_refused() -> bool:
    """Whether the unit cannot be had with PASIDs that we number: refused, or (QEMU owns the bit) nothing is there."""
    try:
        viommu = Viommu.open(find_units()[0], DmaPool(), also=Feature.PASID)
    except FeaturesRefused:
        return True
    with viommu:
        return viommu.pasids.config().raw == bytes(24)


def alloc() -> int:
    """A PASID."""
    pasid = _world().viommu.pasids.alloc().pasid
    _world().held.add(pasid)
    return pasid


def attach(pasid: int) -> int:
    """Attach it to the domain in which `target` is; the status."""
    world = _world()
    status = world.viommu.send(AttachPasid(domain=DOMAIN, endpoint=world.accel.endpoint, pasid=pasid)).status
    if status == Status.OK and not world.attached:
        world.viommu.map_buffer(DOMAIN, IOVA, world.target)
        world.attached.add(pasid)
    return -1 if status is None else int(status)


def fill(pasid: int, pattern: int) -> dict[str, Any]:
    """Fill `target` with the PASID; the completion's status, and what the fault said if there was one."""
    world = _world()
    completion = world.accel.run(Operation(FILL, dst=IOVA, nbytes=PAGE, arg=pattern, pasid=pasid))
    if completion.status == OK:
        return {"status": OK, "reason": 0}
    fault = world.viommu.wait_fault()
    return {"status": completion.status, "reason": int(fault.reason), "pasid": fault.pasid}


def target() -> int:
    """The 64-bit word that fills `target`; -1 where it is not filled with one."""
    content = _world().target.read()
    return int.from_bytes(content[:8], "little") if content == content[:8] * (PAGE // 8) else -1


def canaries_are_intact() -> bool:
    """Whether each has the bytes it was made with."""
    return all(one.read() == was for one, was in _world().canaries)


def steps(seed: int, count: int) -> dict[str, Any]:
    """So many random steps: allocate, attach, detach, free; what is held afterwards, and how often what happened.

    An allocation may be answered DEVERR while the authority is away, nothing else may.
    """
    world, rng = _world(), random.Random(seed)
    done = {"granted": 0, "freed": 0, "no-space": 0, "away": 0}
    for _ in range(count):
        choice = rng.random()
        if choice < 0.5 or not world.held:
            _allocate(world, done)
        elif choice < 0.65:
            _toggle(world, rng.choice(sorted(world.held)))
        else:
            _free(world, rng.choice(sorted(world.held)), done)
    return {**done, "held": sorted(world.held)}


def _allocate(world: World, done: dict[str, int]) -> None:
    answer = world.viommu.send(PasidAlloc(), nwritable=12, timeout_s=ANSWER_S)
    if answer.ok:
        pasid = int.from_bytes(answer.written[:4], "little")
        assert pasid not in world.held, f"PASID {pasid} is granted twice"
        world.held.add(pasid)
        done["granted"] += 1
    elif answer.status == Status.NOMEM:
        done["no-space"] += 1
    else:
        assert answer.status == Status.DEVERR, answer
        done["away"] += 1


def _toggle(world: World, pasid: int) -> None:
    endpoint = world.accel.endpoint
    if pasid in world.attached:
        world.viommu.pasids.detach(domain=DOMAIN, endpoint=endpoint, pasid=pasid)
        world.attached.discard(pasid)
    else:
        world.viommu.pasids.attach(domain=DOMAIN, endpoint=endpoint, pasid=pasid)
        world.attached.add(pasid)


def _free(world: World, pasid: int, done: dict[str, int]) -> None:
    answer = world.viommu.send(PasidFree(first=pasid, last=pasid), nwritable=12, timeout_s=ANSWER_S)
    assert answer.ok, answer
    done["freed"] += 1
    if pasid in world.attached:
        world.viommu.pasids.detach(domain=DOMAIN, endpoint=world.accel.endpoint, pasid=pasid)
        world.attached.discard(pasid)
    world.held.discard(pasid)


def free_all() -> int:
    """Detach and free everything; how many there were."""
    world, nheld = _world(), len(_world().held)
    for pasid in sorted(world.held):
        _free(world, pasid, {"freed": 0})
    return nheld


def _world() -> World:
    return _worlds[-1]
