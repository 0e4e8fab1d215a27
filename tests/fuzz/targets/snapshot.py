"""Saved state of a unit: any of it is taken, and then saved as it was, or refused with SnapshotError and no trace.

Input: a byte that chooses the unit, then JSON text; or, with the byte's upper half set, an odd value at some place of a
state that is good (`_spoiled`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.fuzz.reader import WORD, Reader
from tests.support.pasid_allocator import PlainAllocator
from vdev.iommu.engine import Engine
from vdev.iommu.pasid_set import PasidSet
from vdev.iommu.settings import ADDRESS_SPACE, EndpointSettings, Limits, PasidSettings, ReservedRegion, UnitSettings
from vdev.iommu.snapshot import SnapshotError
from vdev.wire import viommu as wire
from vdev.wire import viommu_pasid as pasid_wire

MSI = ReservedRegion(0xFEE0_0000, 0xFEF0_0000, is_msi=True)
ENDPOINTS = (EndpointSettings(8, "plain"), EndpointSettings(16, "doorbell", (MSI,)))
WITH_PASIDS, UNTOUCHED = 4, 8  # bits of the first byte: the unit has PASIDs; its VM's set is as new
PASID_ENDPOINTS = tuple(replace(endpoint, pasid=PasidSettings(4)) for endpoint in ENDPOINTS)
MAX_MAPPINGS = 6
LIMITS = Limits(max_domains=2, max_mappings_per_domain=4, max_mappings=MAX_MAPPINGS, max_pending_faults=2)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 16, 4096, 8192, WORD, WORD + 1, WORD + 2, 1 << 80, 0.5, 1e300, "", "00" * 24,
    "zz", "8", [], [0], [[0, 4096, 0, 3]], [[4096, 0, 0, 3]], [[0, 4096, 0, 3], [0, 4096, 0, 3]], {}, {"id": 1}, [8],
    [8, 8], [16], ["8"], [[]],
)  # fmt: skip


def one_input(data: bytes) -> None:
    """Restore one state in a unit that has another."""
    given = Reader(data)
    kind = given.byte()
    saved = _spoiled(given, _good(kind)) if kind & 0x80 else _text(given.rest())
    if not isinstance(saved, dict):
        return
    engine = _engine(kind)
    before = engine.snapshot()
    try:
        engine.restore(saved)
    except SnapshotError as error:
        _check_refusal(engine, before, str(error))
    else:
        _check(engine, kind)


def _check_refusal(engine: Engine, before: dict[str, Any], problem: str) -> None:
    assert problem
    assert engine.snapshot() == before, "a state that was refused left a trace"


def _check(engine: Engine, kind: int) -> None:
    """What was taken fits the unit, can be written, and is the same when it comes back."""
    saved = engine.snapshot()
    other = _engine(kind)
    other.restore(json.loads(json.dumps(saved)))
    assert other.snapshot() == saved, "it is another state the second time"
    assert sum(len(domain["mappings"]) for domain in saved["domains"]) <= MAX_MAPPINGS
    assert len(saved["pending_faults"]) <= LIMITS.max_pending_faults
    for domain in saved["domains"]:
        assert domain["endpoints"] or domain.get("pairs")
        assert engine.settings.domain_start <= domain["id"] < engine.settings.domain_stop
        stop = 0
        for start, following, gpa, flags in domain["mappings"]:
            assert not domain["bypass"]
            assert stop <= start < following <= engine.settings.input_stop
            assert (start | following | gpa) % engine.granule == 0
            assert flags & ~7 == 0
            stop = following
    probe = wire.Probe(wire.T_PROBE, bytes(3), 8).pack()
    assert engine.handle(probe, 516)[-4] == wire.S_OK
    engine.config_bytes()


def _settings(kind: int) -> UnitSettings:
    return UnitSettings(
        "unit",
        input_stop=1 << 40 if kind & 1 else ADDRESS_SPACE,
        bypass_offered=not kind & 2,
        domain_stop=4 if kind & 1 else 1 << 32,
        pasids=bool(kind & WITH_PASIDS),
        limits=LIMITS,
    )


def _engine(kind: int) -> Engine:
    """A unit with a domain and two mappings, and maybe PASIDs in it."""
    engine = _engine_with_pasids(kind) if kind & WITH_PASIDS else Engine(_settings(kind), ENDPOINTS)
    engine.set_features(-1)
    for request in (
        wire.Attach(wire.T_ATTACH, bytes(3), 1, 8),
        wire.Map(wire.T_MAP, bytes(3), 1, 0x1000, 0x1FFF, 0x5000, 3),
        wire.Map(wire.T_MAP, bytes(3), 1, 0x4000, 0x7FFF, 0x8000, 1),
    ):
        assert engine.handle(request.pack(), 4) == wire.TAILS[wire.S_OK]
    return engine


def _engine_with_pasids(kind: int) -> Engine:
    """PASID 1 in domain 1 and mirroring, PASID 2 freed and attached, PASID 3 idle; none where the set is as new."""
    allocator = PlainAllocator()
    engine = Engine(_settings(kind), PASID_ENDPOINTS, pasids=PasidSet(allocator))
    engine.set_features(-1)
    if kind & UNTOUCHED:
        return engine
    for _ in range(3):
        engine.handle(pasid_wire.PasidAlloc(pasid_wire.T_PASID_ALLOC, bytes(3), 1, 9).pack(), 12)
        engine.wait = None
        allocator.answer()
    for domain, endpoint, pasid, flags in ((1, 8, 1, 0), (0, 16, 1, 2), (1, 8, 2, 0)):
        attach = pasid_wire.AttachPasid(pasid_wire.T_ATTACH_PASID, bytes(3), domain, endpoint, pasid, flags)
        assert engine.handle(attach.pack(), 4) == wire.TAILS[wire.S_OK]
    engine.handle(pasid_wire.PasidFree(pasid_wire.T_PASID_FREE, bytes(3), 2, 2).pack(), 12)
    return engine


def _good(kind: int) -> dict[str, Any]:
    saved = _engine(kind & ~UNTOUCHED).snapshot()
    saved["domains"].append({"id": 2, "bypass": False, "endpoints": [16], "mappings": [[0, 4096, 4096, 2]]})
    saved["pending_faults"] = ["00" * 24]
    return saved


def _spoiled(given: Reader, saved: dict[str, Any]) -> dict[str, Any]:
    """Some members replaced, or taken out."""
    while given.more:
        place: Any = saved
        for _ in range(given.byte() % 5 + 1):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key, choice = (keys[given.byte() % len(keys)] if keys else None), given.byte()
            if key is None:
                break
            if choice & 0x80 or not isinstance(place[key], dict | list):
                if choice & 0xC0 == 0xC0 and isinstance(place, dict):
                    del place[key]
                else:
                    place[key] = json.loads(json.dumps(ODD[choice % len(ODD)]))  # its own, to be spoiled again
                break
            place = place[key]
    return saved


def _text(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def seeds() -> Iterator[bytes]:
    """Good states, and ones with something odd in each place."""
    for kind in (0, 1, 2, 3, WITH_PASIDS, WITH_PASIDS | UNTOUCHED):
        yield bytes([kind]) + json.dumps(_engine(kind).snapshot()).encode()
        yield bytes([kind]) + json.dumps(_good(kind)).encode()
    for place in range(5):
        for choice in range(0x80, 0x80 + len(ODD), 3):
            yield bytes([0x80, 0, place, choice])
            yield bytes([0x80, 4, 3, 0, 0, 0, 3, 0, 0, 0, place, choice])
            for kind in (0x80 | WITH_PASIDS, 0x80 | WITH_PASIDS | UNTOUCHED):
                yield bytes([kind, 1, 5, 0, 1, 0, place, 0, place, choice])
                yield bytes([kind, 4, 3, 0, 0, 0, 4, 0, place, 0, 0, choice])
